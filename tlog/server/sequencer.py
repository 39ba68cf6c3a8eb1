"""The sequencer: gives each entry its index, one commit after the other, without a timer.

A batch is whatever arrived while the commit before it ran: one client sees the cost of one commit, a thousand share it.

    1  admit: the pool is bounded in entries and bytes, and so is what the follower has not derived yet
    2  seal the batch, with one clock reading
    …  `Commit.run` on the database thread
    8  the head becomes visible, the overlay is extended, submitters are answered

An entry that was admitted and whose future is cancelled is appended all the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tlog.errors import FormatError, PushbackError
from tlog.merkle import leaf_hash
from tlog.server.errors import StoppedError
from tlog.server.follower import MAX_LAG
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlog.server.commit import Commit, Committed
    from tlog.server.overlay import Overlay
    from tlog.server.storage import SignedHead
    from tlog.server.storage.database import Database

MAX_POOL_ENTRIES = 1 << 16
"""Most entries that wait; at the slowest disk seen they are signed within two seconds."""

MAX_POOL_BYTES = 64 << 20
"""Most bytes that wait: memory that submitters can make the log hold."""

MAX_BATCH_BYTES = 8 << 20
"""Most bytes in one commit, so that the time of a commit stays bounded."""

MAX_UNSIGNED_S = 5.0
"""Seconds after which an admitted entry that is not signed makes the log not ready."""

RETRY_AFTER_S = 1
"""Seconds that a submitter is asked to wait: the pool empties with the next commits."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry that is in the log for good.

    Attributes:
        index: Its index.
        leaf_hash: Its leaf hash, 32 bytes.
        head: The signed head of the commit that brought it.
    """

    index: int
    leaf_hash: bytes
    head: SignedHead


@dataclass(frozen=True, slots=True)
class _Pending:
    """An admitted entry."""

    entry: bytes
    leaf_hash: bytes
    placed: asyncio.Future[Placed]
    since: float


class Sequencer:
    """The pool and the loop that empties it. All state is owned by the event loop."""

    def __init__(
        self,
        thread: Database,
        commit: Commit,
        overlay: Overlay,
        head: SignedHead,
        clock_ms: Callable[[], int],
    ) -> None:
        """Begin at a head with an empty pool.

        Args:
            thread: The thread that owns the commit.
            commit: The end of the log.
            overlay: The newest part of the tree; extended here and nowhere else.
            head: The signed head.
            clock_ms: The wall clock, milliseconds since 1970.
        """
        self.head = head
        self.advanced = asyncio.Event()  # set whenever the head moves; the follower clears it
        self._thread = thread
        self._commit = commit
        self._overlay = overlay
        self._clock_ms = clock_ms
        self._pool: list[_Pending] = []
        self._pool_bytes = 0
        self._sealed: list[_Pending] = []
        self._wake = asyncio.Event()
        self._closing = False

    def check_admission(self) -> None:
        """Refuse early what would be refused anyway.

        Raises:
            StoppedError: The log is closing.
            PushbackError: The pool is full, or the follower is too far behind.
        """
        if self._closing:
            raise StoppedError("the log is closing")
        if len(self._pool) >= MAX_POOL_ENTRIES or self._pool_bytes >= MAX_POOL_BYTES:
            raise PushbackError("too many entries are waiting", retry_after=RETRY_AFTER_S)
        if self._overlay.size - self._overlay.position >= MAX_LAG:
            raise PushbackError("tiles are being written; adding goes on when they are", retry_after=RETRY_AFTER_S)

    async def add(self, entry: bytes) -> Placed:
        """Append an entry and return when it is durable, and contained in a signed head.

        Raises:
            FormatError: It has more than 65,535 bytes.
            StoppedError: The log is closing, or stopped to protect itself.
            PushbackError: The pool is full, or the follower is too far behind.
        """
        if len(entry) > MAX_ENTRY_SIZE:
            raise FormatError(f"an entry has at most {MAX_ENTRY_SIZE} bytes, not {len(entry)}")
        self.check_admission()
        loop = asyncio.get_running_loop()
        pending = _Pending(entry, leaf_hash(entry), loop.create_future(), loop.time())
        self._pool.append(pending)
        self._pool_bytes += len(entry)
        self._wake.set()
        return await pending.placed

    def is_late(self) -> bool:
        """Return whether an admitted entry has been unsigned for longer than 5 seconds."""
        waiting = self._sealed or self._pool
        return bool(waiting) and asyncio.get_running_loop().time() - waiting[0].since > MAX_UNSIGNED_S

    def close(self) -> None:
        """Take no more entries; `run` returns when those admitted are signed."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Commit batch after batch until the log is closed and the pool is empty.

        Raises:
            CommitError: A commit failed, and what became of its entries is unknown; no submitter is answered.
        """
        try:
            while self._pool or not self._closing:
                if self._pool:
                    await self._commit_batch()
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            self._closing = True

    def abandon(self) -> None:
        """Tell those who still wait that the log stopped; an entry of a failed commit may be durable all the same."""
        for pending in (*self._sealed, *self._pool):
            if not pending.placed.done():
                pending.placed.set_exception(StoppedError("the log stopped before it could sign this entry"))

    async def _commit_batch(self) -> None:
        """Take steps 2 to 8 for what the pool holds."""
        self._sealed = batch = self._seal()
        entries = [pending.entry for pending in batch]
        leaf_hashes = [pending.leaf_hash for pending in batch]
        run = partial(self._commit.run, entries, leaf_hashes, self._clock_ms())
        committed = await self._thread.run(lambda _: run())
        self._publish(committed, entries)
        self._sealed = []

    def _seal(self) -> list[_Pending]:
        """Take the oldest entries out of the pool, up to the size of a batch."""
        size = count = 0
        for pending in self._pool:
            size += len(pending.entry)
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._pool = self._pool[:count], self._pool[count:]
        self._pool_bytes -= sum(len(pending.entry) for pending in batch)
        return batch

    def _publish(self, committed: Committed, entries: list[bytes]) -> None:
        """Make a commit visible, then answer: step 8."""
        first = committed.growth.old.size
        self._overlay.extend(committed.growth, entries)
        self.head = committed.head
        self.advanced.set()
        for offset, pending in enumerate(self._sealed):
            if not pending.placed.done():
                pending.placed.set_result(Placed(first + offset, pending.leaf_hash, committed.head))
