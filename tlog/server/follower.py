"""The follower: derives full tiles and bundles from what is signed, and keeps them in the tile store.

Off the commit path. It trims the overlay only after its own transaction, so that everything visible stays visible.
Start-up catches up with the same two functions.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from isal import isal_zlib

from tlog.server.errors import DamageError
from tlog.server.overlay import first_tile
from tlog.server.storage.tiles import Derived
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    import asyncio

    from tlog.server.leaves import LeafIndex
    from tlog.server.overlay import Overlay
    from tlog.server.storage.database import Database
    from tlog.server.storage.tiles import TileStore

MAX_BUNDLES = 64
"""Most bundles in one transaction: about 5 MB, so that it is short and holds up nobody."""

MAX_BYTES = 8 << 20
"""Most bytes of entries in one transaction, where they are large; a bundle has 16 MB at most."""

GZIP_LEVEL = 1
"""isal's level: 2 and 3 cost more time than they save in transfer."""

_GZIP = 31  # zlib's wbits for the gzip container


def gzip(data: bytes) -> bytes:
    """Encode a bundle; the same bytes always give the same encoding."""
    return isal_zlib.compress(data, GZIP_LEVEL, _GZIP)


def gunzip(data: bytes) -> bytes:
    """Decode what `gzip` made.

    Raises:
        DamageError: It is something else.
    """
    reader = isal_zlib.decompressobj(_GZIP)
    try:
        decoded = reader.decompress(data)
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # isal's stub takes the class for an instance
        raise DamageError(f"a bundle in tiles.db is damaged: {error}") from error
    if not reader.eof or reader.unused_data:
        raise DamageError("a bundle in tiles.db is damaged: its gzip is cut off, or has bytes behind its end")
    return decoded


def derive(overlay: Overlay) -> Derived | None:
    """Return the next full tiles and bundles above the position, not yet encoded; None if none is full."""
    position = overlay.position + overlay.full_bundles(MAX_BUNDLES, MAX_BYTES) * TILE_WIDTH
    if position == overlay.position:
        return None
    levels = range((position.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT)
    tiles = [
        Tile(level, index)
        for level in levels
        for index in range(first_tile(overlay.position, level), first_tile(position, level))
    ]
    bundles = [Bundle(index) for index in range(overlay.position // TILE_WIDTH, position // TILE_WIDTH)]
    return Derived(
        [(tile, _present(overlay.tile(tile))) for tile in tiles],
        [(bundle, _present(overlay.bundle(bundle))) for bundle in bundles],
        position,
    )


def _present(data: bytes | None) -> bytes:
    """Return what the overlay must have; a hole would become one in the tile store."""
    if data is None:
        raise DamageError("the overlay lacks a tile or a bundle above its position")
    return data


def encoded(derived: Derived) -> Derived:
    """Return the same with its bundles gzip-encoded; for the thread of the tile store."""
    return Derived(derived.tiles, [(bundle, gzip(data)) for bundle, data in derived.bundles], derived.size)


class Follower:
    """The loop that keeps the tile store up with the signed head. Owned by the event loop."""

    def __init__(self, thread: Database, store: TileStore, overlay: Overlay, leaves: LeafIndex) -> None:
        """Follow an overlay into a tile store.

        Args:
            thread: The thread that owns the store.
            store: The writer's side of the tile store.
            overlay: The newest part of the tree; trimmed here and nowhere else.
            leaves: The leaf index, on the same thread.
        """
        self._thread = thread
        self._store = store
        self._overlay = overlay
        self._leaves = leaves

    async def catch_up(self) -> None:
        """Write every tile and bundle that is full, and drop it from the overlay once it is written."""
        while (derived := derive(self._overlay)) is not None:
            await self._thread.run(partial(self._write, derived))
            self._overlay.trim(derived.size)
            await self._leaves.follow(derived.size)

    async def run(self, advanced: asyncio.Event) -> None:
        """Catch up whenever the head has advanced, and tend to the leaf index in between, until cancelled."""
        while True:
            while not advanced.is_set() and await self._leaves.merge():
                pass
            await advanced.wait()
            advanced.clear()
            await self.catch_up()
            await self._leaves.merge()

    def _write(self, derived: Derived, _: object) -> None:
        self._store.write(encoded(derived))
