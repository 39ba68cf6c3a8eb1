"""Opening a log: every check between the files on a disk and the first signature.

S is the head in the checkpoint store, D the data in log.db.

     1  take the lock of the data directory, whose file system has blocks that are large enough; nothing that lies
        beside the databases conflicts with them
     2  the schemas are the ones this version writes
     3  S exists, and its note says what its columns say, under the pinned vkey
     4  D is not smaller than S; S is a segment boundary of D with the root of S; D is ahead by one segment at most
     5  the clock is not behind the newest segment
     6  the key belongs to the origin and the vkey of the configuration, and its signer has signed nothing but D
     7  derived tiles are brought up to S, or rebuilt where they do not fit; the tree of the entries has the root of S
     8  the newest entries below the tiles are the ones that the tiles hold, and so are those that a scrub found damaged
     9  no anchor outside has seen a head that is not in the tree of S
    10  take the log over: from here on no other process can move S
    11  a segment ahead of S goes on at step 5 of its commit
    12  the idempotency keys of the last 24 hours

A log that is opened read-only needs no key: steps 5, 6, 10 and 11 are left out, and only derived data is written.

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
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.merkle import consistency_nodes, consistency_proof, leaf_hash
from tlog.policy import Policy
from tlog.server.anchor import check_anchors
from tlog.server.clock import check_start
from tlog.server.commit import Commit
from tlog.server.derived import Source, bring_up
from tlog.server.errors import (
    CommitError,
    ConfigError,
    DamageError,
    SignerAwayError,
    SigningError,
    StartRefusedError,
)
from tlog.server.idempotency import KEY_MS, Keys, parse_key_records
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.mark import MARK_NAME, read_mark
from tlog.server.recheck import recheck
from tlog.server.signer import open_signer
from tlog.server.space import check_blocks
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.database import running
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.segments import SqliteStorage, open_segments
from tlog.server.storage.tiles import TileStore, open_tiles
from tlog.server.stray import check_strays
from tlog.server.stretch import Source as Reread
from tlog.server.tree import Tree
from tlog.server.verify.finding import TILES
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tlog.server.config import Config
    from tlog.server.derived import Derived
    from tlog.server.signer import HeadSigner
    from tlog.server.storage import Segment, SignedHead
    from tlog.server.storage.database import Database

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Opened:
    """A log whose files fit together.

    Attributes:
        writer: The thread that owns the commit.
        commit: The end of the log; None where it is opened read-only.
        signer: What signs it, on that thread; None where it is opened read-only.
        head: The signed head.
        derived: The newest part of the tree, its leaf index, and what derives tiles and leaf index.
        reader: A thread for reading them.
        tree: What is visible, read on that thread.
        leaf_store: The leaf index on that thread.
        keys: The idempotency keys of the last 24 hours.
        last: The entry at the end of the log.
    """

    writer: Database
    commit: Commit | None
    signer: HeadSigner | None
    head: SignedHead
    derived: Derived
    reader: Database
    tree: Tree
    leaf_store: LeafStore
    keys: Keys
    last: bytes


@dataclass(frozen=True, slots=True)
class _Truth:
    """Both stores, and what signs, after step 6; who may not sign has no signer."""

    storage: SqliteStorage
    checkpoints: SqliteCheckpointStore
    signer: HeadSigner | None
    head: SignedHead
    tail: Segment | None
    last_ms: int

    def close(self) -> None:
        """Let go of the checkpoint store and the signer."""
        self.checkpoints.close()
        if self.signer is not None:
            self.signer.close()


@asynccontextmanager
async def open_parts(config: Config, now_ms: int, *, read_only: bool = False) -> AsyncIterator[Opened]:
    """Open the log of a configuration, and close its files afterwards.

    Args:
        config: The configuration.
        now_ms: Milliseconds since 1970.
        read_only: Whether nothing is to be appended.

    Raises:
        StartRefusedError: Something does not fit; the message says what, and what to do.
        DamageFoundError: What a scrub found damaged is so still.
    """
    with Lock(config.path(LOCK_NAME)):
        check_blocks(config.path(""))
        check_strays(config)
        async with _true(config, now_ms, read_only=read_only) as (writer, truth):
            spots = read_mark(config.path(MARK_NAME))
            anew = any(spot.file == TILES for spot in spots)
            async with (
                bring_up(Source(writer, truth.storage, truth.head), config.path(TILES), anew=anew) as derived,
                running(partial(open_tiles, config.path(TILES))) as reader,
            ):
                store = await reader.run(TileStore)
                again = Reread(writer, reader, store, derived.overlay)
                await recheck(config.path(MARK_NAME), spots, again, read_only=read_only)
                tree = Tree(derived.overlay, reader, store)
                await check_anchors(config, truth.head, tree)
                await _check_signer(truth, writer, tree)
                commit, head, keys, last = await writer.run(partial(_take_over, truth, derived, config, now_ms))
                leaf_store = await reader.run(LeafStore)
                yield Opened(writer, commit, truth.signer, head, derived, reader, tree, leaf_store, keys, last)


@asynccontextmanager
async def _true(config: Config, now_ms: int, *, read_only: bool) -> AsyncIterator[tuple[Database, _Truth]]:
    """Open both stores, and what signs, on the thread that owns the commit: steps 2 to 6."""
    async with running(partial(open_segments, config.path("log.db"))) as writer:
        truth = await writer.run(partial(_open_truth, config, now_ms, read_only))
        try:
            yield writer, truth
        finally:
            await writer.run(lambda _: truth.close())


def _open_truth(config: Config, now_ms: int, read_only: bool, connection: sqlite3.Connection) -> _Truth:  # noqa: FBT001 — bound by name
    """Take steps 2 to 6, on the database thread."""
    storage = SqliteStorage(connection)
    checkpoints = SqliteCheckpointStore(open_checkpoints(config.path(config.checkpoints)))
    try:
        head = checkpoints.latest(config.origin)
        if head is None:
            raise StartRefusedError(f"the checkpoint store {config.checkpoints} knows no log named {config.origin!r}")
        _check_head(head, config.vkey)
        tail = _check_data(storage, head)
        newest = storage.segment_at(storage.size() - 1)
        last_ms = newest.time_ms if newest else 0
        if not read_only:
            check_start(now_ms, last_ms)
        signer = None if read_only else open_signer(config, Checkpoint(head.origin, head.size, head.root))
    except (TreeheadError, sqlite3.Error) as error:
        checkpoints.close()
        if isinstance(error, StartRefusedError | ConfigError | SignerAwayError):
            raise
        raise StartRefusedError(f"the log cannot be read: {error}; see: tlogd fsck") from error
    return _Truth(storage, checkpoints, signer, head, tail, last_ms)


async def _check_signer(truth: _Truth, writer: Database, tree: Tree) -> None:
    """Compare the newest head of the signer with S and the tail; where its state is older than S, bring it up.

    Raises:
        StartRefusedError: It has signed what is not here, or cannot be brought up.
    """
    if truth.signer is None:
        return
    signer, head = truth.signer, Checkpoint(truth.head.origin, truth.head.size, truth.head.root)
    try:
        seen = await writer.run(lambda _: signer.newest())
        tail = truth.tail and (truth.tail.end, truth.tail.root)
        if seen == head or (seen.size, seen.root) == tail:
            return
        if seen.size >= head.size or not seen.size:
            raise StartRefusedError(
                f"the signer has signed another head, of size {seen.size}, than the one of size {head.size} here: the "
                "log was taken back, or has forked. Bring back the newest log.db and checkpoints.db"
            )
        proof = consistency_proof(seen.size, head.size, await tree.hashes(consistency_nodes(seen.size, head.size)))
        await writer.run(lambda _: signer.sign(seen, head, proof))  # S again, as it was signed before
    except (SigningError, DamageError) as error:
        raise StartRefusedError(f"the signer does not go on from the signed head: {error}") from error
    log.warning("signer.behind", signer=seen.size, size=head.size)


def _check_head(head: SignedHead, vkey: str) -> None:
    """Take step 3."""
    try:
        found = Policy.of_log(vkey).open_checkpoint(head.note)
    except TreeheadError as error:
        raise StartRefusedError(
            f"the checkpoint store holds a head that does not verify under the vkey of the configuration: {error}"
        ) from error
    if found != Checkpoint(head.origin, head.size, head.root):
        raise StartRefusedError("the checkpoint store contradicts itself: its note is of another head")


def _check_data(storage: SqliteStorage, head: SignedHead) -> Segment | None:
    """Take step 4, and return the segment that is stored and not signed, if there is one."""
    size = storage.size()
    if size < head.size:
        raise StartRefusedError(
            f"log.db holds {size} entries, but {head.size} are signed: entries are missing. "
            "Was it restored from a backup? Bring them back with: tlogd repair --from URL|DIR"
        )
    signed = storage.segment_at(head.size - 1)
    if signed is None or signed.end != head.size:
        raise StartRefusedError(f"the signed size {head.size} is within a commit of log.db: they are of different logs")
    if signed.root != head.root:
        raise StartRefusedError(
            f"log.db has another root at size {head.size} than the signed head: its entries are not the ones signed. "
            "Restore the right log.db, or bring the entries back with: tlogd repair --from URL|DIR"
        )
    if not signed.is_whole:
        raise StartRefusedError(
            f"what log.db keeps of entries {signed.first} to {signed.end - 1} is not what came in: their time, "
            "their keys or a digest was changed. Restore the right log.db, or see: tlogd repair --from URL|DIR"
        )
    tail = storage.segment_at(head.size)
    if size > (tail.end if tail else head.size):
        raise StartRefusedError(
            f"log.db is ahead of the signed head {head.size} by more than one commit: was checkpoints.db restored? "
            "A head that was signed must never be taken back. Bring the newest checkpoints.db; where that is lost, "
            "move this one away, and see: tlogd recover-checkpoints"
        )
    return tail


def _take_over(
    truth: _Truth, derived: Derived, config: Config, now_ms: int, _: object
) -> tuple[Commit | None, SignedHead, Keys, bytes]:
    """Take steps 10 to 12, on the database thread, and return the entry at the end of the log as well."""
    commit, head = _resume(truth, derived)
    keys = _read_keys(truth, config.limits.key_bytes, now_ms, head.size)
    (last,) = truth.storage.entries(head.size - 1, head.size)
    return commit, head, keys, last


def _resume(truth: _Truth, derived: Derived) -> tuple[Commit | None, SignedHead]:
    """Take steps 10 and 11; what is derived is not shared with anyone yet."""
    if truth.signer is None:
        return None, truth.head
    head = truth.checkpoints.acquire(truth.head.origin)
    if head is None or (head.size, head.root) != (truth.head.size, truth.head.root):
        raise StartRefusedError("the checkpoint store changed while the log was opened; is another process using it?")
    commit = Commit(truth.storage, truth.checkpoints, truth.signer, head, derived.edge, truth.last_ms)
    if truth.tail is None:
        return commit, head
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
    derived.leaves.extend(head.size, leaf_hashes)
    log.info("log.resumed", entries=truth.tail.count, size=committed.head.size)
    return commit, committed.head


def _read_keys(truth: _Truth, max_bytes: int, now_ms: int, size: int) -> Keys:
    """Take step 12."""
    keys = Keys(max_bytes)
    try:
        for time_ms, records in truth.storage.keys(now_ms - KEY_MS, size):
            for record in parse_key_records(records):
                keys.put(record, min(time_ms, now_ms))
    except (FormatError, sqlite3.Error) as error:
        raise StartRefusedError(f"log.db is damaged: {error}; see: tlogd repair --from URL|DIR") from error
    return keys
