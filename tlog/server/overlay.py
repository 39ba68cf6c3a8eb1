"""The newest part of the tree in memory: everything above the follower's position, and all that is visible of it.

For each tree level the overlay keeps the hashes of complete nodes from the first tile on that is not in the tile store
yet, and the entries above the position. Every tile and bundle of every signed size is cut from here or from the tile
store, and what is in neither is not visible yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlog.merkle import node_hash
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, format_bundle, format_tile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tlog.edge import Growth
    from tlog.merkle import Node


def first_tile(position: int, tile_level: int) -> int:
    """Return the index of the first tile of a level that is not complete at a position."""
    return position >> TILE_HEIGHT * (tile_level + 1)


class Overlay:
    """The tree above a position. Owned by the event loop: extended by the sequencer, trimmed by the follower.

    Attributes:
        position: Entries below it are in the tile store; a multiple of 256.
        size: Number of entries of the signed head.
        bytes: Bytes of the entries above the position.
    """

    def __init__(self, position: int, partials: Mapping[int, Sequence[bytes]]) -> None:
        """Begin at a position with nothing above it.

        Args:
            position: A multiple of 256.
            partials: The hashes of the partial tile of each level from 1 on, where there is one.
        """
        self.position = position
        self.size = position
        self.bytes = 0
        self._entries: list[bytes] = []
        self._levels: list[list[bytes]] = []
        self._starts: list[int] = []  # the index of the first node of each level
        for level in range(position.bit_length()):
            tile_level, height = divmod(level, TILE_HEIGHT)
            row = list(partials.get(tile_level, ())) if height == 0 else _pairs(self._levels[-1])
            self._levels.append(row)
            self._starts.append(_start(position, level))

    def extend(self, growth: Growth, entries: Sequence[bytes]) -> None:
        """Make a commit visible."""
        if growth.old.size != self.size:
            raise ValueError(f"the overlay ends at {self.size}, not at {growth.old.size}")
        for level, hashes in enumerate(growth.levels):
            if level == len(self._levels):
                self._levels.append([])
                self._starts.append(_start(self.position, level))
            self._levels[level] += hashes
        self._entries += entries
        self.bytes += sum(map(len, entries))
        self.size = growth.new.size

    def trim(self, position: int) -> None:
        """Drop what is in the tile store up to a new position."""
        for level, row in enumerate(self._levels):
            start = _start(position, level)
            del row[: start - self._starts[level]]
            self._starts[level] = start
        self.bytes -= sum(map(len, self._entries[: position - self.position]))
        del self._entries[: position - self.position]
        self.position = position

    def hash_of(self, node: Node) -> bytes | None:
        """Return the hash of a complete node; None if it is in the tile store, or not complete."""
        level, index = node
        if 0 <= level < len(self._levels):
            offset, row = index - self._starts[level], self._levels[level]
            if 0 <= offset < len(row):
                return row[offset]
        return None

    def tile(self, tile: Tile) -> bytes | None:
        """Return a tile of any width; None if it is in the tile store, or not complete."""
        level = TILE_HEIGHT * tile.level
        start = tile.index * TILE_WIDTH - _start(self.position, level)
        if start < 0 or level >= len(self._levels) or start + tile.width > len(self._levels[level]):
            return None
        return format_tile(self._levels[level][start : start + tile.width])

    def bundle(self, bundle: Bundle) -> bytes | None:
        """Return a bundle of any width; None if it is in the tile store, or not complete."""
        start = bundle.index * TILE_WIDTH - self.position
        if start < 0 or start + bundle.width > len(self._entries):
            return None
        return format_bundle(self._entries[start : start + bundle.width])

    def full_bundles(self, most: int, max_bytes: int) -> int:
        """Return how many bundles above the position are full, up to a number and to so many bytes, or one."""
        full = min(most, len(self._entries) // TILE_WIDTH)
        size = 0
        for bundle in range(full):
            size += sum(map(len, self._entries[bundle * TILE_WIDTH : (bundle + 1) * TILE_WIDTH]))
            if size > max_bytes:
                return max(bundle, 1)
        return full

    def entry(self, index: int) -> bytes | None:
        """Return an entry; None if it is in the tile store, or not visible."""
        offset = index - self.position
        return self._entries[offset] if 0 <= offset < len(self._entries) else None


def _start(position: int, level: int) -> int:
    """Return the index of the first node of a tree level that the overlay keeps at a position."""
    tile_level, height = divmod(level, TILE_HEIGHT)
    return first_tile(position, tile_level) * TILE_WIDTH >> height


def _pairs(hashes: Sequence[bytes]) -> list[bytes]:
    return [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)]
