"""The parts of the write path, put together in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge
from tlog.note import Signer, sign_note
from tlog.server.commit import Commit
from tlog.server.leaves import LeafIndex
from tlog.server.signer import LocalSigner
from tlog.server.storage import SignedHead
from tlog.server.storage.database import Database
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.tiles import SCHEMA, TileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.memory import MemoryCheckpointStore, MemoryStorage

T = TypeVar("T")

ORIGIN = "log.example/memory"
SIGNER = Signer(ORIGIN, bytes(range(32)))
EMPTY_ROOT = sha256().digest()


def leaves(entries: Sequence[bytes]) -> list[bytes]:
    """Return leaf hashes, as RFC 6962 §2.1 says."""
    return [sha256(b"\x00" + entry).digest() for entry in entries]


def empty_head() -> SignedHead:
    """Return the signed head of the empty log."""
    note = sign_note(Checkpoint(ORIGIN, 0, EMPTY_ROOT).format(), [SIGNER])
    return SignedHead(ORIGIN, 0, 0, EMPTY_ROOT, note)


def local_signer() -> LocalSigner:
    """Return the signer of the empty log."""
    return LocalSigner(SIGNER, Checkpoint(ORIGIN, 0, EMPTY_ROOT))


def begin(storage: MemoryStorage, checkpoints: MemoryCheckpointStore) -> tuple[Commit, SignedHead]:
    """Begin an empty log."""
    checkpoints.create(empty_head())
    head = checkpoints.acquire(ORIGIN)
    assert head is not None
    return Commit(storage, checkpoints, local_signer(), head, Edge(), 0), head


class Thread(Database):
    """Runs work in the loop itself, and only while its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.runs = 0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.runs += 1
        await self.gate.wait()
        return work(sqlite3.Connection.__new__(sqlite3.Connection))


def memory_database() -> sqlite3.Connection:
    """Return an empty tiles.db in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    return connection


def memory_tiles() -> TileStore:
    """Return an empty tile store in memory."""
    return TileStore(memory_database())


def memory_leaves() -> LeafIndex:
    """Return an empty leaf index in memory."""
    return LeafIndex(Thread(), LeafStore(memory_database()), [])
