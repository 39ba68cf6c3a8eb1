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

Everything that does not fit refuses, with exit code 3 and what to do; nothing is repaired here but what is derived.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import structlog

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge, extend
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.merkle import leaf_hash, tree_root
from tlog.policy import Policy
from tlog.server.commit import Commit
from tlog.server.errors import CommitError, DamagedFileError, DamageError, StartRefusedError
from tlog.server.follower import Follower
from tlog.server.overlay import Overlay, first_tile
from tlog.server.signer import read_key
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.database import Database
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
        commit: The end of the log.
        head: The signed head.
        overlay: The newest part of the tree.
        follower: What derives tiles from it.
        reader: A thread for reading tiles.
        tiles: The tile store on that thread.
    """

    writer: Database
    commit: Commit
    head: SignedHead
    overlay: Overlay
    follower: Follower
    reader: Database
    tiles: TileStore


@dataclass(frozen=True, slots=True)
class _Truth:
    """Both stores, after step 5."""

    storage: SqliteStorage
    checkpoints: SqliteCheckpointStore
    head: SignedHead
    tail: Segment | None
    last_ms: int


_Derived: TypeAlias = "tuple[Edge, Overlay, Follower]"
"""The tree up to the signed head, in memory and in tiles.db."""


@asynccontextmanager
async def open_parts(config: Config) -> AsyncIterator[Opened]:
    """Open the log of a configuration, and close its files afterwards.

    Raises:
        StartRefusedError: Something does not fit; the message says what, and what to do.
    """
    with _locked(config.path("lock")):
        signer = _read_signer(config)
        async with _database(partial(open_segments, config.path("log.db"))) as writer:
            truth = await writer.run(partial(_open_truth, config, signer))
            try:
                async with _derived(config, writer, truth) as (edge, overlay, follower):
                    commit, head = await writer.run(partial(_resume, truth, signer, edge, overlay))
                    async with _database(partial(open_tiles, config.path("tiles.db"))) as reader:
                        yield Opened(writer, commit, head, overlay, follower, reader, await reader.run(TileStore))
            finally:
                await writer.run(lambda _: truth.checkpoints.close())


class _locked:  # noqa: N801 — a context manager
    """Hold the lock of a data directory: one server, whatever else may fail to notice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartRefusedError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise StartRefusedError(f"another process uses this log: it holds {self._path}") from error

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


@asynccontextmanager
async def _database(connect: Callable[[], sqlite3.Connection]) -> AsyncIterator[Database]:
    database = await Database.open(connect)
    try:
        yield database
    finally:
        await database.close()


def _read_signer(config: Config) -> Signer:
    """Take step 2."""
    signer = read_key(config.path(config.key))
    if signer.verifier.name != config.origin or signer.verifier.vkey != config.vkey:
        raise StartRefusedError(
            f"the key is the one of {signer.verifier.name!r}, and not that of the origin and vkey in the configuration"
        )
    return signer


def _open_truth(config: Config, signer: Signer, connection: sqlite3.Connection) -> _Truth:
    """Take steps 3 to 5, on the database thread."""
    storage = SqliteStorage(connection)
    checkpoints = SqliteCheckpointStore(open_checkpoints(config.path(config.checkpoints)))
    try:
        head = checkpoints.acquire(config.origin)
        if head is None:
            raise StartRefusedError(f"the checkpoint store {config.checkpoints} knows no log named {config.origin!r}")
        _check_head(head, signer)
        tail = _check_data(storage, head)
        newest = storage.segment_at(storage.size() - 1)
    except (TreeheadError, sqlite3.Error) as error:
        checkpoints.close()
        if isinstance(error, StartRefusedError):
            raise
        raise StartRefusedError(f"the log cannot be read: {error}; see: tlogd repair") from error
    return _Truth(storage, checkpoints, head, tail, newest.time_ms if newest else 0)


def _check_head(head: SignedHead, signer: Signer) -> None:
    """Take step 4."""
    try:
        found = Policy((signer.verifier,)).open_checkpoint(head.note)
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
        follower = Follower(thread, store, overlay)
        edge = await _catch_up(writer, truth, overlay, follower)
        if (edge.size, edge.root()) != (truth.head.size, truth.head.root):
            return None
        await thread.run(partial(_check_recent_tiles, store, overlay))
        await _check_recent(writer, truth, thread, store, position)
    except sqlite3.OperationalError as error:
        raise StartRefusedError(f"tiles.db cannot be used: {error}") from error  # a full disk, or one that fails
    except (DamageError, FormatError, sqlite3.DatabaseError) as error:
        log.warning("tiles.damaged", reason=str(error))
        return None
    return edge, overlay, follower


async def _catch_up(writer: Database, truth: _Truth, overlay: Overlay, follower: Follower) -> Edge:
    """Read the entries from the position of the tiles up to the signed head, and return the edge of their tree."""
    start, size = overlay.position, truth.head.size
    peaks = [overlay.hash_of(node) for node in Edge(start).nodes()]
    edge = Edge(start, tuple(peak for peak in peaks if peak is not None))
    if len(edge.peaks) != len(peaks):
        raise DamageError("the tiles of tiles.db do not reach its position")
    while edge.size < size:
        entries = await writer.run(partial(_read_entries, truth, edge.size, min(size, edge.size + CHUNK)))
        growth = extend(edge, [leaf_hash(entry) for entry in entries])
        overlay.extend(growth, entries)
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


def _resume(truth: _Truth, signer: Signer, edge: Edge, overlay: Overlay, _: object) -> tuple[Commit, SignedHead]:
    """Take step 8, on the database thread; the overlay is not shared with anyone yet."""
    commit = Commit(truth.storage, truth.checkpoints, signer, truth.head, edge, truth.last_ms)
    if truth.tail is None:
        return commit, truth.head
    try:
        entries = parse_bundle(truth.tail.entries, truth.tail.count)
        committed = commit.finish([leaf_hash(entry) for entry in entries])
    except FormatError as error:
        raise StartRefusedError(
            f"the newest commit was not signed, and cannot be: {error}; "
            "it can be removed with: tlogd repair --discard-unsigned"
        ) from error
    except (CommitError, VerificationError) as error:
        raise StartRefusedError(f"the newest commit was not signed, and cannot be: {error}") from error
    overlay.extend(committed.growth, entries)
    log.info("log.resumed", entries=truth.tail.count, size=committed.head.size)
    return commit, committed.head
