"""Adding in the hot lane: an entry is admitted at once, and answered when its submission is settled.

A submission that is settled is answered in the next turn of the event loop, with all others that are: the sequencer
goes on meanwhile, and the proofs to one head are made and verified together.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from tlog.errors import TreeheadError
from tlog.server.api.answer import Added, LeafHash, Note, encode
from tlog.server.api.entries import consistency_from, post_entry
from tlog.server.api.form import form
from tlog.server.api.media import negotiate
from tlog.server.api.problems import answer_error
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.api.bodies import Bodies
    from tlog.server.api.form import Stamp
    from tlog.server.api.head import Fields
    from tlog.server.api.operation import Operation
    from tlog.server.api.traffic import Traffic
    from tlog.server.log import ServedLog
    from tlog.server.pool import Submission
    from tlog.server.storage import SignedHead


class Link(Protocol):
    """A connection, as the hot lane sees it."""

    def reply(self, data: bytes) -> None:
        """Send the whole answer to the request that was just taken."""

    def await_reply(self) -> None:
        """Take no other request before this one is answered."""

    def reply_late(self, data: bytes) -> None:
        """Send the whole answer that was awaited; nothing where the client has gone."""


class Pending:
    """An entry that was admitted: what waits for the outcome of its submission."""

    __slots__ = ("_adding", "accept", "began", "error", "have", "head", "link", "media_type", "size", "submission")

    def __init__(self, adding: Adding, link: Link, fields: Fields, media_type: str, size: int) -> None:
        """Wait for the outcome of an entry of so many bytes."""
        self._adding = adding
        self.size = size
        self.link = link
        self.accept = fields.accept
        self.have = fields.have
        self.media_type = media_type
        self.began = perf_counter()
        self.submission: Submission | None = None
        self.head: SignedHead | None = None
        self.error: Exception | None = None

    def done(self) -> bool:
        """Return False: whoever sent it may be gone, and it is counted all the same."""
        return False

    def set_result(self, head: SignedHead, /) -> None:
        """Take the head that contains it."""
        self.head = head
        self._adding.settled(self)

    def set_exception(self, error: Exception, /) -> None:
        """Take why it is not signed."""
        self.error = error
        self._adding.settled(self)

    def place(self) -> tuple[int, bytes, bool]:
        """Return its index, its leaf hash, and whether this submission appended it; once."""
        assert self.submission is not None  # noqa: S101 — set when it was admitted
        waiting, is_mine = self.submission.take_places()[0]
        return waiting.index, waiting.leaf_hash, is_mine and not waiting.is_old


class Adding:
    """One route of one log that adds an entry. Owned by the event loop."""

    limit = MAX_ENTRY_SIZE

    def __init__(
        self, operation: Operation, prefix: str, log: ServedLog, traffic: Traffic, bodies: Bodies, stamp: Stamp
    ) -> None:
        """Add to a log whose routes begin with a prefix."""
        self._offers = operation.offers
        self._route = prefix + operation.path
        self._log = log
        self._traffic = traffic
        self._bodies = bodies
        self._stamp = stamp
        self._has_proof = operation is post_entry
        self._forms = {
            (media_type, status): form(operation, media_type, status)
            for media_type in operation.offers
            for status in (200, 201)
        }
        self._settled: list[Pending] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, link: Link, fields: Fields, entry: bytes) -> bool:
        """Admit an entry, and return whether it was; what refuses it refuses it in the other lane, too."""
        size = len(entry)
        try:
            media_type = negotiate(fields.accept, self._offers) if self._has_proof else self._offers[0]
            pending = Pending(self, link, fields, media_type, size)
            self._bodies.check(size)
            pending.submission = self._log.submit(entry, pending)
        except TreeheadError:
            return False
        self._bodies.held += size
        link.await_reply()
        return True

    def settled(self, pending: Pending) -> None:
        """Answer in the next turn of the event loop."""
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._settled.append(pending)

    def _answer_all(self) -> None:
        """Answer what was settled since the last turn."""
        settled, self._settled = self._settled, []
        placed = [pending for pending in settled if pending.error is None]
        for pending in settled:
            if pending.error is not None:
                self._fail(pending, pending.error)
        if placed and not self._has_proof:
            self._reply_all(placed)
            return
        by_head: dict[int, list[Pending]] = {}
        for pending in placed:
            assert pending.head is not None  # noqa: S101 — it was settled without an error
            by_head.setdefault(pending.head.size, []).append(pending)
        for group in by_head.values():
            self._prove_all(group)

    def _reply_all(self, placed: Sequence[Pending]) -> None:
        """Answer with the index alone."""
        now, stamp, start = perf_counter(), self._stamp(), self._forms[self._offers[0], 200]
        self._traffic.add(self._route, "POST", 200, *[now - pending.began for pending in placed])
        for pending in placed:
            self._bodies.held -= pending.size
            assert pending.submission is not None  # noqa: S101 — set when it was admitted
            index = b"%d" % pending.submission.take_places()[0][0].index
            pending.link.reply_late(b"%b%d%b%b" % (start, len(index), stamp, index))

    def _prove_all(self, group: Sequence[Pending]) -> None:
        """Answer with proofs to one head; where memory lacks a hash, or something is wrong, each by itself."""
        head = group[0].head
        assert head is not None  # noqa: S101 — as above
        places = [pending.place() for pending in group]
        leaves = {index: leaf for index, leaf, _ in places}
        try:
            proofs = self._log.prove_each_now(leaves, head)
        except TreeheadError:
            proofs = None
        by_index = dict(zip(leaves, proofs or [], strict=False))
        for pending, (index, leaf, is_new) in zip(group, places, strict=True):
            proof = by_index.get(index)
            if proof is None or pending.have:
                task = asyncio.get_running_loop().create_task(self._prove(pending, (index, leaf, is_new), head))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._reply_added(
                    pending,
                    Added(index=index, leaf_hash=LeafHash(leaf), proof=proof, checkpoint=Note(head.note)),
                    is_new=is_new,
                )

    async def _prove(self, pending: Pending, place: tuple[int, bytes, bool], head: SignedHead) -> None:
        """Answer with proofs that something has to be read for."""
        index, leaf, is_new = place
        try:
            _, proof = await self._log.prove_inclusion(index, head.size, leaf, head)
            added = Added(
                index=index,
                leaf_hash=LeafHash(leaf),
                proof=proof,
                checkpoint=Note(head.note),
                consistency=await consistency_from(self._log, pending.have, head),
            )
        except Exception as error:  # noqa: BLE001 — whatever it is, the client gets a problem, and the log the details
            self._fail(pending, error)
        else:
            self._reply_added(pending, added, is_new=is_new)

    def _reply_added(self, pending: Pending, added: Added, *, is_new: bool) -> None:
        self._reply(pending, 201 if is_new else 200, encode(added, pending.media_type))

    def _reply(self, pending: Pending, status: int, body: bytes) -> None:
        self._traffic.add(self._route, "POST", status, perf_counter() - pending.began)
        start = self._forms[pending.media_type, status]
        self._bodies.held -= pending.size
        pending.link.reply_late(b"%b%d%b%b" % (start, len(body), self._stamp(), body))

    def _fail(self, pending: Pending, error: Exception) -> None:
        response = answer_error(error, "POST", pending.accept)
        self._bodies.held -= pending.size
        self._traffic.count(self._route, "POST", response, perf_counter() - pending.began)
        pending.link.reply_late(self._stamp.problem(response))
