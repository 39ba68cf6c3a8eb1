"""Reading the visible tree: what is above the follower's position from memory, the rest from the tile store.

Whoever makes a proof of what is read here verifies the proof, too.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tlog.errors import FormatError, NotFoundError
from tlog.merkle import leaf_hash, node_hash
from tlog.server.errors import DamageError
from tlog.server.follower import gunzip, gzip
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, cut_bundle, format_tile, parse_bundle, parse_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tlog.merkle import Node
    from tlog.server.overlay import Overlay
    from tlog.server.storage.database import Database
    from tlog.server.storage.tiles import TileStore

K = TypeVar("K")
V = TypeVar("V")

Rows: TypeAlias = "list[list[bytes]]"
"""The hashes of a full tile, and above them those of its interior nodes, level by level."""

MAX_TILES = 1024
"""Most full tiles kept with their interior nodes; about 40 KiB each."""

MAX_AT_ONCE = 32
"""Most tiles of one request that are read and expanded in one turn of the event loop: 5 ms."""

MAX_BUNDLES = 64
"""Most full bundles kept, gzip-encoded, after they were checked."""


class Tree:
    """The visible tree. Owned by the event loop.

    What comes from the tile store is checked before it is used: a tile against the level above it, up to the overlay,
    and a bundle against its tile. Damage is an error of the server, and never an answer.
    """

    def __init__(self, overlay: Overlay, thread: Database, store: TileStore) -> None:
        """Read from an overlay and, below its position, from a tile store on its thread."""
        self._overlay = overlay
        self._thread = thread
        self._store = store
        self._tiles: OrderedDict[Tile, Rows] = OrderedDict()
        self._bundles: OrderedDict[int, bytes] = OrderedDict()

    def hashes_now(self, nodes: Sequence[Node]) -> list[bytes] | None:
        """Return the hashes of complete nodes; None where one has to be read from the tile store first."""
        hash_of, kept = self._overlay.hash_of, self._tiles
        found: list[bytes] = []
        for node in nodes:
            value = hash_of(node)
            if value is None:
                tile = _tile(node)
                rows = kept.get(tile)
                if rows is None:
                    return None
                kept.move_to_end(tile)
                value = _row_hash(rows, node)
            found.append(value)
        return found

    async def hashes(self, nodes: Sequence[Node]) -> list[bytes]:
        """Return the hashes of complete nodes.

        Raises:
            DamageError: The tile store lacks a tile that it should have, or holds a damaged one.
        """
        found = [self._overlay.hash_of(node) for node in nodes]
        missing: dict[Tile, list[int]] = {}
        for at, value in enumerate(found):
            if value is None:
                missing.setdefault(_tile(nodes[at]), []).append(at)
        tiles = list(missing)
        for start in range(0, len(tiles), MAX_AT_ONCE):
            rows = await self._rows(tiles[start : start + MAX_AT_ONCE])
            for tile, row in rows.items():
                for at in missing[tile]:
                    found[at] = _row_hash(row, nodes[at])
            if start:
                await asyncio.sleep(0)  # where all of them are kept, nothing else has let others have a turn
        return [value for value in found if value is not None]

    async def _rows(self, tiles: list[Tile]) -> dict[Tile, Rows]:
        """Return full tiles below the position, read in one batch where they are not kept, and checked."""
        rows = {tile: self._tiles[tile] for tile in tiles if tile in self._tiles}
        missing = [tile for tile in tiles if tile not in rows]
        if missing:
            read = await self._read(lambda: stored_hashes(self._store, missing))
            parents = await self.hashes([(TILE_HEIGHT * (tile.level + 1), tile.index) for tile in missing])
            for tile, hashes, parent in zip(missing, read, parents, strict=True):
                rows[tile] = _expand(tile, hashes, parent)
        for tile in tiles:
            _keep(self._tiles, tile, rows[tile], MAX_TILES)
        return rows

    def tile_now(self, tile: Tile) -> bytes | None:
        """Return a tile of any width; None where it has to be read from the tile store first, or is not visible."""
        data = self._overlay.tile(tile)
        rows = self._tiles.get(tile.full()) if data is None else None
        return data if rows is None else format_tile(rows[0][: tile.width])

    async def tile(self, tile: Tile) -> bytes:
        """Return a tile of any width, cut from the fuller one where that is stored.

        Raises:
            DamageError: The tile store lacks it, or holds a damaged one.
            NotFoundError: It is not visible yet.
        """
        if (tile.index * TILE_WIDTH + tile.width) << TILE_HEIGHT * tile.level > self._overlay.size:
            raise NotFoundError("no signed tree has this tile yet")
        data = self._overlay.tile(tile)
        if data is None:
            full = tile.full()
            data = format_tile((await self._rows([full]))[full][0][: tile.width])
        return data

    def bundle_now(self, bundle: Bundle) -> bytes | None:
        """Return a full bundle, gzip-encoded; None where it has to be read or encoded first, or is not visible."""
        return self._bundles.get(bundle.index) if bundle.width == TILE_WIDTH else None

    async def bundle(self, bundle: Bundle) -> bytes:
        """Return a bundle of any width, gzip-encoded, cut from the fuller one where that is stored.

        Raises:
            DamageError: The tile store lacks it, or holds a damaged one.
            NotFoundError: It is not visible yet.
        """
        if bundle.index * TILE_WIDTH + bundle.width > self._overlay.size:
            raise NotFoundError("no signed tree has this bundle yet")
        data = self._overlay.bundle(bundle)
        if data is not None:
            return gzip(data)
        full = await self._full_bundle(bundle.index)
        return full if bundle.width == TILE_WIDTH else gzip(cut_bundle(gunzip(full), bundle.width))

    async def entry(self, index: int) -> bytes:
        """Return an entry.

        Raises:
            DamageError: The tile store lacks its bundle, or holds a damaged one.
            NotFoundError: It is not visible yet.
        """
        if index >= self._overlay.size:
            raise NotFoundError(f"no signed tree has an entry {index} yet")
        entry = self._overlay.entry(index)
        if entry is None:
            data = gunzip(await self._full_bundle(index // TILE_WIDTH))
            entry = parse_bundle(data, TILE_WIDTH)[index % TILE_WIDTH]
        return entry

    async def _full_bundle(self, index: int) -> bytes:
        """Return a stored bundle, gzip-encoded, whose entries are the ones of its tile."""
        data = self._bundles.get(index)
        if data is None:
            tile = Tile(0, index)
            data = await self._read(lambda: self._store.bundle(index))
            if data is None:
                raise DamageError(f"tiles.db lacks a bundle; {_REBUILD}")
            check_bundle(index, data, (await self._rows([tile]))[tile][0])
        _keep(self._bundles, index, data, MAX_BUNDLES)
        return data

    async def _read(self, work: Callable[[], V]) -> V:
        """Read from the tile store on its thread; a failure is of this answer, and nothing that stops the log."""
        try:
            return await self._thread.run(lambda _: work())
        except sqlite3.Error as error:
            raise DamageError(f"tiles.db cannot be read: {error}") from error


_REBUILD = "it is rebuilt when it is removed and the server started"


def _expand(tile: Tile, hashes: list[bytes], parent: bytes) -> Rows:
    """Return the rows of a full tile that hashes to its parent."""
    rows = [hashes]
    while len(rows) < TILE_HEIGHT:
        below = rows[-1]
        rows.append([node_hash(left, right) for left, right in zip(below[::2], below[1::2], strict=True)])
    if node_hash(*rows[-1]) != parent:
        raise DamageError(f"{tile.path} in tiles.db is damaged; {_REBUILD}")
    return rows


def check_bundle(index: int, data: bytes, leaf_hashes: Sequence[bytes]) -> None:
    """Check that a stored bundle is of the entries that have these leaf hashes.

    Raises:
        DamageError: It is not.
    """
    try:
        entries = parse_bundle(gunzip(data), TILE_WIDTH)
    except FormatError as error:
        raise DamageError(f"bundle {index} in tiles.db is damaged: {error}; {_REBUILD}") from error
    if [leaf_hash(entry) for entry in entries] != leaf_hashes:
        raise DamageError(f"bundle {index} in tiles.db is damaged; {_REBUILD}")


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Keep a value, and drop the one that was not used for longest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


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
    """Return the hashes of full tiles that a store must have, not checked; for the store's thread.

    Raises:
        DamageError: One is missing, or has another length.
    """
    found = store.tiles(tiles)
    if any(data is None for data in found):
        raise DamageError(f"tiles.db lacks a tile; {_REBUILD}")
    try:
        return [parse_tile(data, TILE_WIDTH) for data in found if data is not None]
    except FormatError as error:
        raise DamageError(f"a tile in tiles.db is damaged: {error}; {_REBUILD}") from error
