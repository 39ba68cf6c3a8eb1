"""Bringing derived data up to the signed head, when a log is opened: tiles, bundles and the leaf index.

1  what tiles.db holds is opened, and the entries above it are read, hashed and followed like new ones
2  the tree must have the root of the signed head; where it has not, everything is built anew beside it (`rebuild`)
3  the newest tiles fit the level above, and the newest entries their tiles

Reading goes by parts of bounded size, so that a machine that could write a log can open it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tlog.damage import fold
from tlog.edge import Edge, extend
from tlog.errors import FormatError, TreeheadError
from tlog.merkle import leaf_hash
from tlog.server.disk import remove_database, sync
from tlog.server.errors import DamagedFileError, DamageError, StartRefusedError
from tlog.server.follower import Follower
from tlog.server.leaves import LeafIndex
from tlog.server.overlay import Overlay, first_tile
from tlog.server.rebuild import Builder
from tlog.server.storage.database import Database, running
from tlog.server.storage.leaves import RUN, LeafStore
from tlog.server.storage.tiles import TileStore, create_tiles, open_tiles
from tlog.server.storage.wal import check_tiles
from tlog.server.tree import stored_hashes
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Tile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tlog.server.storage import Segment, SignedHead, Storage

CHUNK = 1 << 14
"""Entries that are read and hashed at a time while catching up: 64 bundles, one transaction of the follower."""

CHUNK_BYTES = 16 << 20
"""Bytes after which a part that is read ends, where entries are large."""

RECENT = 1 << 14
"""Entries below the tiles that are re-hashed at each start: 20 ms of work, and the part most likely to be torn."""

LAG = 2 * RUN
"""Entries behind which a log that ran can be; runs of the leaf index that so few bring are merged once it is served."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Source:
    """What derived data is made from.

    Attributes:
        thread: The thread that owns the storage.
        storage: The entries.
        head: The signed head.
    """

    thread: Database
    storage: Storage
    head: SignedHead


@dataclass(frozen=True, slots=True)
class Derived:
    """The tree up to the signed head, in memory and in tiles.db.

    Attributes:
        edge: Its right edge.
        overlay: Its newest part.
        leaves: Its leaf index.
        follower: What moves tiles and leaf index on.
    """

    edge: Edge
    overlay: Overlay
    leaves: LeafIndex
    follower: Follower


@asynccontextmanager
async def bring_up(source: Source, path: Path, *, anew: bool = False) -> AsyncIterator[Derived]:
    """Bring derived data up to the signed head: what is there, or else new data, which replaces it once it fits.

    Args:
        source: The entries.
        path: tiles.db.
        anew: Whether what is there is not to be believed, however well it fits.

    Raises:
        StartRefusedError: The entries do not have the root of the signed head, or are damaged.
    """
    async with nullcontext() if anew else _brought_up(source, path) as derived:
        if derived is not None:
            yield derived
            return
    await _rebuild(source, path)
    async with _brought_up(source, path) as derived:
        if derived is None:
            raise StartRefusedError("tiles.db changed while it was opened; start again")
        yield derived


@asynccontextmanager
async def _brought_up(source: Source, path: Path) -> AsyncIterator[Derived | None]:
    """Open tiles and bring them up to the signed head; None if they are missing, damaged, or not of its tree."""
    try:
        check_tiles(path)
        thread = await Database.open(partial(open_tiles, path)) if path.exists() else None  # noqa: ASYNC240 — nothing else runs yet
    except DamagedFileError:
        thread = None
    except DamageError as error:
        log.warning("tiles.damaged", reason=str(error))
        thread = None
    if thread is None:
        yield None
        return
    try:
        yield await _bring_up(source, thread)
    finally:
        await thread.close()


async def _rebuild(source: Source, path: Path) -> None:
    """Build tiles from the entries beside the old ones, which may hold the only good copy until the new ones fit."""
    fresh = path.with_name(f"{path.name}.new")
    remove_database(fresh)
    if source.head.size > TILE_WIDTH:  # a new log has none to build
        log.info("tiles.rebuilding", of=source.head.size)
    async with running(partial(create_tiles, fresh)) as thread:
        try:
            await _build(source, thread)
        except sqlite3.Error as error:
            raise _unusable(error) from error
        derived = await _bring_up(source, thread)
        if derived is None:
            raise StartRefusedError(
                f"the entries of log.db do not have the root of the signed head {source.head.size}: an entry was "
                "changed. Restore the right log.db, or bring the entries back with: tlogd repair --from URL|DIR"
            )
        while await derived.leaves.merge():
            pass
    await asyncio.to_thread(sync, fresh)
    remove_database(path)
    fresh.rename(path)


async def _build(source: Source, thread: Database) -> None:
    """Fill an empty store from all entries."""
    size = source.head.size
    builder = await thread.run(lambda connection: Builder(TileStore(connection), LeafStore(connection), size))
    while builder.size < size:
        segments = await source.thread.run(partial(_read_segments, source, builder.size))
        try:
            await thread.run(partial(_take, builder, segments))
        except FormatError as error:
            raise _damaged(error) from error
        if size > CHUNK:
            log.info("tiles.building", entries=builder.size, of=size)


def _take(builder: Builder, segments: list[Segment], _: object) -> None:
    builder.take(segments)


async def _bring_up(source: Source, thread: Database) -> Derived | None:
    """Bring the tiles of a store up to the signed head; None if they are damaged, or not of its tree."""
    try:
        store = await thread.run(TileStore)
        overlay = await thread.run(partial(_open_overlay, store))
        position = overlay.position
        leaves = await _open_leaves(thread, store, position)
        follower = Follower(thread, store, overlay, leaves)
        edge = await _catch_up(source, overlay, leaves, follower)
        if (edge.size, edge.root()) != (source.head.size, source.head.root):
            return None
        await thread.run(partial(_check_recent_tiles, store, overlay))
        await _check_recent(source, thread, store, position)
    except sqlite3.OperationalError as error:
        raise _unusable(error) from error
    except (DamageError, FormatError, sqlite3.DatabaseError) as error:
        log.warning("tiles.damaged", reason=str(error))
        return None
    return Derived(edge, overlay, leaves, follower)


async def _open_leaves(thread: Database, store: TileStore, position: int) -> LeafIndex:
    """Open the leaf index, with the newest entries that it has in memory: their leaf hashes are in the tiles."""
    leaf_store = await thread.run(LeafStore)
    leaves = LeafIndex(thread, leaf_store, await thread.run(lambda _: leaf_store.runs()))
    if not 0 <= position - leaves.position < 2 * RUN:
        raise DamageError("the leaf index of tiles.db does not go as far as its tiles")
    tiles = [Tile(0, index) for index in range(leaves.position // TILE_WIDTH, position // TILE_WIDTH)]
    for tile, row in zip(tiles, await thread.run(lambda _: stored_hashes(store, tiles)), strict=True):
        leaves.extend(tile.index * TILE_WIDTH, row)
    return leaves


async def _catch_up(source: Source, overlay: Overlay, leaves: LeafIndex, follower: Follower) -> Edge:
    """Read the entries from the position of the tiles up to the signed head, and return the edge of their tree."""
    start, size = overlay.position, source.head.size
    peaks = [overlay.hash_of(node) for node in Edge(start).nodes()]
    edge = Edge(start, tuple(peak for peak in peaks if peak is not None))
    if len(edge.peaks) != len(peaks):
        raise DamageError("the tiles of tiles.db do not reach its position")
    while edge.size < size:
        entries = await source.thread.run(partial(_read_entries, source, edge.size, min(size, edge.size + CHUNK)))
        leaf_hashes = [leaf_hash(entry) for entry in entries]
        growth = extend(edge, leaf_hashes)
        overlay.extend(growth, entries)
        leaves.extend(edge.size, leaf_hashes)
        edge = growth.new
        await follower.catch_up()
        while size - start > LAG and await leaves.merge():
            pass
        if size - start > CHUNK:
            log.info("tiles.building", entries=edge.size, of=size)
    return edge


def _open_overlay(store: TileStore, _: object) -> Overlay:
    """Begin an overlay at the position of a store: partial tiles of upper levels follow from the full ones below."""
    position = store.position()
    partials = {}
    for level in range(1, (position.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT):
        below = range(first_tile(position, level) * TILE_WIDTH, position >> TILE_HEIGHT * level)
        partials[level] = _roots(store, [Tile(level - 1, index) for index in below])
    return Overlay(position, partials)


def _roots(store: TileStore, tiles: Sequence[Tile]) -> list[bytes]:
    """Return the root over each of some full tiles."""
    return [fold(b"".join(row)) for row in stored_hashes(store, tiles)]


def _read_entries(source: Source, start: int, end: int, _: object) -> list[bytes]:
    try:
        return source.storage.entries(start, end, CHUNK_BYTES)
    except (TreeheadError, sqlite3.Error) as error:
        raise _damaged(error) from error


def _read_segments(source: Source, start: int, _: object) -> list[Segment]:
    try:
        return source.storage.segments_from(start, source.head.size, CHUNK, CHUNK_BYTES)
    except (TreeheadError, sqlite3.Error) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> StartRefusedError:
    return StartRefusedError(f"log.db is damaged: {error}; see: tlogd repair --from URL|DIR")


def _unusable(error: Exception) -> StartRefusedError:
    """Return what is said of a full disk, or one that fails."""
    return StartRefusedError(f"tiles.db cannot be used: {error}")


def _recent_tiles(position: int) -> list[Tile]:
    """Return the addresses of the newest full tiles of leaf hashes below a position."""
    return [Tile(0, index) for index in range(max(0, position - RECENT) // TILE_WIDTH, position // TILE_WIDTH)]


def _check_recent_tiles(store: TileStore, overlay: Overlay, _: object) -> None:
    """Check the newest tiles against the level above, so that a damaged tile is never taken for a changed entry."""
    tiles = _recent_tiles(overlay.position)
    for tile, root in zip(tiles, _roots(store, tiles), strict=True):
        wanted = overlay.hash_of((TILE_HEIGHT, tile.index))
        if wanted is None:
            (above,) = stored_hashes(store, [Tile(1, tile.index // TILE_WIDTH)])
            wanted = above[tile.index % TILE_WIDTH]
        if root != wanted:
            raise DamageError(f"{tile.path} in tiles.db is damaged")


async def _check_recent(source: Source, thread: Database, store: TileStore, position: int) -> None:
    """Check the newest entries: tiles lead to the signed root, so where an entry differs, the entry was changed."""
    start = checked = max(0, position - RECENT)
    tiles = _recent_tiles(position)
    wanted = [value for row in await thread.run(lambda _: stored_hashes(store, tiles)) for value in row]
    while checked < position:
        found = await source.thread.run(partial(_hash_entries, source, checked, position))
        for index, (leaf, right) in enumerate(zip(found, wanted[checked - start :], strict=False), checked):
            if leaf != right:
                raise StartRefusedError(
                    f"entry {index} in log.db is not the one in the signed tree: it was changed. "
                    "Restore the right log.db, or bring the entries back with: tlogd repair --from URL|DIR"
                )
        checked += len(found)


def _hash_entries(source: Source, start: int, end: int, _: object) -> list[bytes]:
    """Return the leaf hashes of entries from an index on."""
    return [leaf_hash(entry) for entry in _read_entries(source, start, end, None)]
