"""The commit: the durable steps of the write path, one function on the thread that owns both stores.

    3  compute the root from the right edge, level by level for the whole batch
    4  append the segment: durable from here on, signed by nobody
    5  read it back and compute the root a second way; verify consistency with the signed head as a client would
    6  sign; open the note as a client would
    7  swap the head in the checkpoint store: signed from here on

Numbers as in `tlog/DESIGN.md`. Any failure ends all committing: the state in memory is then unknown and never used
again. Start-up calls `finish`, steps 5 to 7, for a segment that was stored and not signed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from time import perf_counter
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge, Growth, extend
from tlog.errors import TreeheadError
from tlog.merkle import consistency_nodes, consistency_proof, verify_consistency
from tlog.policy import Policy
from tlog.server.errors import CommitError
from tlog.server.metrics import Steps
from tlog.server.recount import Recount
from tlog.server.storage import Segment, SignedHead
from tlog.tile import format_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlog.server.signer import HeadSigner
    from tlog.server.storage import CheckpointStore, Storage


@dataclass(frozen=True, slots=True)
class Committed:
    """One commit that is durable and signed.

    Attributes:
        head: The new head.
        growth: What it added to the tree.
        seconds: What it took.
        time_ms: The time of its segment: that of the clock, or of the segment before where that is later.
    """

    head: SignedHead
    growth: Growth
    seconds: Steps
    time_ms: int


class Commit:
    """The end of the log, and the only code that extends and signs it. Owned by the database thread."""

    def __init__(
        self,
        storage: Storage,
        checkpoints: CheckpointStore,
        signer: HeadSigner,
        head: SignedHead,
        edge: Edge,
        last_ms: int,
    ) -> None:
        """Begin at the signed head, whose root the edge must have.

        Raises:
            CommitError: It has another.
        """
        self._storage = storage
        self._checkpoints = checkpoints
        self._signer = signer
        self._policy = Policy((signer.verifier,))
        self._head = head
        self._edge = edge
        heights = (level for level, _ in edge.nodes())
        self._recount = Recount(edge.size, tuple(zip(heights, edge.peaks, strict=True)))
        self._last_ms = last_ms
        self._broken = (edge.size, edge.root()) != (head.size, head.root) or self._recount.root() != head.root
        if self._broken:
            raise CommitError("the tree in memory is not the one of the signed head")

    @property
    def last_ms(self) -> int:
        """The time of the newest segment, milliseconds since 1970; read between two commits."""
        return self._last_ms

    def run(self, entries: Sequence[bytes], leaf_hashes: Sequence[bytes], time_ms: int, keys: bytes = b"") -> Committed:
        """Append a batch and sign the new head: steps 3 to 7.

        Args:
            entries: At least one entry.
            leaf_hashes: Their leaf hashes, computed when they came in.
            time_ms: Milliseconds since 1970; taken as the time of the segment before where that is later.
            keys: Records of the idempotency keys of its requests.

        Raises:
            CommitError: A step failed, or one failed before; nothing more can be committed.
        """
        with self._attempt():
            started = perf_counter()
            growth = extend(self._edge, leaf_hashes)
            self._last_ms = max(time_ms, self._last_ms)
            segment = Segment(
                first=growth.old.size,
                count=len(entries),
                entries=format_bundle(entries),
                root=growth.new.root(),
                leaf_digest=sha256(b"".join(leaf_hashes)).digest(),
                time_ms=self._last_ms,
                keys=keys,
            ).sealed()
            self._storage.append(segment)
            return self._sign(growth, segment.digest, started)

    def finish(self, leaf_hashes: Sequence[bytes]) -> Committed:
        """Sign the head of a segment that is already stored: steps 5 to 7.

        Raises:
            CommitError: A step failed; nothing more can be committed.
        """
        with self._attempt():
            started = perf_counter()
            return self._sign(extend(self._edge, leaf_hashes), None, started)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Count a commit as failed until it has ended well, and refuse every one after a failed one."""
        if self._broken:
            raise CommitError("an earlier commit failed; only a restart can tell what is durable")
        self._broken = True
        yield
        self._broken = False

    def _sign(self, growth: Growth, digest: bytes | None, started: float) -> Committed:
        """Take steps 5 to 7 for the segment behind the signed head; its digest is known where it is new."""
        stored = perf_counter()
        try:
            recount = self._recounted(growth, digest)
            proof = _consistency(growth)
            verify_consistency(self._head.size, growth.new.size, proof, self._head.root, growth.new.root())
            counted = perf_counter()
            head = self._signed(growth.new, proof)
            signed = perf_counter()
        except TreeheadError as error:
            raise CommitError(f"not signed: {error}") from error
        # the entries are durable here, the head is not
        self._checkpoints.swap(self._head, head)
        self._head, self._edge, self._recount = head, growth.new, recount
        steps = Steps(stored - started, counted - stored, signed - counted, perf_counter() - signed)
        return Committed(head, growth, steps, self._last_ms)

    def _recounted(self, growth: Growth, digest: bytes | None) -> Recount:
        """Read the segment back and count it the second way (step 5)."""
        segment = self._storage.segment_at(growth.old.size)
        if segment is None or (segment.first, segment.end) != (growth.old.size, growth.new.size):
            raise CommitError("the segment that was stored cannot be read back")
        recount, leaf_digest = self._recount.add(segment.entries)
        is_expected = segment.digest == digest if digest is not None else True
        if not (is_expected and segment.is_whole and leaf_digest == segment.leaf_digest):
            raise CommitError(
                f"entries {segment.first} to {segment.end - 1} are stored differently than they came in; "
                "an unsigned segment can be removed with: tlogd repair --discard-unsigned"
            )
        found = (recount.size, recount.root())
        if found != (growth.new.size, growth.new.root()) or found != (segment.end, segment.root):
            raise CommitError(
                f"two ways to the root of size {segment.end} give different roots; "
                "an unsigned segment can be removed with: tlogd repair --discard-unsigned"
            )
        return recount

    def _signed(self, edge: Edge, proof: Sequence[bytes]) -> SignedHead:
        """Sign the head of a tree and open the note as a client would (step 6)."""
        old = Checkpoint(self._head.origin, self._head.size, self._head.root)
        checkpoint = Checkpoint(self._head.origin, edge.size, edge.root())
        note = self._signer.sign(old, checkpoint, proof)
        if self._policy.open_checkpoint(note) != checkpoint:
            raise CommitError("the signed note says something else than was signed")
        return SignedHead(self._head.origin, self._head.epoch, edge.size, edge.root(), note)


def _consistency(growth: Growth) -> list[bytes]:
    """Return the consistency proof of a growth."""
    old, new = growth.old.size, growth.new.size
    return consistency_proof(old, new, [growth.hash_of(node) for node in consistency_nodes(old, new)])
