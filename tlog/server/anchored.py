"""Keeping the newest head of a served log in a file outside: the anchor that its next start is compared with.

It is written for every newest head, at most once in a while. What is found there and was not written by this process is
compared as a start would, so a head of another history is never lost under it, and stops the log.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import structlog

from tlog.note import MAX_NOTE_SIZE
from tlog.server.anchor import leave_mark
from tlog.server.disk import sync
from tlog.server.errors import OtherHistoryError, StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tlog.server.storage import SignedHead

LAST_S = 5.0
"""Seconds that a log waits at its end for the last head to be written; a disk that hangs may be that of the anchor."""

log = structlog.get_logger()

T = TypeVar("T")


class AnchorWriter:
    """Keeps a copy of the newest head in a file, as a rule on another machine. Owned by the event loop.

    1  what is there is what was written last, or is in the tree
    2  write the note beside it
    3  make it durable
    4  give it the name of the file
    5  make the folder durable
    6  the first time, say so in the data directory: from then on a start needs the file

    Each write has a thread of its own, which nobody waits for at the end of the process: a disk that hangs must not
    keep the log from anything.

    Attributes:
        size: Size of the newest head that was written; 0 before the first.
        failures: How often one could not be written.
    """

    def __init__(
        self, path: Path, mark: Path, compare: Callable[[bytes], Awaitable[None]], halt: Callable[[str], None]
    ) -> None:
        """Write to a file.

        Args:
            path: The file.
            mark: Where the log says that it has written it.
            compare: Compares a note that somebody else wrote with the log, as `compare_note` does.
            halt: Is called with the reason to sign no more: the note is of another history.
        """
        self._path = path
        self._mark = mark
        self._compare = compare
        self._halt = halt
        self._written: bytes | None = None
        self._writing: asyncio.Task[None] | None = None
        self._failure = ""
        self.size = 0
        self.failures = 0

    async def run(self, head: Callable[[int], Awaitable[SignedHead]], pause_s: float) -> None:
        """Write each newest head, with a pause between two, until cancelled.

        Args:
            head: Waits for a head that is larger than a size.
            pause_s: Seconds between two writes.
        """
        while True:
            self._writing = asyncio.create_task(self._write(await head(self.size)), name="anchor write")
            await asyncio.shield(self._writing)
            await asyncio.sleep(pause_s)

    async def finish(self, head: SignedHead) -> None:
        """Write the last head, when `run` has ended; give up where that takes long."""
        try:
            async with asyncio.timeout(LAST_S):
                if self._writing is not None:
                    await self._writing
                await self._write(head)
        except TimeoutError:
            self._failed(head, "the disk does not answer")

    async def _write(self, head: SignedHead) -> None:
        """Write a head where it is newer than the last one; the log goes on where that fails."""
        if head.size <= self.size:
            return
        try:
            found = await _on_thread(partial(_read_written, self._path))
            if found is not None and found != self._written:
                await self._compare(found)
            await _on_thread(partial(_replace, self._path, head.note, self._mark))
        except OSError as error:
            self._failed(head, error.strerror or str(error))
            return
        except OtherHistoryError as error:
            self._failed(head, str(error))
            self._halt(str(error))
            return
        except StartRefusedError:
            self._failed(head, "somebody else has written to it, so it is left as it is; a start would refuse it")
            return
        if found is None or self._failure:
            log.info("anchor.written", file=str(self._path), size=head.size)
        self._written, self._failure, self.size = head.note, "", head.size

    def _failed(self, head: SignedHead, reason: str) -> None:
        """Count a failure, and log it where it is not the one that was logged last."""
        self.failures += 1
        if reason != self._failure:
            self._failure = reason
            log.warning("anchor.failed", file=str(self._path), reason=reason, size=head.size)


async def _on_thread(work: Callable[[], T]) -> T:
    """Run work on a thread that ends with the process, and wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(done.set_result, work())
        except OSError as error:
            settle = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: done.done() or settle())

    Thread(target=run, name="anchor", daemon=True).start()
    return await done


def _read_written(path: Path) -> bytes | None:
    """Read what was written; None where nothing was."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_SIZE + 1)
    except FileNotFoundError:
        return None


def _replace(path: Path, note: bytes, mark: Path) -> None:
    """Write a note over what was written before, and the mark, where it is not there yet."""
    draft = path.with_name(f".{path.name[:200]}.part")
    draft.write_bytes(note)
    sync(draft)
    draft.replace(path)
    sync(path.absolute().parent)
    leave_mark(mark, path)
