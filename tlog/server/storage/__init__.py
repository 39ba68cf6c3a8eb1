"""What the log keeps, and what it expects of those who keep it.

Both protocols are blocking and belong to one thread: steps 4 to 7 of a commit are one function on that thread, so no
cancellation can land between them. Whatever an implementation raises out of a write means "unknown outcome".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = Struct(">qqq")  # first, count, time_ms


@dataclass(frozen=True, slots=True)
class Segment:
    """The entries of one commit.

    Attributes:
        first: Index of its first entry.
        count: Number of entries, ≥ 1.
        entries: The entries, each behind its length in 16 bits (the framing of an entry bundle).
        root: Root of the tree of size first + count, 32 bytes.
        leaf_digest: SHA-256 over the leaf hashes as they were computed when the entries came in, 32 bytes.
        time_ms: The one clock reading of the commit, milliseconds since 1970, never before that of the segment before.
        keys: Records of the idempotency keys of its requests, see `tlog.server.idempotency`.
        digest: SHA-256 over all of the above, 32 bytes; empty before it is `sealed`. Nothing signed covers it: it finds
            what changes by accident or in passing, and not who computes it anew.
    """

    first: int
    count: int
    entries: bytes
    root: bytes
    leaf_digest: bytes
    time_ms: int
    keys: bytes = b""
    digest: bytes = b""

    @property
    def end(self) -> int:
        """The index behind its last entry, and the size of the tree with it."""
        return self.first + self.count

    @property
    def is_whole(self) -> bool:
        """Whether its digest is the one of what it says; of the entries themselves, `leaf_digest` has to tell."""
        return self.digest == self._digest()

    def sealed(self) -> Segment:
        """Return the same with its digest."""
        return replace(self, digest=self._digest())

    def _digest(self) -> bytes:
        """Return SHA-256 over a domain, first ‖ count ‖ time_ms in 64 bits each, root, leaf digest and keys."""
        numbers = _NUMBERS.pack(self.first, self.count, self.time_ms)
        return sha256(b"treehead/segment/v1\n" + numbers + self.root + self.leaf_digest + self.keys).digest()


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head in the checkpoint store.

    Attributes:
        origin: The log's name.
        epoch: Number of times that a server took the log over; each change of the head must name the newest.
        size: Number of leaves.
        root: Root hash, 32 bytes.
        note: The signed checkpoint.
    """

    origin: str
    epoch: int
    size: int
    root: bytes
    note: bytes


class Storage(Protocol):
    """The entries: the truth. Insert-only; what was appended is never changed or removed."""

    def append(self, segment: Segment) -> None:
        """Make a segment durable, atomically, and only if it begins exactly where the log ends.

        On return it survives a power failure. An overlap or a gap stores nothing.

        Raises:
            CommitError: Nothing was stored: the log does not end at `segment.first`.
        """

    def size(self) -> int:
        """Return the number of entries."""

    def segment_at(self, index: int) -> Segment | None:
        """Return the segment that holds an entry, as the store has it now; None beyond the end."""

    def entries(self, start: int, end: int, max_bytes: int = 1 << 62) -> list[bytes]:
        """Return entries [start, end), as the store has them now, or fewer: it stops after a segment past `max_bytes`.

        Raises:
            FormatError: A stored segment breaks its framing.
            StartRefusedError: Entries are missing.
        """

    def segments_from(self, start: int, end: int, max_count: int, max_bytes: int) -> list[Segment]:
        """Return the segments that hold entries [start, end), the first one from `start` on, or fewer, at least one.

        It stops after `max_count` segments, or after the one with which their entries are `max_bytes` long.

        Raises:
            StartRefusedError: Entries are missing.
        """

    def keys(self, since_ms: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield time and key records of the segments from a time on that have some, up to entry `end`, oldest first.

        Raises:
            FormatError: A segment is not as it was sealed.
        """


class CheckpointStore(Protocol):
    """The newest signed head of an origin. Tiny, apart from the data, and never part of a backup of it."""

    def acquire(self, origin: str) -> SignedHead | None:
        """Take the log over: raise the epoch by one, durably, and return the head; None for an unknown origin."""

    def latest(self, origin: str) -> SignedHead | None:
        """Return the head without taking the log over; None for an unknown origin."""

    def swap(self, old: SignedHead, new: SignedHead) -> None:
        """Replace the head, durably, and only if origin, epoch, size and root are still those of `old`.

        Raises:
            CommitError: They are not, and nothing was changed.
        """
