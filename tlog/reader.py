"""Reading a log through its tiles, with every hash verified up to a head: generators that yield read requests.

    reading = read_root(head, size)      a flow; it does nothing by itself
    request = next(reading)              ReadTiles or ReadBundles: what it wants, as one batch
    reading.send([bytes, …])             one answer for each address, in order

The caller reads, from a disk, over HTTP or from a simulator that lies, and never verifies: the flow does. A tile counts
as verified when it leads to the root of the head: the last tile of each level together, because their hashes are what
the root is folded from, and every other tile through the tile above it. Only verified full tiles enter a cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tlog.errors import VerificationError
from tlog.merkle import (
    EMPTY_ROOT,
    Node,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    subtree_nodes,
    subtree_root,
    tree_root,
)
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, hash_in_tile, parse_bundle, parse_tile, tile_of, width_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlog.checkpoint import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadTiles:
    """A request for tiles; the answer is the bytes of each, in order."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class ReadBundles:
    """A request for entry bundles; the answer is the bytes of each, in order."""

    bundles: tuple[Bundle, ...]


Reading: TypeAlias = Generator[ReadTiles | ReadBundles, list[bytes], T]
"""A flow that reads, and returns a T."""


class TileCache:
    """Full tiles that have been verified, the least recently used dropped first.

    Attributes:
        capacity: Most tiles kept; 8 KiB each.
    """

    def __init__(self, capacity: int = 1024) -> None:
        """Begin empty."""
        self.capacity = capacity
        self._tiles: OrderedDict[Tile, bytes] = OrderedDict()

    def get(self, tile: Tile) -> bytes | None:
        """Return a full tile, if it is here."""
        data = self._tiles.get(tile)
        if data is not None:
            self._tiles.move_to_end(tile)
        return data

    def put(self, tile: Tile, data: bytes) -> None:
        """Keep a tile that was verified; a partial one is not kept."""
        if tile.width == TILE_WIDTH:
            self._tiles[tile] = data
            self._tiles.move_to_end(tile)
            while len(self._tiles) > self.capacity:
                self._tiles.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._tiles.clear()


def read_hashes(head: Checkpoint, nodes: Iterable[Node], cache: TileCache | None = None) -> Reading[list[bytes]]:
    """Return the hashes of nodes of the head's tree, verified, after one request for all the tiles this takes.

    A cached tile that does not lead to this head is forgotten, and everything is read anew once: it may be the head
    that belongs to another tree, and then the tiles that the log now serves decide.

    Raises:
        FormatError: A tile has another length than asked for.
        ValueError: A node is not a complete subtree of the head's tree.
        VerificationError: A tile does not lead to the root of the head.
    """
    wanted = list(nodes)
    if not all(0 <= index < head.size >> level for level, index in wanted):
        raise ValueError(f"not all nodes are complete in a tree of size {head.size}")
    tiles = _tiles_to_verify(head.size, wanted)
    cached = {tile: data for tile in tiles if cache and (data := cache.get(tile)) is not None}
    if cached and cache:
        try:
            return (yield from _read_verified(head, wanted, tiles, cached, cache))
        except VerificationError:
            cache.clear()
    return (yield from _read_verified(head, wanted, tiles, {}, cache))


def _tiles_to_verify(size: int, nodes: Iterable[Node]) -> list[Tile]:
    """Return the tiles of the nodes, the last tile of each level, and all between, from the top level downwards."""
    levels = range((size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT)
    edge = [Tile(level, (size >> TILE_HEIGHT * level) // TILE_WIDTH) for level in levels]
    tiles = {tile_of((TILE_HEIGHT * tile.level, tile.index * TILE_WIDTH), size) for tile in edge}
    for node in nodes:
        tile = tile_of(node, size)
        while tile.width == TILE_WIDTH and tile not in tiles:
            tiles.add(tile)
            tile = tile_of(_parent(tile), size)
        tiles.add(tile)
    return sorted((tile for tile in tiles if tile.width), key=lambda tile: (-tile.level, tile.index))


def _parent(tile: Tile) -> Node:
    """Return the node that a full tile hashes to."""
    return (TILE_HEIGHT * (tile.level + 1), tile.index)


def _read_verified(
    head: Checkpoint, nodes: Sequence[Node], tiles: Sequence[Tile], cached: dict[Tile, bytes], cache: TileCache | None
) -> Reading[list[bytes]]:
    """Read the tiles that are not cached, verify all, cache them, and return the hashes of the nodes."""
    missing = tuple(tile for tile in tiles if tile not in cached)
    answers = (yield ReadTiles(missing)) if missing else []
    data = {**cached, **dict(zip(missing, answers, strict=True))}
    hashes = {tile: parse_tile(data[tile], tile.width) for tile in tiles}
    _verify_tiles(head, hashes)
    for tile in tiles:
        if cache:
            cache.put(tile, data[tile])
    return [hash_in_tile(hashes[tile_of(node, head.size)], node) for node in nodes]


def _verify_tiles(head: Checkpoint, hashes: dict[Tile, list[bytes]]) -> None:
    """Check tiles, the parents of each before it, against the root of the head."""
    size = head.size
    peaks = [hash_in_tile(hashes[tile_of(node, size)], node) for node in subtree_nodes(0, size)] if size else []
    if (subtree_root(0, size, peaks) if size else EMPTY_ROOT) != head.root:
        raise VerificationError(f"the tiles do not lead to the root of size {size}")
    for tile, parts in hashes.items():
        if tile.width == TILE_WIDTH:
            node = _parent(tile)
            if tree_root(parts) != hash_in_tile(hashes[tile_of(node, size)], node):
                raise VerificationError(f"{tile.path} does not lead to the root of size {size}")


def read_root(head: Checkpoint, size: int, cache: TileCache | None = None) -> Reading[bytes]:
    """Return the root that the head's tree had when its size was `size`, 0 to head.size.

    Raises:
        FormatError: A tile has another length than asked for.
        ValueError: The size is negative or above head.size.
        VerificationError: A tile does not lead to the root of the head.
    """
    if size == 0:
        return EMPTY_ROOT
    hashes = yield from read_hashes(head, subtree_nodes(0, size), cache)
    return subtree_root(0, size, hashes)


def read_inclusion_proof(head: Checkpoint, index: int, cache: TileCache | None = None) -> Reading[list[bytes]]:
    """Return the inclusion proof of an index below head.size, folded from verified tiles.

    Raises:
        FormatError: A tile has another length than asked for.
        ValueError: The index is negative or not below head.size.
        VerificationError: A tile does not lead to the root of the head.
    """
    hashes = yield from read_hashes(head, inclusion_nodes(index, head.size), cache)
    return inclusion_proof(index, head.size, hashes)


def read_consistency_proof(head: Checkpoint, old_size: int, cache: TileCache | None = None) -> Reading[list[bytes]]:
    """Return the consistency proof from a smaller size to the head, folded from verified tiles.

    Raises:
        FormatError: A tile has another length than asked for.
        ValueError: The old size is negative or above head.size.
        VerificationError: A tile does not lead to the root of the head.
    """
    hashes = yield from read_hashes(head, consistency_nodes(old_size, head.size), cache)
    return consistency_proof(old_size, head.size, hashes)


def read_bundles(start: int, end: int, size: int) -> Reading[list[bytes]]:
    """Return entries [start, end) of a log of that size as they are served: well formed, and *not verified*.

    For callers that re-hash them up to a root themselves.

    Raises:
        FormatError: A bundle breaks its form.
        ValueError: Not 0 ≤ start ≤ end ≤ size.
    """
    if not 0 <= start <= end <= size:
        raise ValueError(f"entries [{start}, {end}) are not in a log of size {size}")
    numbers = range(start // TILE_WIDTH, -(-end // TILE_WIDTH))
    bundles = tuple(Bundle(number, width_at(0, number, size)) for number in numbers)
    answers = (yield ReadBundles(bundles)) if bundles else []
    entries: list[bytes] = []
    for bundle, data in zip(bundles, answers, strict=True):
        entries += parse_bundle(data, bundle.width)
    skipped = start % TILE_WIDTH
    return entries[skipped : skipped + end - start]


def read_entries(head: Checkpoint, start: int, end: int, cache: TileCache | None = None) -> Reading[list[bytes]]:
    """Return entries [start, end), each verified by its leaf hash up to the root of the head.

    Raises:
        FormatError: A bundle or a tile breaks its form.
        ValueError: Not 0 ≤ start ≤ end ≤ head.size.
        VerificationError: A tile does not lead to the head, or an entry is not the one in the tree: its index is named.
    """
    entries = yield from read_bundles(start, end, head.size)
    hashes = yield from read_hashes(head, [(0, index) for index in range(start, end)], cache)
    for index, entry, wanted in zip(range(start, end), entries, hashes, strict=True):
        if leaf_hash(entry) != wanted:
            raise VerificationError(f"entry {index} is not the one that the tree of size {head.size} holds")
    return entries
