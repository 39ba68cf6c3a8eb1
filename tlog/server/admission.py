"""Admission, step 1 of the write path: what is new enters the pool, what is not is answered with what there is.

    under the same idempotency key    answered as the request that came first
    equal to an entry under way       joins it, and shares its outcome
    equal to an entry of the log      gets its first index

Entries are placed without a wait between the first look and the last entry, so equal entries of two requests always
meet. What memory cannot decide is looked up before the submission enters the pool; meanwhile equal entries join it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.merkle import leaf_hash
from tlog.server.errors import CommitError, KeyReusedError, StoppedError
from tlog.server.pool import Pool, Submission, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tlog.server.duplicates import Duplicates
    from tlog.server.idempotency import KeyRecord, Keys, RequestKey
    from tlog.server.metrics import Meter
    from tlog.server.pool import Answer
    from tlog.server.storage import SignedHead

LOOK_UPS = 2
"""Submissions whose entries are looked up at a time: each may read thousands of tiles."""


class Admission:
    """The way into the pool. Owned by the event loop.

    Attributes:
        failure: A defect met while looking something up; nothing can be said of its submission, so the log must stop.
    """

    def __init__(  # noqa: PLR0913 — what it stands between
        self,
        pool: Pool,
        found: Duplicates,
        keys: Keys,
        meter: Meter,
        *,
        head: Callable[[], SignedHead],
        now_ms: Callable[[], int],
        wake: Callable[[], None],
        dedup: bool,
    ) -> None:
        """Stand before a pool.

        Args:
            pool: The pool.
            found: Finds what the log has already.
            keys: The idempotency keys of the last 24 hours.
            meter: Counts duplicates and repeated requests.
            head: Gives the signed head.
            now_ms: Milliseconds since 1970 at the start of the process, and steady since: keys age by it.
            wake: Is called when a submission has entered, or will not.
            dedup: Whether an entry that the log has is not appended again.
        """
        self.failure: BaseException | None = None
        self._pool = pool
        self._found = found
        self._keys = keys
        self._meter = meter
        self._head = head
        self._now_ms = now_ms
        self._wake = wake
        self._dedup = dedup
        self._keyed: dict[bytes, Submission] = {}  # under way, by the digest of their key
        self._looking = asyncio.Semaphore(LOOK_UPS)
        self._resolving: set[asyncio.Task[None]] = set()

    def is_busy(self) -> bool:
        """Return whether a submission is being looked up, and may enter later."""
        return bool(self._resolving)

    def knows(self, key: bytes) -> bool:
        """Return whether there is an answer under the digest of a key, or will be, that takes no admission."""
        return key in self._keyed or self._keys.has(key)

    async def repeat(self, request: RequestKey) -> KeyRecord | None:
        """Return what was done under a key, after it is done; None where nothing was.

        Raises:
            KeyReusedError: The key was used for another request.
            PushbackError: The key is new, and no more fit.
        """
        record = self._keys.find(request, self._now_ms())
        under_way = self._keyed.get(request.key)
        if record is not None or under_way is None:
            if record is None:
                self._keys.check_room(self._now_ms())
            else:
                self._meter.replays += 1
            return record
        if under_way.request != request:
            raise KeyReusedError("this Idempotency-Key is being used for another request")
        await under_way.answer()
        self._meter.replays += 1
        return under_way.record()

    def admit(self, entries: Sequence[bytes], request: RequestKey | None, answer: Answer) -> Submission:
        """Place entries; the answer gets the head that contains all of them."""
        submission = self._pool.open(request, monotonic(), len(entries))
        submission.answers.append(answer)
        if request is not None:
            self._keyed[request.key] = submission
        doubtful = [waiting for entry in entries if (waiting := self._place(submission, entry)) is not None]
        if doubtful or (len(submission.brought) < len(entries) and submission.owners()):
            submission.resolved = asyncio.Event()
            task = asyncio.create_task(self._resolve(submission, submission.resolved, doubtful))
            self._resolving.add(task)
            task.add_done_callback(self._resolved)
        else:
            self._enter(submission)
        return submission

    def drop(self, failure: Exception) -> None:
        """Give up what has entered and is not in a commit: nothing of it is signed, so its keys may come again."""
        for submission in self._pool.drop(failure):
            if submission.request is not None:
                del self._keyed[submission.request.key]

    def settle(self, submission: Submission, head: SignedHead) -> None:
        """Answer a submission whose entries are all in a signed head, and remember its key."""
        record = submission.record() if submission.request is not None else None
        if record is not None:
            self._keys.put(record, self._now_ms())
            del self._keyed[record.request.key]
        self._pool.settle(submission, head)

    def _place(self, submission: Submission, entry: bytes) -> Waiting | None:
        """Join an entry, find it in memory, or bring it; return it if the log may have it all the same."""
        leaf = leaf_hash(entry)
        if not self._dedup:
            self._pool.bring(submission, entry, leaf, joinable=False)
            return None
        waiting = self._pool.joinable.get(leaf)
        if waiting is not None:
            self._meter.duplicates += 1
            submission.places.append((waiting, False))
            return None
        index = self._found.in_memory(leaf)
        if index is not None:
            self._meter.duplicates += 1
            submission.places.append((Waiting(entry, leaf, submission, index, is_old=True), True))
            return None
        waiting = self._pool.bring(submission, entry, leaf, joinable=True)
        return waiting if self._found.may_be_stored(leaf) else None

    def _enter(self, submission: Submission) -> None:
        """Queue what is new; where nothing is, everything is in the signed head already."""
        if submission.brought:
            if self._pool.enter(submission):
                self._wake()
        else:
            self.settle(submission, self._head())

    async def _resolve(self, submission: Submission, resolved: asyncio.Event, doubtful: Sequence[Waiting]) -> None:
        """Look up what the log may have, wait for those that were joined, then enter."""
        try:
            await self._look_up(submission, doubtful)
            for owner in submission.owners():
                await owner.looked_up()
            for owner in submission.owners():
                await owner.looked_up()  # without a wait: none of them was given up while another was looked up
            if not submission.brought:
                under_way = {one.owner for one, _ in submission.places if not one.is_old}
                for owner in under_way:
                    await owner.answer()
            self._enter(submission)
        except TreeheadError as error:
            if submission.request is not None:
                del self._keyed[submission.request.key]
            self._pool.give_up(submission, error)
        except BaseException:
            submission.failure = StoppedError("the log stopped before it could sign this entry")
            raise  # a defect: `failure` stops the log
        finally:
            resolved.set()

    async def _look_up(self, submission: Submission, doubtful: Sequence[Waiting]) -> None:
        if doubtful:
            async with self._looking:
                indexes = await self._found.find([one.leaf_hash for one in doubtful])
            self._meter.duplicates += self._pool.found(submission, doubtful, indexes)

    def _resolved(self, task: asyncio.Task[None]) -> None:
        self._resolving.discard(task)
        failure = CommitError("a look-up was cancelled") if task.cancelled() else task.exception()
        self.failure = self.failure or failure
        self._wake()
