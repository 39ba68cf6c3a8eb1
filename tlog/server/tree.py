"""Reading the visible tree: what is above the follower's position from memory, the rest from the tile store.

Nothing here is verified; whoever makes a proof of it verifies the proof.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from tlog.errors import NotFoundError
from tlog.merkle import node_hash
from tlog.server.errors import DamageError
from tlog.server.follower import gunzip, gzip
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, cut_bundle, format_tile, parse_bundle, parse_tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlog.merkle import Node
    from tlog.server.overlay import Overlay
    from tlog.server.storage.database import Database
    from tlog.server.storage.tiles import TileStore

MAX_EXPANDED = 1024
"""Most tiles kept with their interior nodes; about 40 KiB each."""


class Tree:
    """The visible tree. Owned by the event loop."""

    def __init__(self, overlay: Overlay, thread: Database, store: TileStore) -> None:
        """Read from an overlay and, below its position, from a tile store on its thread."""
        self._overlay = overlay
        self._thread = thread
        self._store = store
        self._expanded: OrderedDict[Tile, list[list[bytes]]] = OrderedDict()

    async def hashes(self, nodes: Sequence[Node]) -> list[bytes]:
        """Return the hashes of complete nodes.

        Raises:
            DamageError: The tile store lacks a tile that it should have.
        """
        found = [self._overlay.hash_of(node) for node in nodes]
        missing = {_tile(node) for node, value in zip(nodes, found, strict=True) if value is None}
        rows = {tile: self._expanded[tile] for tile in missing if tile in self._expanded}
        rows |= await self._expand([tile for tile in missing if tile not in rows])
        return [
            value if value is not None else _row_hash(rows[_tile(node)], node)
            for node, value in zip(nodes, found, strict=True)
        ]

    async def _expand(self, tiles: list[Tile]) -> dict[Tile, list[list[bytes]]]:
        """Read full tiles and compute their interior nodes, level by level."""
        expanded: dict[Tile, list[list[bytes]]] = {}
        for tile, data in zip(tiles, await self._full_tiles(tiles), strict=True):
            rows = [parse_tile(data, TILE_WIDTH)]
            while len(rows) < TILE_HEIGHT:
                below = rows[-1]
                rows.append([node_hash(left, right) for left, right in zip(below[::2], below[1::2], strict=True)])
            expanded[tile] = self._expanded[tile] = rows
        while len(self._expanded) > MAX_EXPANDED:
            self._expanded.popitem(last=False)
        return expanded

    async def _full_tiles(self, tiles: list[Tile]) -> list[bytes]:
        """Read full tiles from the store, in one batch."""
        if not tiles:
            return []
        data = await self._thread.run(lambda _: self._store.tiles(tiles))
        found = [part for part in data if part is not None]
        if len(found) != len(tiles):
            raise DamageError("tiles.db lacks a tile; it is rebuilt when it is removed and the server started")
        return found

    async def tile(self, tile: Tile) -> bytes:
        """Return a tile of any width, cut from the fuller one where that is stored.

        Raises:
            NotFoundError: It is not visible yet.
        """
        if (tile.index * TILE_WIDTH + tile.width) << TILE_HEIGHT * tile.level > self._overlay.size:
            raise NotFoundError("no signed tree has this tile yet")
        data = self._overlay.tile(tile)
        if data is None:
            (full,) = await self._full_tiles([tile.full()])
            data = format_tile(parse_tile(full, TILE_WIDTH)[: tile.width])
        return data

    async def bundle(self, bundle: Bundle) -> bytes:
        """Return a bundle of any width, gzip-encoded, cut from the fuller one where that is stored.

        Raises:
            NotFoundError: It is not visible yet.
        """
        if bundle.index * TILE_WIDTH + bundle.width > self._overlay.size:
            raise NotFoundError("no signed tree has this bundle yet")
        data = self._overlay.bundle(bundle)
        if data is not None:
            return gzip(data)
        full = await self._full_bundle(bundle.index)
        return full if bundle.width == TILE_WIDTH else gzip(cut_bundle(gunzip(full), bundle.width))

    async def _full_bundle(self, index: int) -> bytes:
        """Return a stored bundle, gzip-encoded."""
        data = await self._thread.run(partial(_read_bundle, self._store, index))
        if data is None:
            raise DamageError("tiles.db lacks a bundle; it is rebuilt when it is removed and the server started")
        return data

    async def entry(self, index: int) -> bytes:
        """Return an entry.

        Raises:
            NotFoundError: It is not visible yet.
        """
        if index >= self._overlay.size:
            raise NotFoundError(f"no signed tree has an entry {index} yet")
        entry = self._overlay.entry(index)
        if entry is None:
            data = gunzip(await self._full_bundle(index // TILE_WIDTH))
            entry = parse_bundle(data, TILE_WIDTH)[index % TILE_WIDTH]
        return entry


def _read_bundle(store: TileStore, index: int, _: object) -> bytes | None:
    return store.bundle(index)


def _tile(node: Node) -> Tile:
    """Return the full tile that holds a node."""
    level, index = node
    tile_level, height = divmod(level, TILE_HEIGHT)
    return Tile(tile_level, (index << height) // TILE_WIDTH)


def _row_hash(rows: Sequence[Sequence[bytes]], node: Node) -> bytes:
    """Return the hash of a node from the rows of its tile."""
    level, index = node
    row = rows[level % TILE_HEIGHT]
    return row[index % len(row)]


def stored_hashes(store: TileStore, tiles: Iterable[Tile]) -> list[list[bytes]]:
    """Return the hashes of full tiles that a store must have; for start-up, on the store's thread.

    Raises:
        DamageError: One is missing.
    """
    found = store.tiles(tiles)
    if any(data is None for data in found):
        raise DamageError("tiles.db lacks a tile")
    return [parse_tile(data, TILE_WIDTH) for data in found if data is not None]
