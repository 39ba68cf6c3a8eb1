"""Opening a log: every check between the files on a disk and the first signature.

S is the head in the checkpoint store, D the data in log.db.

    1  take the lock of the data directory
    2  the key belongs to the origin and the vkey of the configuration
    3  the schemas are the ones this version writes
    4  S exists, and its note says what its columns say, under the pinned vkey
    5  D is not smaller than S; S is a segment boundary of D with the root of S; D is ahead by one segment at most
    6  derived tiles are brought up to S, or rebuilt where they do not fit; the tree of the entries has the root of S
    7  the newest entries below the tiles are the ones that the tiles hold
    8  a segment ahead of S goes on at step 5 of its commit
    9  the idempotency keys of the last 24 hours

A log that is opened read-only needs no key: steps 2 and 8 are left out, and nothing but derived data is written.

Everything that does not fit refuses, with exit code 3 and what to do; nothing is repaired here but what is derived.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge, extend
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.merkle import leaf_hash, tree_root
from tlog.policy import Policy
from tlog.server.commit import Commit
from tlog.server.errors import CommitError, DamagedFileError, DamageError, StartRefusedError
from tlog.server.follower import Follower
from tlog.server.idempotency import KEY_MS, Keys, parse_key_records
from tlog.server.leaves import LeafIndex
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.overlay import Overlay, first_tile
from tlog.server.signer import read_log_key
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.database import Database
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.segments import SqliteStorage, open_segments
from tlog.server.storage.tiles import TileStore, open_tiles
from tlog.server.tree import stored_hashes
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Tile, parse_bundle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tlog.note import Signer
    from tlog.server.config import Config
    from tlog.server.storage import Segment, SignedHead

CHUNK = 1 << 14
"""Entries that are read and hashed at a time while catching up: 64 bundles, one transaction of the follower."""

RECENT = 1 << 14
"""Entries below the tiles that are re-hashed at each start: 20 ms of work, and the part most likely to be torn."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Opened:
    """A log whose files fit together.

    Attributes:
        writer: The thread that owns the commit.
        commit: The end of the log; None where it is opened read-only.
        head: The signed head.
        overlay: The newest part of the tree.
        leaves: Its leaf index.
        follower: What derives tiles and leaf index.
        reader: A thread for reading them.
        tiles: The tile store on that thread.
        leaf_store: The leaf index on that thread.
        keys: The idempotency keys of the last 24 hours.
    """

    writer: Database
    commit: Commit | None
    head: SignedHead
    overlay: Overlay
    leaves: LeafIndex
    follower: Follower
    reader: Database
    tiles: TileStore
    leaf_store: LeafStore
    keys: Keys


@dataclass(frozen=True, slots=True)
class _Truth:
    """Both stores, after step 5."""

    storage: SqliteStorage
    checkpoints: SqliteCheckpointStore
    head: SignedHead
    tail: Segment | None
    last_ms: int


@dataclass(frozen=True, slots=True)
class _Derived:
    """The tree up to the signed head, in memory and in tiles.db."""

    edge: Edge
    overlay: Overlay
    leaves: LeafIndex
    follower: Follower


@asynccontextmanager
async def open_parts(config: Config, now_ms: int, *, read_only: bool = False) -> AsyncIterator[Opened]:
    """Open the log of a configuration, and close its files afterwards.

    Args:
        config: The configuration.
        now_ms: Milliseconds since 1970.
        read_only: Whether nothing is to be appended.

    Raises:
        StartRefusedError: Something does not fit; the message says what, and what to do.
    """
    with Lock(config.path(LOCK_NAME)):
        signer = None if read_only else _read_signer(config)
        async with _database(partial(open_segments, config.path("log.db"))) as writer:
            truth = await writer.run(partial(_open_truth, config, signer))
            try:
                async with _derived(config, writer, truth) as derived:
                    commit, head = await writer.run(partial(_resume, truth, signer, derived))
                    keys = await writer.run(partial(_read_keys, truth, config.limits.key_bytes, now_ms, head.size))
                    async with _database(partial(open_tiles, config.path("tiles.db"))) as reader:
                        yield Opened(
                            writer,
                            commit,
                            head,
                            derived.overlay,
                            derived.leaves,
                            derived.follower,
                            reader,
                            await reader.run(TileStore),
                            await reader.run(LeafStore),
                            keys,
                        )
            finally:
                await writer.run(lambda _: truth.checkpoints.close())


@asynccontextmanager
async def _database(connect: Callable[[], sqlite3.Connection]) -> AsyncIterator[Database]:
    database = await Database.open(connect)
    try:
        yield database
    finally:
        await database.close()


def _read_signer(config: Config) -> Signer:
    """Take step 2."""
    signer = read_log_key(config)
    if signer.verifier.name != config.origin or signer.verifier.vkey != config.vkey:
        raise StartRefusedError(
            f"the key is the one of {signer.verifier.name!r}, and not that of the origin and vkey in the configuration"
        )
    return signer


def _open_truth(config: Config, signer: Signer | None, connection: sqlite3.Connection) -> _Truth:
    """Take steps 3 to 5, on the database thread; only who may sign takes the log over."""
    storage = SqliteStorage(connection)
    checkpoints = SqliteCheckpointStore(open_checkpoints(config.path(config.checkpoints)))
    try:
        head = checkpoints.acquire(config.origin) if signer else checkpoints.latest(config.origin)
        if head is None:
            raise StartRefusedError(f"the checkpoint store {config.checkpoints} knows no log named {config.origin!r}")
        _check_head(head, config.vkey)
        tail = _check_data(storage, head)
        newest = storage.segment_at(storage.size() - 1)
    except (TreeheadError, sqlite3.Error) as error:
        checkpoints.close()
        if isinstance(error, StartRefusedError):
            raise
        raise StartRefusedError(f"the log cannot be read: {error}; see: tlogd repair") from error
    return _Truth(storage, checkpoints, head, tail, newest.time_ms if newest else 0)


def _check_head(head: SignedHead, vkey: str) -> None:
    """Take step 4."""
    try:
        found = Policy.of_log(vkey).open_checkpoint(head.note)
    except TreeheadError as error:
        raise StartRefusedError(f"the checkpoint store holds a head that does not verify: {error}") from error
    if found != Checkpoint(head.origin, head.size, head.root):
        raise StartRefusedError("the checkpoint store contradicts itself: its note is of another head")


def _check_data(storage: SqliteStorage, head: SignedHead) -> Segment | None:
    """Take step 5, and return the segment that is stored and not signed, if there is one."""
    size = storage.size()
    if size < head.size:
        raise StartRefusedError(
            f"log.db holds {size} entries, but {head.size} are signed: entries are missing. "
            "Was it restored from a backup? Bring them back with: tlogd repair"
        )
    signed = storage.segment_at(head.size - 1)
    if signed is None or signed.end != head.size:
        raise StartRefusedError(f"the signed size {head.size} is within a commit of log.db: they are of different logs")
    if signed.root != head.root:
        raise StartRefusedError(
            f"log.db has another root at size {head.size} than the signed head: its entries are not the ones signed. "
            "Restore the right log.db, or see: tlogd repair"
        )
    tail = storage.segment_at(head.size)
    if size > (tail.end if tail else head.size):
        raise StartRefusedError(
            f"log.db is ahead of the signed head {head.size} by more than one commit: was checkpoints.db restored? "
            "A head that was signed must never be taken back"
        )
    return tail


@asynccontextmanager
async def _derived(config: Config, writer: Database, truth: _Truth) -> AsyncIterator[_Derived]:
    """Take steps 6 and 7: with the tiles that are there, or else with new ones, which replace them once they fit."""
    path = config.path("tiles.db")
    async with _brought_up(writer, truth, path) as derived:
        if derived is not None:
            yield derived
            return
    await _rebuild(writer, truth, path)
    async with _brought_up(writer, truth, path) as derived:
        if derived is None:
            raise StartRefusedError("tiles.db changed while it was opened; start again")
        yield derived


@asynccontextmanager
async def _brought_up(writer: Database, truth: _Truth, path: Path) -> AsyncIterator[_Derived | None]:
    """Open tiles and bring them up to the signed head; None if they are missing, damaged, or not of its tree."""
    try:
        thread = await Database.open(partial(open_tiles, path)) if path.exists() else None  # noqa: ASYNC240 — nothing else runs yet
    except DamagedFileError:
        thread = None
    if thread is None:
        yield None
        return
    try:
        yield await _bring_up(writer, truth, thread)
    finally:
        await thread.close()


async def _rebuild(writer: Database, truth: _Truth, path: Path) -> None:
    """Build tiles from the entries beside the old ones, which may hold the only good copy until the new ones fit."""
    fresh = path.with_name(f"{path.name}.new")
    _remove(fresh)
    if truth.head.size > TILE_WIDTH:  # a new log has none to build
        log.info("tiles.rebuilding", of=truth.head.size)
    async with _database(partial(open_tiles, fresh, create=True)) as thread:
        if await _bring_up(writer, truth, thread) is None:
            raise StartRefusedError(
                f"the entries of log.db do not have the root of the signed head {truth.head.size}: an entry was "
                "changed. Restore the right log.db, or see: tlogd repair"
            )
    _remove(path)
    fresh.rename(path)


def _remove(path: Path) -> None:
    """Remove derived tiles, with what SQLite keeps beside them."""
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


async def _bring_up(writer: Database, truth: _Truth, thread: Database) -> _Derived | None:
    """Bring the tiles of a store up to the signed head; None if they are damaged, or not of its tree."""
    try:
        store = await thread.run(TileStore)
        overlay = await thread.run(partial(_open_overlay, store))
        position = overlay.position
        leaves = await _open_leaves(thread, store, position)
        follower = Follower(thread, store, overlay, leaves)
        edge = await _catch_up(writer, truth, overlay, leaves, follower)
        if (edge.size, edge.root()) != (truth.head.size, truth.head.root):
            return None
        await thread.run(partial(_check_recent_tiles, store, overlay))
        await _check_recent(writer, truth, thread, store, position)
    except sqlite3.OperationalError as error:
        raise StartRefusedError(f"tiles.db cannot be used: {error}") from error  # a full disk, or one that fails
    except (DamageError, FormatError, sqlite3.DatabaseError) as error:
        log.warning("tiles.damaged", reason=str(error))
        return None
    return _Derived(edge, overlay, leaves, follower)


async def _open_leaves(thread: Database, store: TileStore, position: int) -> LeafIndex:
    """Open the leaf index, with the newest entries that it has in memory: their leaf hashes are in the tiles."""
    leaf_store = await thread.run(LeafStore)
    await thread.run(lambda _: leaf_store.sweep())
    leaves = LeafIndex(thread, leaf_store, await thread.run(lambda _: leaf_store.runs()))
    if leaves.position > position:
        raise DamageError("the leaf index of tiles.db goes further than its tiles")
    tiles = [Tile(0, index) for index in range(leaves.position // TILE_WIDTH, position // TILE_WIDTH)]
    for tile, row in zip(tiles, await thread.run(lambda _: stored_hashes(store, tiles)), strict=True):
        leaves.extend(tile.index * TILE_WIDTH, row)
    return leaves


async def _catch_up(writer: Database, truth: _Truth, overlay: Overlay, leaves: LeafIndex, follower: Follower) -> Edge:
    """Read the entries from the position of the tiles up to the signed head, and return the edge of their tree."""
    start, size = overlay.position, truth.head.size
    peaks = [overlay.hash_of(node) for node in Edge(start).nodes()]
    edge = Edge(start, tuple(peak for peak in peaks if peak is not None))
    if len(edge.peaks) != len(peaks):
        raise DamageError("the tiles of tiles.db do not reach its position")
    while edge.size < size:
        entries = await writer.run(partial(_read_entries, truth, edge.size, min(size, edge.size + CHUNK)))
        leaf_hashes = [leaf_hash(entry) for entry in entries]
        growth = extend(edge, leaf_hashes)
        overlay.extend(growth, entries)
        leaves.extend(edge.size, leaf_hashes)
        edge = growth.new
        await follower.catch_up()
        if size - start > CHUNK:
            log.info("tiles.building", entries=edge.size, of=size)
    return edge


def _open_overlay(store: TileStore, _: object) -> Overlay:
    """Begin an overlay at the position of a store: partial tiles of upper levels follow from the full ones below."""
    position = store.position()
    partials = {}
    for level in range(1, (position.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT):
        below = range(first_tile(position, level) * TILE_WIDTH, position >> TILE_HEIGHT * level)
        partials[level] = [tree_root(row) for row in stored_hashes(store, [Tile(level - 1, index) for index in below])]
    return Overlay(position, partials)


def _read_entries(truth: _Truth, start: int, end: int, _: object) -> list[bytes]:
    try:
        return truth.storage.entries(start, end)
    except (TreeheadError, sqlite3.Error) as error:
        raise StartRefusedError(f"log.db is damaged: {error}; see: tlogd repair") from error


def _recent_tiles(position: int) -> list[Tile]:
    """Return the addresses of the newest full tiles of leaf hashes below a position."""
    return [Tile(0, index) for index in range(max(0, position - RECENT) // TILE_WIDTH, position // TILE_WIDTH)]


def _check_recent_tiles(store: TileStore, overlay: Overlay, _: object) -> None:
    """Check the newest tiles against the level above, so that a damaged tile is never taken for a changed entry."""
    tiles = _recent_tiles(overlay.position)
    for tile, row in zip(tiles, stored_hashes(store, tiles), strict=True):
        wanted = overlay.hash_of((TILE_HEIGHT, tile.index))
        if wanted is None:
            (above,) = stored_hashes(store, [Tile(1, tile.index // TILE_WIDTH)])
            wanted = above[tile.index % TILE_WIDTH]
        if tree_root(row) != wanted:
            raise DamageError(f"{tile.path} in tiles.db is damaged")


async def _check_recent(writer: Database, truth: _Truth, thread: Database, store: TileStore, position: int) -> None:
    """Take step 7: tiles lead to the signed root, so where an entry differs from its tile, the entry was changed."""
    start = max(0, position - RECENT)
    entries = await writer.run(partial(_read_entries, truth, start, position))
    tiles = _recent_tiles(position)
    wanted = [value for row in await thread.run(lambda _: stored_hashes(store, tiles)) for value in row]
    for index, (entry, value) in enumerate(zip(entries, wanted, strict=True), start):
        if leaf_hash(entry) != value:
            raise StartRefusedError(
                f"entry {index} in log.db is not the one in the signed tree: it was changed. "
                "Restore the right log.db, or see: tlogd repair"
            )


def _resume(truth: _Truth, signer: Signer | None, derived: _Derived, _: object) -> tuple[Commit | None, SignedHead]:
    """Take step 8, on the database thread; what is derived is not shared with anyone yet."""
    if signer is None:
        return None, truth.head
    commit = Commit(truth.storage, truth.checkpoints, signer, truth.head, derived.edge, truth.last_ms)
    if truth.tail is None:
        return commit, truth.head
    try:
        entries = parse_bundle(truth.tail.entries, truth.tail.count)
        leaf_hashes = [leaf_hash(entry) for entry in entries]
        committed = commit.finish(leaf_hashes)
    except FormatError as error:
        raise StartRefusedError(
            f"the newest commit was not signed, and cannot be: {error}; "
            "it can be removed with: tlogd repair --discard-unsigned"
        ) from error
    except (CommitError, VerificationError) as error:
        raise StartRefusedError(f"the newest commit was not signed, and cannot be: {error}") from error
    derived.overlay.extend(committed.growth, entries)
    derived.leaves.extend(truth.head.size, leaf_hashes)
    log.info("log.resumed", entries=truth.tail.count, size=committed.head.size)
    return commit, committed.head


def _read_keys(truth: _Truth, max_bytes: int, now_ms: int, size: int, _: object) -> Keys:
    """Take step 9, on the database thread."""
    keys = Keys(max_bytes)
    try:
        for time_ms, records in truth.storage.keys(now_ms - KEY_MS, size):
            for record in parse_key_records(records):
                keys.put(record, time_ms)
    except (FormatError, sqlite3.Error) as error:
        raise StartRefusedError(f"log.db is damaged: {error}; see: tlogd repair") from error
    return keys
