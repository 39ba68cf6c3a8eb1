"""Submitting any number of entries: read as they come, sent in batches, reported in their order.

A thread of its own reads, because stdin may be silent for hours. What it has read while a batch was under way is the
next batch: so a slow input is sent entry by entry at once, and a fast one in full batches. It stays at most one full
batch ahead, so memory is bounded. One batch is under way at a time, so that the log has the order of the input.

Each batch has an Idempotency-Key of its own, drawn at random, and is sent again with it when the log is away or busy:
an answer that was lost does not append anything twice. An answer that came and could not be checked is checked again.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, FormatError, PushbackError, RefusedError, UnavailableError
from tlog.fetch import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES
from tlog.tile import MAX_ENTRY_SIZE
from tlog_client.failure import UnreachableError
from tlog_client.flow import UncheckedError, batch_bytes
from tlog_client.patience import Patience
from tlog_client.run import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tlog_client.flow import Added
    from tlog_client.log import AsyncLog

MAX_TRIES = 8
"""How often a batch is sent to a log that is away or busy: for about a minute, or as long as the log asks for."""


def read_entries(files: Sequence[str], *, lines: bool) -> Iterator[bytes]:
    """Read entries as they are asked for; `-` is stdin.

    Raises:
        OptionError: An entry is too long, a file cannot be read, or stdin is to be an entry and is empty.
    """
    for name in files:
        shown = "stdin" if name == "-" else name
        try:
            with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:  # 0 has no path
                if not lines:
                    entry = file.read(MAX_ENTRY_SIZE + 1)
                    if not entry and name == "-":  # a pipe from a command that failed
                        raise OptionError("stdin is empty, and no entry; to append one of 0 bytes, name /dev/null")
                    yield _bounded(entry, shown)
                    continue
                number = 0
                while line := file.readline(MAX_ENTRY_SIZE + 2):
                    number += 1
                    yield _bounded(line.removesuffix(b"\n"), f"{shown}, line {number}")
        except OSError as error:
            raise OptionError(f"{shown} cannot be read: {error.strerror}") from error


def _bounded(entry: bytes, where: str) -> bytes:
    if len(entry) > MAX_ENTRY_SIZE:
        raise OptionError(f"{where}: an entry has at most {MAX_ENTRY_SIZE:,} bytes; submit the hash of what is larger")
    return entry


class _Reader:
    """Reads in a thread, never more than a full batch ahead. The thread ends with the process, whatever stdin does."""

    def __init__(self, entries: Iterator[bytes]) -> None:
        self._entries = entries
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Condition()
        self._read: deque[bytes] = deque()  # this and what follows is owned by who holds the lock
        self._bytes = 0
        self._is_done = False
        self._error: Exception | None = None
        threading.Thread(target=self._work, daemon=True).start()

    async def next_batch(self, most: int) -> list[bytes]:
        """Return what was read so far, at least one entry and at most so many; nothing at the end.

        Raises:
            OptionError, FormatError: What ended the reading, once all before it was returned.
        """
        while True:
            with self._lock:
                if batch := self._cut(most):
                    return batch
                if self._error:
                    raise self._error
                if self._is_done:
                    return []
                self._arrived.clear()
            await self._arrived.wait()

    def _cut(self, most: int) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._read and len(batch) < most:
            size += batch_bytes([self._read[0]])
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._read.popleft())
        self._bytes -= batch_bytes(batch)
        self._lock.notify()
        return batch

    def _work(self) -> None:
        last: Exception | None = OptionError("reading the input ended too early")
        try:
            for entry in self._entries:
                self._hand(entry)
            last = None
        except (OptionError, FormatError) as error:
            last = error
        finally:
            with self._lock:
                self._error, self._is_done = last, True
            self._wake()

    def _hand(self, entry: bytes) -> None:
        with self._lock:
            self._lock.wait_for(lambda: len(self._read) < MAX_BATCH_ENTRIES and self._bytes < MAX_BATCH_BYTES)
            self._read.append(entry)
            self._bytes += batch_bytes([entry])
            is_first = len(self._read) == 1
        if is_first:
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._arrived.set)


class Submission:
    """One run of submitting.

    Attributes:
        reported: Entries that were reported. # owned by `run`, as what follows
        sent: Entries that were sent, the reported ones included.
    """

    def __init__(
        self,
        log: AsyncLog,
        report: Callable[[Added], None],
        notice: Callable[[CouldNotCheckError], None] = lambda _: None,
    ) -> None:
        """Take where entries go.

        Args:
            log: The log.
            report: Is called for each entry, in the order of the input.
            notice: Is called once each time that the log becomes unavailable.
        """
        self.reported = 0
        self.sent = 0
        self._log = log
        self._report = report
        self._notice = notice
        self._most = MAX_BATCH_ENTRIES
        self._has_answered = False
        self._is_away = False

    async def run(self, entries: Iterator[bytes]) -> None:
        """Add entries, and report each in the order of the input.

        Raises:
            TreeheadError: A batch failed; its entries may have been appended all the same.
        """
        reader = _Reader(entries)
        while batch := await reader.next_batch(self._most):
            self.sent += len(batch)
            for added in await self._add(batch):
                self._report(added)
                self.reported += 1

    async def _add(self, batch: list[bytes]) -> list[Added]:
        """Add a batch, with one key for all tries; a batch that is too large for this log in two halves.

        Raises:
            TreeheadError: As `AsyncLog.add_many`.
        """
        key, patience, unchecked = secrets.token_urlsafe(24), Patience(), None
        for _ in range(MAX_TRIES - 1):
            try:
                return await self._try(batch, key, unchecked)
            except RefusedError as error:
                if error.status != 413 or len(batch) == 1:
                    raise
                half = self._most = len(batch) // 2
                return [*(await self._add(batch[:half])), *(await self._add(batch[half:]))]
            except UncheckedError as error:
                unchecked = error
                await self._wait(patience, error)
            except (PushbackError, UnavailableError) as error:
                if isinstance(error, UnreachableError) and not self._has_answered:
                    self.sent -= len(batch)
                    raise  # nobody was there from the beginning: the address is wrong, and nothing was sent
                await self._wait(patience, error)
        return await self._try(batch, key, unchecked)

    async def _try(self, batch: list[bytes], key: str, unchecked: UncheckedError | None) -> list[Added]:
        """Add a batch; where the log says already that it did, only check that."""
        added = await (self._log.complete(unchecked) if unchecked else self._log.add_many(batch, key=key))
        self._has_answered, self._is_away = True, False
        return added

    async def _wait(self, patience: Patience, error: CouldNotCheckError) -> None:
        delay = patience.delay(error)
        if not self._is_away:
            self._is_away = True
            self._notice(error)
        await asyncio.sleep(delay)


async def submit_all(log: AsyncLog, entries: Iterator[bytes], report: Callable[[Added], None]) -> None:
    """Add any number of entries in batches, and report each in the order of the input; as `Submission.run`."""
    await Submission(log, report).run(entries)
