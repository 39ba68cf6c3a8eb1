"""Reading the visible tree: what is above the follower's position from memory, the rest from the tile store.

Whoever makes a proof of what is read here verifies the proof, too.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tlog.errors import FormatError, NotFoundError
from tlog.merkle import HASH_SIZE, leaf_hash
from tlog.server.errors import DamageError
from tlog.server.expanded import expand, hash_in
from tlog.server.follower import gunzip, gzip
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, cut_bundle, parse_bundle, parse_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tlog.merkle import Node
    from tlog.server.overlay import Overlay
    from tlog.server.storage.database import Database
    from tlog.server.storage.tiles import TileStore

K = TypeVar("K")
V = TypeVar("V")

Address: TypeAlias = tuple[int, int]
"""Level and index of a full tile."""

MAX_TILES = 4096
"""Most full tiles kept expanded: 64 MiB, what proofs of the million entries that are asked for most need."""

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
        self._tiles: OrderedDict[Address, bytes] = OrderedDict()  # expanded
        self._bundles: OrderedDict[int, bytes] = OrderedDict()

    def hashes_now(self, nodes: Sequence[Node]) -> list[bytes] | None:
        """Return the hashes of complete nodes; None where one has to be read from the tile store first."""
        hash_of, kept = self._overlay.hash_of, self._tiles
        found: list[bytes] = []
        last: Address | None = None
        expanded = b""
        for node in nodes:
            value = hash_of(node)
            if value is None:
                address, height, index = _place(node)
                if address != last:
                    if address not in kept:
                        return None
                    expanded, last = kept[address], address
                    kept.move_to_end(address)
                value = hash_in(expanded, height, index)
            found.append(value)
        return found

    def expanded_now(self, index: int) -> bytes | None:
        """Return a full tile of leaf hashes expanded; None where it has to be read first, or is in the overlay."""
        expanded = self._tiles.get((0, index))
        if expanded is not None:
            self._tiles.move_to_end((0, index))
        return expanded

    async def hashes(self, nodes: Sequence[Node]) -> list[bytes]:
        """Return the hashes of complete nodes.

        Raises:
            DamageError: The tile store lacks a tile that it should have, or holds a damaged one.
        """
        found = [self._overlay.hash_of(node) for node in nodes]
        missing: dict[Address, list[tuple[int, int, int]]] = {}
        for at, value in enumerate(found):
            if value is None:
                address, height, index = _place(nodes[at])
                missing.setdefault(address, []).append((at, height, index))
        addresses = list(missing)
        for start in range(0, len(addresses), MAX_AT_ONCE):
            tiles = await self._expanded(addresses[start : start + MAX_AT_ONCE])
            for address, expanded in tiles.items():
                for at, height, index in missing[address]:
                    found[at] = hash_in(expanded, height, index)
            if start:
                await asyncio.sleep(0)  # where all of them are kept, nothing else has let others have a turn
        return [value for value in found if value is not None]

    async def _expanded(self, addresses: Sequence[Address]) -> dict[Address, bytes]:
        """Return full tiles below the position, read in one batch where they are not kept, and checked."""
        tiles = {address: self._tiles[address] for address in addresses if address in self._tiles}
        missing = [address for address in addresses if address not in tiles]
        if missing:
            read = await self._read(lambda: stored_tiles(self._store, [Tile(*address) for address in missing]))
            parents = await self.hashes([(TILE_HEIGHT * (level + 1), index) for level, index in missing])
            for address, data, parent in zip(missing, read, parents, strict=True):
                tiles[address], found = expand(data)
                if found != parent:
                    raise DamageError(f"{Tile(*address).path} in tiles.db is damaged; {_REBUILD}")
        for address in addresses:
            _keep(self._tiles, address, tiles[address], MAX_TILES)
        return tiles

    def tile_now(self, tile: Tile) -> bytes | None:
        """Return a tile of any width; None where it has to be read from the tile store first, or is not visible."""
        data = self._overlay.tile(tile)
        if data is None:
            expanded = self._tiles.get((tile.level, tile.index))
            data = None if expanded is None else expanded[: HASH_SIZE * tile.width]
        return data

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
            address = (tile.level, tile.index)
            data = (await self._expanded([address]))[address][: HASH_SIZE * tile.width]
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
            data = await self._read(lambda: self._store.bundle(index))
            if data is None:
                raise DamageError(f"tiles.db lacks a bundle; {_REBUILD}")
            expanded = (await self._expanded([(0, index)]))[0, index]
            check_bundle(index, data, parse_tile(expanded[: HASH_SIZE * TILE_WIDTH], TILE_WIDTH))
        _keep(self._bundles, index, data, MAX_BUNDLES)
        return data

    async def _read(self, work: Callable[[], V]) -> V:
        """Read from the tile store on its thread; a failure is of this answer, and nothing that stops the log."""
        try:
            return await self._thread.run(lambda _: work())
        except sqlite3.Error as error:
            raise DamageError(f"tiles.db cannot be read: {error}") from error


_REBUILD = "it is rebuilt when it is removed and the server started"


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


def _place(node: Node) -> tuple[Address, int, int]:
    """Return the full tile that holds a node, the node's height in it, and its index in the row of that height."""
    level, index = node
    tile_level, height = divmod(level, TILE_HEIGHT)
    bits = TILE_HEIGHT - height
    return (tile_level, index >> bits), height, index & (1 << bits) - 1


def stored_hashes(store: TileStore, tiles: Sequence[Tile]) -> list[list[bytes]]:
    """Return the hashes of full tiles that a store must have, not checked; for the store's thread.

    Raises:
        DamageError: One is missing, or has another length.
    """
    return [parse_tile(data, TILE_WIDTH) for data in stored_tiles(store, tiles)]


def stored_tiles(store: TileStore, tiles: Sequence[Tile]) -> list[bytes]:
    """Return full tiles that a store must have, not checked; for the store's thread.

    Raises:
        DamageError: One is missing, or has another length.
    """
    found = [data for data in store.tiles(tiles) if data is not None]
    if len(found) < len(tiles):
        raise DamageError(f"tiles.db lacks a tile; {_REBUILD}")
    if any(len(data) != HASH_SIZE * TILE_WIDTH for data in found):
        raise DamageError(f"a tile in tiles.db is damaged: it has another length; {_REBUILD}")
    return found
