"""The sequencer: gives each entry its index, one commit after the other, without a timer.

A batch is whatever arrived while the commit before it ran: one client sees the cost of one commit, a thousand share it.

    1  admit: the pool is bounded in entries and bytes, and so are the tree and what the follower has not derived yet;
       an entry that is under way is joined, one that the log has is not appended again
    2  seal the batch, with one clock reading
    …  `Commit.run` on the database thread
    8  the head becomes visible, the overlay is extended, submitters are answered

An entry that was admitted and whose submitter is cancelled is appended all the same.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from tlog.errors import PushbackError
from tlog.merkle import leaf_hash
from tlog.server.admission import Admission
from tlog.server.clock import ClockError
from tlog.server.errors import ReadOnlyError, StoppedError, TooLargeError
from tlog.server.metrics import Meter
from tlog.server.pool import Pool
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.clock import Clock
    from tlog.server.commit import Commit, Committed
    from tlog.server.duplicates import Duplicates
    from tlog.server.idempotency import KeyRecord, Keys, RequestKey
    from tlog.server.limit import Limits
    from tlog.server.overlay import Overlay
    from tlog.server.pool import Answer, Submission
    from tlog.server.space import Space
    from tlog.server.storage import SignedHead
    from tlog.server.storage.database import Database

MAX_UNSIGNED_S = 5.0
"""Seconds after which an admitted entry that is not signed makes the log not ready."""

RETRY_AFTER_S = 1
"""Seconds that a submitter is asked to wait: the pool empties with the next commits."""

CLOCK_LOOK_S = 1.0
"""Seconds between two looks at the clock while nothing is signed: because nobody adds, or it is not believed."""

CLOCK_WAIT_S = 10.0
"""Seconds that admitted entries wait for a clock that is not believed before they are refused."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry that is in the log for good.

    Attributes:
        index: Its index; of an entry that the log had before, the first.
        leaf_hash: Its leaf hash, 32 bytes.
        head: A signed head that contains it.
        is_new: Whether this submission appended it.
    """

    index: int
    leaf_hash: bytes
    head: SignedHead
    is_new: bool


@dataclass(frozen=True, slots=True)
class End:
    """The end of the log that a sequencer goes on from.

    Attributes:
        thread: The thread that owns the commit.
        commit: The end of the log on disk.
        head: The signed head.
        overlay: The newest part of the tree; extended by the sequencer and nowhere else.
        duplicates: Finds what the log has already.
        keys: The idempotency keys of the last 24 hours.
        space: The disks that it is written to.
    """

    thread: Database
    commit: Commit
    head: SignedHead
    overlay: Overlay
    duplicates: Duplicates
    keys: Keys
    space: Space


class Sequencer:
    """The pool and the loop that empties it. All state is owned by the event loop.

    Attributes:
        head: The signed head.
        pool: What was admitted and is not signed yet.
        admission: The way into it.
        meter: What is counted.
        advanced: Set whenever the head has advanced; cleared by the follower.
        halted: Why nothing is signed any more; empty while it is.
    """

    def __init__(self, end: End, limits: Limits, clock: Clock, *, dedup: bool = True) -> None:
        """Begin at the end of a log with an empty pool.

        Args:
            end: The end of the log.
            limits: How much is admitted.
            clock: What time it is.
            dedup: Whether an entry that the log has is not appended again.
        """
        self.head = end.head
        self.pool = Pool(limits)
        self.meter = Meter(advanced_at=monotonic())
        self.advanced = asyncio.Event()
        self._end = end
        self._limits = limits
        self._clock = clock
        self._last_ms = end.commit.last_ms
        self._moved = asyncio.Event()  # of one head; the next has one of its own
        self._wake = asyncio.Event()
        self._closing = False
        self.halted = ""
        self.admission = Admission(
            self.pool,
            end.duplicates,
            end.keys,
            self.meter,
            head=lambda: self.head,
            now_ms=clock.steady_ms,
            wake=self._wake.set,
            dedup=dedup,
        )

    def check_admission(self, count: int = 1) -> None:
        """Refuse early what would be refused anyway.

        Args:
            count: How many entries are to be added.

        Raises:
            StoppedError: The log is closing.
            ClockError: The clock is not believed.
            ReadOnlyError: The tree would grow beyond the largest size that this log may reach.
            NoSpaceError: A disk is too full.
            PushbackError: The pool is full, or the follower is too far behind.
        """
        if self._closing or self.halted:
            raise StoppedError(self.halted or "the log is closing")
        try:
            self._clock.read(self._last_ms)
        except ClockError:
            self.meter.clock_stops = self._clock.stops
            raise
        limits, overlay, pool = self._limits, self._end.overlay, self.pool
        size = self.head.size + pool.committing + pool.entries
        if size + count > limits.tree_size:
            raise ReadOnlyError(f"the log has {size} entries, and takes {limits.tree_size} at most")
        if pool.is_full():
            raise PushbackError("too many entries are waiting", retry_after=RETRY_AFTER_S)
        if size - overlay.position >= limits.lag or overlay.bytes >= limits.lag_bytes:
            raise PushbackError("tiles are being written; adding goes on when they are", retry_after=RETRY_AFTER_S)
        self._end.space.check(3 * pool.bytes + 2 * overlay.bytes)  # in log.db, and in tiles.db and its WAL

    async def add(self, entries: Sequence[bytes], request: RequestKey | None = None) -> list[Placed]:
        """Append entries in one commit and return when they are durable, and contained in a signed head.

        Args:
            entries: At least one; none is appended that the log has already.
            request: The request's idempotency key: what was carried out under it is answered, and not done again.

        Raises:
            TooLargeError: An entry has more than 65,535 bytes, or there are too many entries or bytes.
            StoppedError: The log is closing, or stopped to protect itself.
            ClockError: The clock is not believed, or was not for too long while the entries waited.
            ReadOnlyError: The tree would grow beyond the largest size that this log may reach.
            NoSpaceError: A disk is too full.
            PushbackError: The pool is full, or the follower is too far behind.
            KeyReusedError: The key was used for another request.
            DamageError: What is stored does not verify, so duplicates cannot be told.
        """
        if request is not None:
            self._check_size(entries)
            record = await self.admission.repeat(request)
            if record is not None:
                return await self._again(entries, record)
        answer: asyncio.Future[SignedHead] = asyncio.get_running_loop().create_future()
        submission = self.submit(entries, answer, request)
        head = await answer
        places = submission.take_places()
        return [Placed(one.index, one.leaf_hash, head, is_new=is_mine and not one.is_old) for one, is_mine in places]

    def submit(self, entries: Sequence[bytes], answer: Answer, request: RequestKey | None = None) -> Submission:
        """Admit entries now, or refuse them; see `add`, which this is the first part of.

        Args:
            entries: At least one.
            answer: Is told of the outcome, possibly before this returns.
            request: The request's idempotency key, under which nothing was done yet.
        """
        count = len(entries)
        if count != 1 or len(entries[0]) > MAX_ENTRY_SIZE:  # one entry is never too many bytes for a batch
            self._check_size(entries)
        self.check_admission(count)
        return self.admission.admit(entries, request, answer)

    async def _again(self, entries: Sequence[bytes], record: KeyRecord) -> list[Placed]:
        """Return where the entries of a request are that was carried out before."""
        leaves = [leaf_hash(entry) for entry in entries]
        await self._end.duplicates.check(record.indexes, leaves)
        return [
            Placed(index, leaf, self.head, is_new=False) for index, leaf in zip(record.indexes, leaves, strict=True)
        ]

    def read_clock(self) -> int:
        """Return the time that a segment would be stamped with now, milliseconds since 1970.

        Raises:
            ClockError: The clock is not believed.
        """
        try:
            return self._clock.read(self._last_ms)
        except ClockError:
            self.meter.clock_stops = self._clock.stops
            raise

    def is_clock_stopped(self) -> bool:
        """Return whether the clock was not believed when it was read last."""
        return bool(self._clock.stopped)

    def is_late(self) -> bool:
        """Return whether an admitted entry has been unsigned for longer than 5 seconds."""
        oldest = self.pool.oldest()
        return oldest is not None and monotonic() - oldest > MAX_UNSIGNED_S

    async def wait_for_head(self, size: int) -> SignedHead:
        """Return the head as soon as it is larger than a size."""
        while self.head.size <= size:
            await self._moved.wait()
        return self.head

    def halt(self, reason: str) -> None:
        """Sign nothing any more, and tell those who wait; the commit under way, if there is one, ends."""
        self.halted = reason
        self._wake.set()

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
            while self.pool.has_entered() or self.admission.is_busy() or not self._closing:
                if self.admission.failure is not None:
                    raise self.admission.failure
                if self.halted:
                    self.admission.drop(StoppedError(self.halted))
                try:
                    now_ms = self.read_clock()
                except ClockError as error:
                    self._give_up(error)
                    await self._pause()
                    continue
                if self.pool.has_entered():
                    await self._commit_batch(now_ms)
                else:
                    await self._pause()
        finally:
            self._closing = True

    def abandon(self) -> None:
        """Tell those who still wait that the log stopped; an entry of a failed commit may be durable all the same."""
        self.pool.abandon(StoppedError("the log stopped before it could sign this entry"))

    def _check_size(self, entries: Sequence[bytes]) -> None:
        if any(len(entry) > MAX_ENTRY_SIZE for entry in entries):
            raise TooLargeError(f"an entry has at most {MAX_ENTRY_SIZE} bytes")
        if len(entries) > self._limits.batch_entries:
            raise TooLargeError(f"a batch has at most {self._limits.batch_entries} entries, not {len(entries)}")
        if sum(map(len, entries)) > self._limits.batch_bytes:
            raise TooLargeError(f"a batch has at most {self._limits.batch_bytes} bytes of entries")

    async def _pause(self) -> None:
        """Wait until there is something to do, or the clock is to be looked at."""
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_LOOK_S):
                await self._wake.wait()

    def _give_up(self, error: ClockError) -> None:
        """Refuse what has waited for too long for a clock that is believed, and at the end what waits at all."""
        oldest = self.pool.oldest()
        if self._closing or (oldest is not None and monotonic() - oldest > CLOCK_WAIT_S):
            self.admission.drop(error)

    async def _commit_batch(self, now_ms: int) -> None:
        """Take steps 2 to 8 for what the pool holds, at a time that is believed."""
        sealed, sealed_at = self.pool.seal(), monotonic()
        brought = [waiting for submission in sealed for waiting in submission.brought]
        for index, waiting in enumerate(brought, self.head.size):
            waiting.index = index
        entries = [waiting.entry for waiting in brought]
        leaf_hashes = [waiting.leaf_hash for waiting in brought]
        keyed = [submission for submission in sealed if submission.request is not None]
        keys = b"".join(record.format() for submission in keyed if (record := submission.record()) is not None)
        run = partial(self._end.commit.run, entries, leaf_hashes, now_ms, keys)
        committed = await self._end.thread.run(lambda _: run())
        self._last_ms = committed.time_ms
        self._publish(committed, sealed, entries, leaf_hashes)
        self.meter.clamps += committed.time_ms > now_ms
        self.meter.committed(committed.seconds, len(entries), (sealed[0].since, sealed_at, monotonic()))

    def _publish(
        self, committed: Committed, sealed: Sequence[Submission], entries: Sequence[bytes], leaf_hashes: Sequence[bytes]
    ) -> None:
        """Make a commit visible, then answer: step 8."""
        self._end.overlay.extend(committed.growth, entries)
        self._end.duplicates.extend(committed.growth.old.size, leaf_hashes)
        self.head = committed.head
        self.advanced.set()
        self._moved.set()
        self._moved = asyncio.Event()
        for submission in sealed:
            self.admission.settle(submission, committed.head)
