"""The pool: what was admitted and is not signed yet.

A *submission* is what one request brings: one entry or many. It is sealed as a whole, so all of it is in one commit, or
none. An entry equal to one that is under way joins it: both submissions place the same *waiting* entry, and only the
first of them brings it. Whoever joins enters the pool after the one that it joined, so when a submission is sealed, the
index of everything that it places is known.

                 admit                    enter                   seal                    settle
    submission ────────▶ (looked up in ────────▶ in the queue ────────▶ in a commit ────────▶ answered
                          the leaf index)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tlog.server.idempotency import KeyRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.idempotency import RequestKey
    from tlog.server.limit import Limits
    from tlog.server.storage import SignedHead

PLACES = 4
"""Entries that those who wait may have sent for each that the pool holds: joining costs memory, too."""


class Answer(Protocol):
    """What is told of the outcome of a submission, once; a future is one."""

    def done(self) -> bool:
        """Return whether it wants to be told no more."""

    def set_result(self, head: SignedHead, /) -> None:
        """Take the head that contains all of it."""

    def set_exception(self, error: Exception, /) -> None:
        """Take why it was given up."""


@dataclass(slots=True, eq=False)
class Waiting:
    """An entry that is placed by one submission or by several.

    Attributes:
        entry: The entry.
        leaf_hash: Its leaf hash, 32 bytes.
        owner: The submission that brings it.
        index: Its index; known once it is sealed, or found in the log; before that -1.
        is_old: Whether the log had it before.
    """

    entry: bytes
    leaf_hash: bytes
    owner: Submission
    index: int = -1
    is_old: bool = False


@dataclass(slots=True, eq=False)
class Submission:
    """What one request brings; all of it is in one commit.

    Attributes:
        request: Its idempotency key, where it has one.
        since: When it was admitted, in seconds of the monotonic clock.
        count: How many entries it has.
        places: Each of its entries in order, and whether it is the one that brings it.
        brought: The entries that it appends.
        size: Their bytes.
        answers: Those who wait for the head that contains all of it; never shared, because a waiter may be cancelled.
        resolved: Set when its entries were looked up; None where that took no waiting.
        head: The head that contains all of it, once it is signed.
        failure: Why it was given up.
    """

    request: RequestKey | None
    since: float
    count: int = 0
    places: list[tuple[Waiting, bool]] = field(default_factory=list)
    brought: list[Waiting] = field(default_factory=list)
    size: int = 0
    answers: list[Answer] = field(default_factory=list)
    resolved: asyncio.Event | None = None
    head: SignedHead | None = None
    failure: Exception | None = None

    def answer(self) -> asyncio.Future[SignedHead]:
        """Return a future of one's own for the head that contains all of it."""
        future: asyncio.Future[SignedHead] = asyncio.get_running_loop().create_future()
        if self.head is not None:
            future.set_result(self.head)
        elif self.failure is not None:
            future.set_exception(self.failure)
        else:
            self.answers.append(future)
        return future

    async def looked_up(self) -> None:
        """Return when it is known which of its entries are new; raise what kept that from being known."""
        if self.resolved is not None:
            await self.resolved.wait()
        if self.failure is not None:
            raise self.failure

    def owners(self) -> set[Submission]:
        """Return the other submissions whose entries it places."""
        return {one.owner for one, _ in self.places if one.owner is not self}

    def take_places(self) -> list[tuple[Waiting, bool]]:
        """Return its places, once they are all known, and forget them where nobody asks again.

        Entry and submission refer to each other; without this only the garbage collector would end them.
        """
        places = self.places
        if self.request is None:
            self.places = []
        return places

    def record(self) -> KeyRecord | None:
        """Return what is kept under its idempotency key, once every index is known."""
        if self.request is None:
            return None
        return KeyRecord(self.request, tuple(one.index for one, _ in self.places))


class Pool:
    """Submissions in their order, bounded in entries and bytes. Owned by the event loop.

    Attributes:
        entries: Entries that were admitted and are not in a commit yet.
        bytes: Their bytes.
        committing: Entries that are in a commit and not signed yet.
        places: Entries that those who wait have sent, whether they bring them or not.
        joinable: Entries that are under way, by their leaf hash.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin empty."""
        self.entries = 0
        self.bytes = 0
        self.committing = 0
        self.places = 0
        self._limits = limits
        self.joinable: dict[bytes, Waiting] = {}
        self._open: dict[Submission, None] = {}  # in the order of admission
        self._queue: list[Submission] = []

    def is_full(self) -> bool:
        """Return whether no more may be admitted."""
        if self.entries >= self._limits.pool_entries or self.places >= PLACES * self._limits.pool_entries:
            return True
        return self.bytes >= self._limits.pool_bytes

    def has_entered(self) -> bool:
        """Return whether there is something to seal."""
        return bool(self._queue)

    def oldest(self) -> float | None:
        """Return when the oldest submission was admitted that is not answered; None where there is none."""
        return next((submission.since for submission in self._open), None)

    def open(self, request: RequestKey | None, since: float, count: int) -> Submission:
        """Admit a submission that will place so many entries."""
        submission = Submission(request, since, count)
        self._open[submission] = None
        self.places += count
        return submission

    def bring(self, submission: Submission, entry: bytes, leaf_hash: bytes, *, joinable: bool) -> Waiting:
        """Add an entry to a submission; equal ones may join it from now on."""
        waiting = Waiting(entry, leaf_hash, submission)
        submission.brought.append(waiting)
        submission.places.append((waiting, True))
        if joinable:
            self.joinable[leaf_hash] = waiting
        size = len(entry)
        submission.size += size
        self.entries += 1
        self.bytes += size
        return waiting

    def found(self, submission: Submission, entries: Sequence[Waiting], indexes: Sequence[int | None]) -> int:
        """Take out again what the log has already; return how many entries that was.

        Args:
            submission: A submission that has not entered.
            entries: Entries that it brings.
            indexes: Where the log has each; None where it has not.
        """
        old = [(waiting, index) for waiting, index in zip(entries, indexes, strict=True) if index is not None]
        for waiting, index in old:
            waiting.index, waiting.is_old = index, True
            self._forget(waiting)
        self._take_out(submission)
        submission.brought = [waiting for waiting in submission.brought if not waiting.is_old]
        submission.size = sum(len(waiting.entry) for waiting in submission.brought)
        self.entries += len(submission.brought)
        self.bytes += submission.size
        return len(old)

    def enter(self, submission: Submission) -> bool:
        """Queue a submission whose entries are all new; return whether it is the first."""
        self._queue.append(submission)
        return len(self._queue) == 1

    def seal(self) -> list[Submission]:
        """Take the oldest submissions out of the queue, up to the size of a commit; at least one."""
        size = taken = 0
        for submission in self._queue:
            size += submission.size
            if taken and size > self._limits.batch_bytes:
                break
            taken += 1
        sealed, self._queue = self._queue[:taken], self._queue[taken:]
        for submission in sealed:
            self._take_out(submission)
            self.committing += len(submission.brought)
        return sealed

    def settle(self, submission: Submission, head: SignedHead) -> None:
        """Answer those who wait for a submission."""
        submission.head = head
        self.committing -= len(submission.brought)
        self._close(submission)
        answers, submission.answers, submission.brought = submission.answers, [], []
        for answer in answers:
            if not answer.done():
                answer.set_result(head)

    def give_up(self, submission: Submission, failure: Exception) -> None:
        """Tell those who wait for a submission that did not enter that it will not be signed."""
        self._take_out(submission)
        self._fail(submission, failure)

    def drop(self, failure: Exception) -> list[Submission]:
        """Empty the queue, and tell those who wait that nothing of it will be signed; return what was in it."""
        dropped, self._queue = self._queue, []
        for submission in dropped:
            self.give_up(submission, failure)
        return dropped

    def abandon(self, failure: Exception) -> None:
        """Tell everybody who still waits; what was sealed may be durable all the same."""
        for submission in list(self._open):
            self._fail(submission, failure)

    def _fail(self, submission: Submission, failure: Exception) -> None:
        submission.failure = failure
        self._close(submission)
        for answer in submission.answers:
            if not answer.done():
                answer.set_exception(failure)

    def _close(self, submission: Submission) -> None:
        if submission in self._open:
            del self._open[submission]
            self.places -= submission.count
        joinable = self.joinable
        for waiting in submission.brought:
            if joinable.get(waiting.leaf_hash) is waiting:
                del joinable[waiting.leaf_hash]

    def _forget(self, waiting: Waiting) -> None:
        if self.joinable.get(waiting.leaf_hash) is waiting:
            del self.joinable[waiting.leaf_hash]

    def _take_out(self, submission: Submission) -> None:
        """Count what it brings as no longer waiting."""
        self.entries -= len(submission.brought)
        self.bytes -= submission.size
