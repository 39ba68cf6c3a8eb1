"""Submitting many entries: read as they come, many under way at once, reported in their order.

A thread of its own reads, because stdin may be silent for hours; it stays at most 64 entries ahead of the reports.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from tlog.errors import FormatError, PushbackError
from tlog.tile import MAX_ENTRY_SIZE
from tlog_client.run import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tlog_client.log import Added, AsyncLog

MAX_IN_FLIGHT = 64
"""Most entries that were read and are not reported."""

MAX_TRIES = 8
"""How often an entry is sent to a log that asks to try later."""

MAX_WAIT = 60
"""Most seconds between two tries."""


def read_entries(files: Sequence[str], *, lines: bool) -> Iterator[bytes]:
    """Read entries as they are asked for; `-` is stdin.

    Raises:
        OptionError: An entry is too long, or a file cannot be read.
    """
    for name in files:
        shown = "stdin" if name == "-" else name
        try:
            with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:  # 0 has no path
                if not lines:
                    yield _bounded(file.read(MAX_ENTRY_SIZE + 1), shown)
                    continue
                number = 0
                while line := file.readline(MAX_ENTRY_SIZE + 2):
                    number += 1
                    yield _bounded(line.removesuffix(b"\n"), f"{shown}, line {number}")
        except OSError as error:
            raise OptionError(f"{shown} cannot be read: {error.strerror}") from error


def _bounded(entry: bytes, where: str) -> bytes:
    if len(entry) > MAX_ENTRY_SIZE:
        raise OptionError(f"{where}: an entry has at most {MAX_ENTRY_SIZE} bytes")
    return entry


class _Reader:
    """Reads in a thread, never more than 64 entries ahead. The thread ends with the process, whatever stdin does."""

    def __init__(self, entries: Iterator[bytes]) -> None:
        self._entries = entries
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(MAX_IN_FLIGHT)
        self._read: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    async def next(self) -> bytes | None:
        """Return the next entry, None at the end."""
        item = await self._read.get()
        if isinstance(item, Exception):
            raise item
        return item

    def release(self) -> None:
        """Let one more entry be read."""
        self._room.release()

    def _work(self) -> None:
        last: Exception | None = OptionError("reading the input ended too early")
        try:
            for entry in self._entries:
                self._hand(entry)
                self._room.acquire()
            last = None
        except (OptionError, FormatError) as error:
            last = error
        finally:
            self._hand(last)

    def _hand(self, item: bytes | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._read.put_nowait, item)


def so_far(count: int) -> str:
    """Say what is known of entries when submitting them ended early."""
    return f"{count} indexes were printed, and up to {MAX_IN_FLIGHT} more entries may have been appended"


async def submit_all(log: AsyncLog, entries: Iterator[bytes], report: Callable[[Added], None]) -> None:
    """Add entries, up to 64 at once, and report each in the order of the input.

    Raises:
        TreeheadError: The first that failed; those after it may have been appended all the same.
    """
    reader = _Reader(entries)
    under_way: asyncio.Queue[asyncio.Task[Added] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Added]] = set()

    async def send() -> None:
        try:
            while (entry := await reader.next()) is not None:
                task = asyncio.create_task(add_politely(log, entry))
                tasks.add(task)
                under_way.put_nowait(task)
        finally:
            under_way.put_nowait(None)

    sending = asyncio.create_task(send())
    try:
        while (task := await under_way.get()) is not None:
            report(await task)
            tasks.discard(task)
            reader.release()
        await sending
    finally:
        for left in (sending, *tasks):
            left.cancel()
        await asyncio.gather(sending, *tasks, return_exceptions=True)


async def add_politely(log: AsyncLog, entry: bytes) -> Added:
    """Add an entry; wait as long as a busy log asks, and try again, eight times at most.

    Raises:
        PushbackError: It was busy each time.
        TreeheadError: As `AsyncLog.add`.
    """
    for attempt in range(MAX_TRIES - 1):
        try:
            return await log.add(entry)
        except PushbackError as error:
            await asyncio.sleep(min(MAX_WAIT, 2**attempt if error.retry_after is None else error.retry_after))
    return await log.add(entry)
