"""Checking log.db: every segment by itself, the row of them, and the tree of their entries against a signed head.

Of a segment: its framing, the digests of its entries and of the rest of it as they came in, its key records. Of the
row: no gap, no overlap, times that never go back, a genesis entry in front, nothing behind a freeze entry. Of the tree:
the root at the end of every segment, counted as `tlog.server.recount` does, and the signed root at the signed size.

An entry that was changed changes every root from there on, a root that was changed only its own; so roots that differ
are told as one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.freeze import is_freeze
from tlog.genesis import parse_genesis
from tlog.merkle import leaf_hash
from tlog.server.idempotency import parse_key_records
from tlog.server.recount import Recount
from tlog.server.verify.finding import CHECKPOINTS, LOG
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tlog.note import Verifier
    from tlog.server.storage import Segment, SignedHead
    from tlog.server.verify.finding import Findings


@dataclass(frozen=True, slots=True)
class Part:
    """The entries of one segment, as they are stored.

    Attributes:
        first: Index of the first.
        entries: The entries.
        leaves: Their leaf hashes.
    """

    first: int
    entries: list[bytes]
    leaves: list[bytes]


def check_segment(segment: Segment, findings: Findings) -> Part | None:
    """Check the entries of a segment against what it says of them; None where they cannot be told apart."""
    entries = split(segment, findings)
    if entries is None:
        return None
    leaves = [leaf_hash(entry) for entry in entries]
    check_leaves(segment, leaves, findings)
    return Part(segment.first, entries, leaves)


def split(segment: Segment, findings: Findings) -> list[bytes] | None:
    """Return the entries of a segment; None where they cannot be told apart."""
    findings.count("segments")
    try:
        entries = parse_bundle(segment.entries, segment.count)
    except FormatError as error:
        findings.damage(LOG, f"{_name(segment)}: their framing is broken: {error}")
        return None
    findings.count("entries", len(entries))
    return entries


def check_leaves(segment: Segment, leaves: Sequence[bytes], findings: Findings) -> None:
    """Check the leaf hashes of a segment's entries against their digest as they came in."""
    if sha256(b"".join(leaves)).digest() != segment.leaf_digest:
        findings.damage(LOG, f"{_name(segment)}: they are not the ones that came in: their digest differs")


def _name(segment: Segment) -> str:
    return f"entries {segment.first} to {segment.end - 1}"


def check_header(segment: Segment, findings: Findings) -> None:
    """Check what is kept of a segment besides its entries: its digest, and that its key records are of the log."""
    name = _name(segment)
    if not segment.is_whole:
        findings.damage(LOG, f"{name}: their root, time, keys or digest is not the one that came in")
    try:
        records = list(parse_key_records(segment.keys))
    except FormatError as error:
        findings.damage(LOG, f"{name}: {error}")
        return
    if not all(record.indexes and max(record.indexes) < segment.end for record in records):
        findings.damage(LOG, f"{name}: the record of an idempotency key names an entry that was not there yet")


class RowCheck:
    """Checks that segments follow each other up to the signed size, without their entries. Owned by one check.

    Attributes:
        end: Number of entries so far.
        is_whole: Whether there was no gap and no overlap so far.
    """

    def __init__(self, head: SignedHead | None, findings: Findings) -> None:
        """Check against a signed head; None where it is lost."""
        self.end = 0
        self.is_whole = True
        self._head = head
        self._findings = findings
        self._time_ms = 0
        self._is_boundary = False
        self._unsigned: list[int] = []  # ends of the segments that are not signed

    def add(self, segment: Segment) -> None:
        """Take the next segment; of its entries, nothing is looked at."""
        check_header(segment, self._findings)
        first, end, time_ms = segment.first, segment.end, segment.time_ms
        if first != self.end:
            what = "are missing" if first > self.end else "are there twice"
            low, high = sorted((first, self.end))
            self._findings.damage(LOG, f"entries {low} to {high - 1} {what}")
            self.is_whole = False
        if time_ms < self._time_ms:
            self._findings.damage(LOG, f"the time of entry {first} is before that of the entry before it")
        self.end = max(self.end, end)
        self._time_ms = max(time_ms, self._time_ms)
        if self._head is not None:
            self._is_boundary |= end == self._head.size
            self._unsigned += [end] if end > self._head.size else []

    def finish(self) -> None:
        """Compare with the signed size."""
        head, findings = self._head, self._findings
        if head is None:
            return
        missing = head.size - self.end
        if missing > 0:
            findings.damage(LOG, f"it holds {self.end} entries, and {head.size} are signed: {missing} are missing")
        elif not self._is_boundary:
            findings.damage(LOG, f"the signed size {head.size} is within a commit: it is of another log")
        if len(self._unsigned) > 1:
            findings.damage(
                CHECKPOINTS,
                f"log.db is ahead of the signed head {head.size} by more than one commit, so the head was taken back: "
                "bring the newest checkpoints.db",
            )
        elif self._unsigned and self._is_boundary:
            number = self._unsigned[0] - head.size
            findings.notes.append(f"{number} entries are stored and not signed yet; the next start signs them")


class EntryCheck:
    """Checks log.db from its first entry to its last. Owned by one check.

    Attributes:
        row: The row of segments.
        is_signed: Whether the entries up to the signed size have the signed root.
    """

    def __init__(self, head: SignedHead | None, verifier: Verifier, findings: Findings) -> None:
        """Check against a signed head; None where it is lost, and only the roots of log.db are left."""
        self.row = RowCheck(head, findings)
        self.is_signed = False
        self._head = head
        self._verifier = verifier
        self._findings = findings
        self._tree: Recount | None = Recount(0, ())  # None behind what cannot be counted
        self._wrong_roots: list[int] = []

    def run(self, segments: Iterable[Segment]) -> Iterator[Part]:
        """Check segments in the order of their first index, and yield what they hold where it can be told."""
        for segment in segments:
            self.row.add(segment)
            part = check_segment(segment, self._findings)
            if part is None or not self.row.is_whole:
                self._tree = None
            if self._tree is not None:
                self._tree, _ = self._tree.add(segment.entries)
                self._check_root(segment, self._tree.root())
            if part is not None:
                self._check_meaning(part)
                yield part
        self._tell_wrong_roots()
        self.row.finish()
        if self._head is not None and self._tree is not None and self.row.end >= self._head.size and not self.is_signed:
            size = self._head.size
            self._findings.damage(
                LOG, f"the first {size} entries do not have the signed root: they are not those signed"
            )

    def _check_root(self, segment: Segment, root: bytes) -> None:
        if root == segment.root:
            self._tell_wrong_roots()
        else:
            self._wrong_roots.append(segment.end)
        if self._head is not None and segment.end == self._head.size:
            self.is_signed = root == self._head.root

    def _tell_wrong_roots(self) -> None:
        """Tell a run of roots that differ."""
        if self._wrong_roots:
            first, last = self._wrong_roots[0], self._wrong_roots[-1]
            where = f"at size {first}" if first == last else f"at sizes {first} to {last}"
            self._findings.damage(LOG, f"the root stored {where} is not that of the entries")
        self._wrong_roots = []

    def _check_meaning(self, part: Part) -> None:
        """Check the entries that mean something to the log."""
        if part.first == 0:
            check_genesis(part.entries[0], self._verifier, self._findings)
        for index, entry in enumerate(part.entries, part.first):
            if is_freeze(entry, index, self._verifier):
                self._findings.notes.append(f"the log was ended by entry {index}")
                if index + 1 < self.row.end:
                    self._findings.damage(LOG, f"entry {index} ended the log, and there are entries behind it")


def check_genesis(entry: bytes, verifier: Verifier, findings: Findings) -> None:
    """Check that entry 0 says which log it is of."""
    try:
        genesis = parse_genesis(entry)
    except FormatError as error:
        findings.damage(LOG, f"entry 0: {error}")
        return
    if (genesis.origin, genesis.vkey) != (verifier.name, verifier.vkey):
        findings.damage(LOG, "entry 0 is the genesis entry of another log")
