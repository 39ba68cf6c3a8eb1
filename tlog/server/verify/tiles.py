"""Checking the tiles and bundles of tiles.db, against the entries and against the signed head.

Only full tiles and bundles below a position are stored; both are made anew from the entries here, without the code that
serves them. Where tiles and entries differ, the signed head decides which of them was changed.
"""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.edge import Edge
from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE, leaf_hash, tree_root
from tlog.server.verify.finding import LOG, TILES
from tlog.tile import MAX_BUNDLE_SIZE, TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, format_bundle, parse_bundle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.verify.entries import Part
    from tlog.server.verify.finding import Findings

_LEVEL_BITS = 6  # of a tile's id are for its level
_GZIP = 31  # zlib's wbits for the gzip container


class StoredTiles:
    """The tiles of tiles.db, read one by one.

    Attributes:
        position: Entries below it have tiles: a multiple of 256; 0 where the file does not say.
    """

    def __init__(self, connection: sqlite3.Connection, findings: Findings) -> None:
        """Read the position, which is damaged where it is none."""
        self._connection = connection
        rows = connection.execute("SELECT size FROM position").fetchall()
        self.position = rows[0][0] if len(rows) == 1 and isinstance(rows[0][0], int) else -1
        if self.position < 0 or self.position % TILE_WIDTH:
            findings.damage(TILES, "it does not say how far it goes")
            self.position = 0

    def row(self, level: int, index: int) -> list[bytes] | None:
        """Return the hashes of a full tile; None where it is missing or has another length."""
        data = self._find("SELECT hashes FROM tile WHERE id = ?", index << _LEVEL_BITS | level)
        if data is None or len(data) != TILE_WIDTH * HASH_SIZE:
            return None
        return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]

    def bundle(self, index: int) -> bytes | None:
        """Return a full bundle; None where it is missing or cannot be decoded."""
        packed = self._find("SELECT gzip FROM bundle WHERE id = ?", index)
        if packed is None:
            return None
        reader = zlib.decompressobj(_GZIP)
        try:
            data = reader.decompress(packed, MAX_BUNDLE_SIZE)
        except zlib.error:
            return None
        return data if reader.eof and not reader.unused_data else None

    def _find(self, select: str, key: int) -> bytes | None:
        """Return one value; what SQLite cannot read is as good as missing."""
        try:
            found = self._connection.execute(select, (key,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return found[0] if found is not None and isinstance(found[0], bytes) else None

    def counts(self) -> tuple[int, int]:
        """Return how many tiles and bundles there are.

        Raises:
            sqlite3.Error: The file is damaged.
        """
        ((tiles,),) = self._connection.execute("SELECT count(*) FROM tile")
        ((bundles,),) = self._connection.execute("SELECT count(*) FROM bundle")
        return tiles, bundles

    def edge(self) -> Edge | None:
        """Return the right edge of the tree at the position; None where a tile that it needs is missing."""
        peaks = []
        for level, index in Edge(self.position).nodes():
            tile_level, height = divmod(level, TILE_HEIGHT)
            rows = [self.row(tile_level - 1, at) for at in range(index << height, (index + 1) << height)]
            whole = [row for row in rows if row is not None]
            if len(whole) < len(rows):
                return None
            peaks.append(tree_root([tree_root(row) for row in whole]))
        return Edge(self.position, tuple(peaks))

    def leads_up(self, level: int, index: int) -> bool:
        """Return whether a full tile fits the tiles above it, up to those that the edge is made of."""
        row = self.row(level, index)
        while row is not None:
            root, level, at, index = tree_root(row), level + 1, index % TILE_WIDTH, index // TILE_WIDTH
            if (index + 1) << TILE_HEIGHT * (level + 1) > self.position:
                return True
            row = self.row(level, index)
            if row is not None and row[at] != root:
                return False
        return False


def bundle_leaves(data: bytes | None) -> list[bytes] | None:
    """Return the leaf hashes of the entries in a full bundle; None where it is none."""
    try:
        return [leaf_hash(entry) for entry in parse_bundle(data or b"", TILE_WIDTH)]
    except FormatError:
        return None


@dataclass(frozen=True, slots=True)
class Difference:
    """A tile or bundle that is not what the entries make it.

    Attributes:
        address: Which.
        index: The first entry that differs, of a tile of leaf hashes.
    """

    address: Tile | Bundle
    index: int | None = None


class TileCheck:
    """Makes the tiles and bundles of a log anew from its entries, and compares. Owned by one check."""

    def __init__(self, stored: StoredTiles, findings: Findings) -> None:
        """Compare what is stored."""
        self._stored = stored
        self._findings = findings
        self._next = 0  # index of the entry that comes next
        self._entries: list[bytes] = []
        self._levels: list[list[bytes]] = [[]]
        self._made = [0]  # full tiles so far, of each level
        self._differences: list[Difference] = []

    def add(self, part: Part) -> None:
        """Take the entries of the next segment; behind a gap nothing can be compared."""
        if part.first != self._next:
            return
        self._next += len(part.entries)
        if part.first >= self._stored.position:
            return
        for entry, leaf in zip(part.entries, part.leaves, strict=True):
            self._entries.append(entry)
            self._levels[0].append(leaf)
            if len(self._entries) == TILE_WIDTH:
                self._compare()

    def _compare(self) -> None:
        """Compare the tiles and the bundle that the newest 256 entries have made full."""
        index = self._made[0]
        if (index + 1) * TILE_WIDTH > self._stored.position:
            self._entries, self._levels[0] = [], []
            return
        level = 0
        while len(self._levels[level]) == TILE_WIDTH:
            row, self._levels[level] = self._levels[level], []
            self._compare_tile(Tile(level, self._made[level]), row)
            self._made[level] += 1
            level += 1
            if level == len(self._levels):
                self._levels.append([])
                self._made.append(0)
            self._levels[level].append(tree_root(row))
        self._compare_bundle(Bundle(index))
        self._entries = []

    def _compare_tile(self, tile: Tile, row: Sequence[bytes]) -> None:
        self._findings.count("tiles")
        stored = self._stored.row(tile.level, tile.index)
        if stored is None:
            self._findings.damage(TILES, f"{tile.path} is missing, or cannot be read")
        elif stored != row:
            at = next(at for at in range(TILE_WIDTH) if stored[at] != row[at])
            self._differences.append(Difference(tile, None if tile.level else tile.index * TILE_WIDTH + at))

    def _compare_bundle(self, bundle: Bundle) -> None:
        self._findings.count("bundles")
        stored = self._stored.bundle(bundle.index)
        if stored is None:
            self._findings.damage(TILES, f"{bundle.path} is missing, or cannot be read")
        elif stored != format_bundle(self._entries):
            self._differences.append(Difference(bundle))

    def finish(self, *, entries_are_signed: bool, edge_is_signed: bool) -> None:
        """Tell what differs, and what is too much.

        Raises:
            sqlite3.Error: The file is damaged.

        Args:
            entries_are_signed: Whether the entries of log.db have the signed root.
            edge_is_signed: Whether the edge of the stored tiles has it.
        """
        for different in self._differences:
            path = different.address.path
            if entries_are_signed:
                self._findings.damage(TILES, f"{path} is not what the entries make it")
            elif not (edge_is_signed and self._is_signed(different.address)):
                self._findings.damage(TILES, f"{path} is not what the entries make it, nor in the signed tree")
            elif different.index is not None:
                self._findings.damage(LOG, f"entry {different.index} is not the one in the signed tree: it was changed")
        if self._next >= self._stored.position:
            self._check_counts()
        elif entries_are_signed:
            self._findings.damage(TILES, f"it goes up to {self._stored.position} of {self._next} entries")

    def _is_signed(self, address: Tile | Bundle) -> bool:
        """Return whether a tile or bundle is the one of the tree that the edge is of."""
        if isinstance(address, Tile):
            return self._stored.leads_up(address.level, address.index)
        row = self._stored.row(0, address.index)
        fits = row is not None and row == bundle_leaves(self._stored.bundle(address.index))
        return fits and self._stored.leads_up(0, address.index)

    def _check_counts(self) -> None:
        position = self._stored.position
        levels = range(1, -(-position.bit_length() // TILE_HEIGHT) + 1)
        wanted = (sum(position >> TILE_HEIGHT * level for level in levels), position // TILE_WIDTH)
        for found, most, what in zip(self._stored.counts(), wanted, ("tiles", "bundles"), strict=True):
            if found > most:
                self._findings.damage(TILES, f"it holds {found - most} {what} that no tree has")
