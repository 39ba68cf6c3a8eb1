"""Building tiles, bundles and the leaf index from all entries: what the follower writes, made in one go.

The follower takes what comes, a few thousand entries at a time, and its runs of the leaf index are merged again and
again. Here everything is known from the beginning, so entries are hashed where they stand in their segment, bundles are
cut from there, whole rows of a tree level are hashed at once, and runs are made at their final size.

Whether it is the tree that was signed is for others to say: `tlog.server.derived` opens what was written here like any
tile store, adds the entries behind the last full bundle, and compares the root.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE
from tlog.server.follower import encoded
from tlog.server.storage.leaves import FAN_BITS, RUN, new_draft
from tlog.server.storage.tiles import Derived
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.storage import Segment
    from tlog.server.storage.draft import Draft
    from tlog.server.storage.leaves import LeafStore
    from tlog.server.storage.tiles import TileStore

MAX_LEVEL = 2
"""Highest level of a run that is made in one go: 4 million entries, for which it takes 150 MB of memory."""

_TILE_SIZE = TILE_WIDTH * HASH_SIZE


class Builder:
    """Fills an empty tile store with a log of a known size. Owned by the thread of the store.

    Attributes:
        size: Entries that were taken.
    """

    def __init__(self, tiles: TileStore, leaves: LeafStore, end: int) -> None:
        """Begin at entry 0.

        Args:
            tiles: An empty store.
            leaves: Its leaf index.
            end: The size of the log.
        """
        self.size = 0
        self._tiles = tiles
        self._leaves = leaves
        self._end = end
        self._framed: list[bytes] = []  # parts of the bundle that is not full
        self._rows: list[bytearray] = []  # of each tile level, the hashes behind the last full tile
        self._counts: list[int] = []  # of each tile level, the full tiles
        self._recent: list[bytes] = []  # leaf hashes that are in no run
        self._draft: Draft | None = None

    def take(self, segments: Sequence[Segment]) -> None:
        """Add the entries of the segments that follow, and write what they fill, in one transaction.

        Raises:
            FormatError: A segment breaks its framing.
        """
        bundles: list[tuple[Bundle, bytes]] = []
        hashes: list[bytes] = []
        for segment in segments:
            more, ends = hash_entries(segment.entries, segment.count, TILE_WIDTH - self.size % TILE_WIDTH)
            bundles += self._cut(segment.entries, ends)
            hashes += more
            self.size += segment.count
        tiles: list[tuple[Tile, bytes]] = []
        self._grow(0, b"".join(hashes), tiles)
        if bundles:
            self._tiles.write(encoded(Derived(tiles, bundles, self.size // TILE_WIDTH * TILE_WIDTH)))
        self._recent += hashes
        while len(self._recent) >= RUN:
            self._index()

    def _cut(self, data: bytes, ends: Sequence[int]) -> list[tuple[Bundle, bytes]]:
        """Return the bundles that end in a segment, and keep what is behind the last one."""
        bundles: list[tuple[Bundle, bytes]] = []
        start = 0
        for number, end in enumerate(ends, self.size // TILE_WIDTH):
            bundles.append((Bundle(number), b"".join([*self._framed, data[start:end]])))
            self._framed.clear()
            start = end
        self._framed.append(data[start:])
        return bundles

    def _grow(self, level: int, hashes: bytes, tiles: list[tuple[Tile, bytes]]) -> None:
        """Add hashes to a tile level, and to those above what they fill."""
        if level == len(self._rows):
            self._rows.append(bytearray())
            self._counts.append(0)
        row = self._rows[level]
        row += hashes
        full = bytes(row[: len(row) // _TILE_SIZE * _TILE_SIZE])
        if not full:
            return
        del row[: len(full)]
        starts = range(0, len(full), _TILE_SIZE)
        tiles += [
            (Tile(level, number), full[at : at + _TILE_SIZE]) for number, at in enumerate(starts, self._counts[level])
        ]
        self._counts[level] += len(starts)
        self._grow(level + 1, tops(full), tiles)

    def _index(self) -> None:
        """Move as many entries into the leaf index as its smallest run has; equal ones count once, as the first."""
        taken, self._recent = self._recent[:RUN], self._recent[RUN:]
        start = self.size - len(self._recent) - RUN
        if self._draft is None:
            self._draft = new_draft(start, _level(self._end - start))
        self._draft.pour(dict(zip(reversed(taken), range(start + RUN - 1, start - 1, -1), strict=True)))
        if start + RUN == self._draft.first + (RUN << FAN_BITS * self._draft.level):
            self._leaves.put(self._draft)
            self._draft = None


def _level(size: int) -> int:
    """Return the level of the largest run that so many entries fill."""
    return max(level for level in range(MAX_LEVEL + 1) if level == 0 or RUN << FAN_BITS * level <= size)


def hash_entries(data: bytes, count: int, room: int) -> tuple[list[bytes], list[int]]:
    """Return the leaf hashes of framed entries, and where in them bundles end.

    Args:
        data: The entries of a segment.
        count: How many there are.
        room: How many the first bundle has room for.

    Raises:
        FormatError: Not exactly `count` framed entries.
    """
    hashes: list[bytes] = []
    ends: list[int] = []
    at = 0
    try:
        while count:
            for _ in range(min(room, count)):
                start = at + 2
                at = start + (data[at] << 8) + data[at + 1]
                hashes.append(sha256(b"\x00" + data[start:at]).digest())
            if count >= room:
                ends.append(at)
            count, room = count - min(room, count), TILE_WIDTH
    except IndexError:
        at = -1
    if at != len(data):
        raise FormatError("not as many framed entries as the segment says")
    return hashes, ends


def tops(tiles: bytes) -> bytes:
    """Return the root over each of the full tiles that stand one after the other, in the same way."""
    row = tiles
    for _ in range(TILE_HEIGHT):
        row = b"".join([sha256(b"\x01" + row[at : at + 2 * HASH_SIZE]).digest() for at in range(0, len(row), 64)])
    return row
