"""What can still be read of a log.db that is damaged: piece by piece, and the hash of every block of 256 entries.

A *piece* is a segment, or a gap: entries that are missing, or that SQLite cannot read. Pieces follow each other from
entry 0 to a size, whatever the file holds. Nothing in a piece is believed: its entries count when the hash of their
block is the one in the signed tree. That hash stands in a tile of level 1, so a block that is damaged is found by
reading 1 of 256 hashes, and only its own tile and bundle have to be fetched.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from tlog.damage import fold_known
from tlog.errors import FormatError
from tlog.merkle import leaf_hash
from tlog.reader import read_hashes
from tlog.server.storage import Segment
from tlog.server.verify.entries import check_header, check_segment
from tlog.server.verify.finding import Findings
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, parse_bundle, width_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tlog.checkpoint import Checkpoint
    from tlog.reader import Reading, TileCache

_NAMES = tuple(Segment.__dataclass_fields__)
_KINDS = (int, int, bytes, bytes, bytes, int, bytes, bytes)  # of the fields of Segment: a damaged page may hold others
_NEXT = "SELECT first FROM segment WHERE first >= ? AND first < ? ORDER BY first LIMIT 1"
_ROW = f"SELECT {', '.join(_NAMES)} FROM segment WHERE first = ?"  # noqa: S608 — constants

_BATCH = 1 << 12  # blocks whose hashes are read at once: 16 tiles


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of entries of log.db.

    Attributes:
        first: Index of the first.
        end: Index behind the last.
        segment: The segment that says so; None for a gap.
        entries: What it holds; None where that is missing, or cannot be told apart.
    """

    first: int
    end: int
    segment: Segment | None = None
    entries: list[bytes] | None = None


def read_pieces(connection: sqlite3.Connection | None, size: int) -> Iterator[Piece]:
    """Yield the pieces of a log.db from entry 0 to a size; None is a log.db that is lost, one large gap.

    A segment as it was sealed has all that it says; another one ends where the next begins. A gap is cut where bundles
    end.
    """
    at = 0
    if connection is not None:
        for (first, segment), (following, _) in pairwise(chain(_rows(connection, size), [(size, None)])):
            if first < at:
                continue
            yield from _gap(at, first)
            until = size if segment and segment.is_whole else following
            piece = _piece(segment, until) if segment else Piece(first, first)
            if piece.end > first:
                yield piece
            at = piece.end
    yield from _gap(at, size)


def _gap(start: int, end: int) -> Iterator[Piece]:
    while start < end:
        until = min(end, (start // TILE_WIDTH + 1) * TILE_WIDTH)
        yield Piece(start, until)
        start = until


def _piece(segment: Segment, following: int) -> Piece:
    """Return a segment with its entries, if they are as many as it says, or as fit before the next one."""
    first, end = segment.first, min(segment.end, following)
    for count in (segment.count, end - first):
        try:
            return Piece(first, end, segment, parse_bundle(segment.entries, count)[: end - first])
        except FormatError:
            pass
    return Piece(first, end, segment)


def _rows(connection: sqlite3.Connection, size: int) -> Iterator[tuple[int, Segment | None]]:
    """Yield what segments begin below a size, each read alone; None for one that cannot be read.

    What SQLite cannot find its way through is skipped, up to the end of the block.
    """
    start = 0
    while start < size:
        try:
            row = connection.execute(_NEXT, (start, size)).fetchone()
        except sqlite3.DatabaseError:
            start = (start // TILE_WIDTH + 1) * TILE_WIDTH
            continue
        if row is None or row[0] < start:
            return
        yield row[0], read_segment(connection, row[0])
        start = row[0] + 1


def read_segment(connection: sqlite3.Connection, first: int) -> Segment | None:
    """Return the segment that begins at an index; None where it cannot be read, or is none."""
    try:
        row = connection.execute(_ROW, (first,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    if row is None or tuple(map(type, row)) != _KINDS or row[_NAMES.index("count")] < 1:
        return None
    return Segment(*row)


def read_behind(connection: sqlite3.Connection, size: int) -> Iterator[tuple[int, Segment | None]]:
    """Yield what segments begin at a size or above it, each read alone; None for one that cannot be read.

    Raises:
        sqlite3.DatabaseError: SQLite finds its way no further.
    """
    for (first,) in connection.execute("SELECT first FROM segment WHERE first >= ? ORDER BY first", (size,)):
        yield first, read_segment(connection, first)


def are_commits(found: Sequence[tuple[int, Segment | None]], size: int) -> bool:
    """Return whether what was found behind a size is more than one commit, so that the first of them was signed.

    Commits are serial: whatever stands behind one that begins at the size came after it was signed. What stands alone
    further on and is whole was put there, too; where it is damaged, its place may be the damage.
    """
    if not found or found[-1][0] == size:
        return False
    newest = found[-1][1]
    return found[0][0] == size or (newest is not None and is_whole(newest))


def is_whole(segment: Segment) -> bool:
    """Return whether a segment is as it came in: entries, digests and key records."""
    findings = Findings()
    check_header(segment, findings)
    check_segment(segment, findings)
    return not findings.total


class Blocks:
    """The hashes of what a log.db holds up to a size, block by block.

    Attributes:
        size: The size.
        roots: The hash of each full block of 256 entries; None where an entry of it is missing.
        rest: The leaf hashes of the entries behind them; None for one that is missing.
    """

    def __init__(self, pieces: Iterable[Piece], size: int, progress: Callable[[int, int], None]) -> None:
        """Hash all entries."""
        self.size = size
        self.roots: list[bytes | None] = []
        self.rest: list[bytes | None] = []
        for piece in pieces:
            entries: Sequence[bytes | None] = piece.entries or [None] * (piece.end - piece.first)
            self.rest += [None if entry is None else leaf_hash(entry) for entry in entries]
            while len(self.rest) >= TILE_WIDTH:
                self.roots.append(fold_known(self.rest[:TILE_WIDTH]))
                del self.rest[:TILE_WIDTH]
            progress(piece.end, size)
        self._levels = [self.roots]  # of the tiles from level 1 on

    def row(self, level: int, index: int) -> list[bytes] | None:
        """Return the hashes of a tile of level 1 or above, as wide as it is; None where one is missing."""
        while len(self._levels) < level:
            below = self._levels[-1]
            starts = range(0, len(below) // TILE_WIDTH * TILE_WIDTH, TILE_WIDTH)
            self._levels.append([fold_known(below[at : at + TILE_WIDTH]) for at in starts])
        row = self._levels[level - 1][index * TILE_WIDTH : (index + 1) * TILE_WIDTH]
        known = [value for value in row if value is not None]
        return known if len(known) == len(row) else None

    def root(self) -> bytes | None:
        """Return the root of the tree; None where an entry is missing."""
        rest = [fold_known(self.rest)] if self.rest else []
        return fold_known([*self.roots, *rest])

    def read_damaged(self, head: Checkpoint, cache: TileCache) -> Reading[list[int]]:
        """Return the blocks that are not those of a head of the same size, the one behind the full ones included.

        Raises:
            FormatError: A tile has another length than asked for.
            VerificationError: A tile does not lead to the root of the head.
        """
        damaged = []
        for start in range(0, len(self.roots), _BATCH):
            found = self.roots[start : start + _BATCH]
            nodes = [(TILE_HEIGHT, number) for number in range(start, start + len(found))]
            wanted = yield from read_hashes(head, nodes, cache)
            damaged += [start + at for at, (has, must) in enumerate(zip(found, wanted, strict=True)) if has != must]
        first = len(self.roots) * TILE_WIDTH
        wanted = yield from read_hashes(head, [(0, index) for index in range(first, self.size)], cache)
        return damaged + ([len(self.roots)] if wanted != self.rest else [])


def block_bounds(number: int, size: int) -> tuple[int, int]:
    """Return the entries [start, end) of a block in a tree of that size."""
    start = number * TILE_WIDTH
    return start, start + width_at(0, number, size)
