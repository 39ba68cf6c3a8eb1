"""Checking a part of a log, tied to the signed head by its tiles: the newest entries, and a sample of the others.

The edge of the stored tiles and the entries above them must give the signed root. Then every tile that leads up to the
edge is signed, and so is every entry that has the hash in its tile.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import TYPE_CHECKING

from tlog.edge import extend
from tlog.server.storage.reading import read_segments
from tlog.server.storage.segments import HEADER, segment_of
from tlog.server.verify.entries import RowCheck, check_segment
from tlog.server.verify.finding import LOG, TILES, Findings
from tlog.server.verify.tiles import bundle_leaves
from tlog.tile import TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from tlog.server.storage import SignedHead
    from tlog.server.verify.leaves import StoredLeaves
    from tlog.server.verify.tiles import StoredTiles

NEWEST = 1 << 14
"""Newest entries that are always checked: the part most likely to be torn."""

SAMPLES = 64
"""Bundles of 256 entries that are checked of the rest."""

_KEPT = 64  # segments of a LeafReader
_LOOKED_UP = 16  # of the entries of a bundle, every so many is looked up in the leaf index


class LeafReader:
    """Leaf hashes of entries, read wherever they are; the newest segments read are kept. Owned by one check."""

    def __init__(self, connection: sqlite3.Connection, findings: Findings | None = None) -> None:
        """Read log.db on a connection.

        Args:
            connection: The connection.
            findings: What the segments are found to be; None where they are checked elsewhere.
        """
        self._connection = connection
        self._findings = findings or Findings()
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()  # by the first index of the segment

    def leaf(self, index: int) -> bytes | None:
        """Return the leaf hash of an entry; None where it is missing or cannot be told."""
        select = "SELECT max(first) FROM segment WHERE first <= ?"
        ((first,),) = self._connection.execute(select, (index,))
        if first is None:
            return None
        if first not in self._kept:
            segment = next(read_segments(self._connection, first))
            part = check_segment(segment, self._findings)
            self._kept[first] = part.leaves if part else []
        self._kept.move_to_end(first)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        leaves = self._kept[first]
        return leaves[index - first] if index - first < len(leaves) else None

    def between(self, start: int, end: int) -> list[bytes]:
        """Return the leaf hashes of entries [start, end), up to the first that is missing."""
        leaves: list[bytes] = []
        for index in range(start, end):
            leaf = self.leaf(index)
            if leaf is None:
                break
            leaves.append(leaf)
        return leaves


def edge_is_signed(reader: LeafReader, tiles: StoredTiles, head: SignedHead) -> bool:
    """Return whether the edge of the stored tiles and the entries above them give the signed root."""
    edge = tiles.edge()
    if edge is None:
        return False
    grown = extend(edge, reader.between(edge.size, head.size)).new
    return (grown.size, grown.root()) == (head.size, head.root)


class Sample:
    """One such check."""

    def __init__(
        self, connection: sqlite3.Connection, tiles: StoredTiles, leaves: StoredLeaves, findings: Findings
    ) -> None:
        """Check the entries of log.db on a connection."""
        self._connection = connection
        self._reader = LeafReader(connection, findings)
        self._tiles = tiles
        self._leaves = leaves
        self._findings = findings

    def run(self, head: SignedHead, progress: Callable[[int, int], None]) -> bool:
        """Check; return False, with nothing found, where the tiles do not lead to the head, or all is new anyhow."""
        position = self._tiles.position
        newest = max(0, head.size - NEWEST) // TILE_WIDTH
        if (
            newest < 2 * SAMPLES
            or position > head.size
            or not edge_is_signed(LeafReader(self._connection), self._tiles, head)
        ):
            return False
        self._check_row(head)
        picked = sorted(random.sample(range(newest), SAMPLES))
        numbers = [*picked, *range(newest, position // TILE_WIDTH)]
        for done, number in enumerate(numbers, 1):
            self._check_bundle(number)
            progress(done * TILE_WIDTH, len(numbers) * TILE_WIDTH)
        self._reader.between(position, head.size)
        return True

    def _check_row(self, head: SignedHead) -> None:
        """Check every segment, but not its entries; and the stored root at the signed size."""
        row = RowCheck(head, self._findings)
        for each in self._connection.execute(f"SELECT {HEADER} FROM segment ORDER BY first"):  # noqa: S608 — constants
            row.add(segment_of(each))
        row.finish()
        select = "SELECT root FROM segment WHERE first < ? ORDER BY first DESC LIMIT 1"
        if self._connection.execute(select, (head.size,)).fetchone() != (head.root,):
            self._findings.damage(LOG, f"the root stored at size {head.size} is not the signed one")

    def _check_bundle(self, number: int) -> None:
        """Check 256 entries, their tile, their bundle, and that the leaf index finds them."""
        findings, start = self._findings, number * TILE_WIDTH
        tile, bundle = Tile(0, number), Bundle(number)
        findings.count("tiles")
        findings.count("bundles")
        row = self._tiles.row(0, number)
        if row is None or not self._tiles.leads_up(0, number):
            findings.damage(TILES, f"{tile.path} is missing, or does not lead to the signed head")
            return
        leaves = self._reader.between(start, start + TILE_WIDTH)
        if leaves != row:
            pairs = zip(leaves, row, strict=False)
            at = next((at for at, (leaf, wanted) in enumerate(pairs) if leaf != wanted), len(leaves))
            findings.damage(LOG, f"entry {start + at} is not the one in the signed tree: it was changed, or is missing")
        if bundle_leaves(self._tiles.bundle(number)) != row:
            findings.damage(TILES, f"{bundle.path} is missing, or is not that of {tile.path}")
        for at in range(0, TILE_WIDTH, _LOOKED_UP):
            findings.count("leaves")
            self._leaves.check_found(start + at, row[at], self._reader.leaf)
