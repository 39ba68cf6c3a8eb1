"""Calls that are counted, of which one fails: before it takes effect or after, with an error or with the process.

`Faults` counts. What it counts are the statements that go to SQLite (`faulty_sqlite`), or the calls of the protocols
that a commit stands on (`FaultyStorage`, `FaultyCheckpointStore`, `FaultySigner`).

A process that ends in the middle is a `Crash`: nothing catches it, nothing is called after it, and the files are copied
at that instant, byte for byte, as a killed process leaves them. SQLite's index of a WAL (`-shm`) is left out: whoever
opens a database alone makes it anew.
"""

from __future__ import annotations

import enum
import shutil
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.note import Verifier
    from tlog.server.signer import HeadSigner
    from tlog.server.storage import CheckpointStore, Segment, SignedHead, Storage

T = TypeVar("T")


class Kind(enum.Enum):
    """How a call fails."""

    FAILS = "fails"
    DONE_AND_FAILS = "takes effect and fails"
    CRASH = "the process ends before it"
    DONE_AND_CRASH = "takes effect and the process ends"

    @property
    def is_crash(self) -> bool:
        """Whether the process is gone."""
        return self in (Kind.CRASH, Kind.DONE_AND_CRASH)

    @property
    def takes_effect(self) -> bool:
        """Whether the call did what it was to do."""
        return self in (Kind.DONE_AND_FAILS, Kind.DONE_AND_CRASH)


class Crash(BaseException):
    """The process is gone. Nothing in the product may catch it."""


class Faults:
    """Counts calls, and makes those of a plan fail.

    Attributes:
        calls: What was called while it was armed, in order.
        fired: Which calls failed, from 1, and how.
        armed: Whether calls count and fail.
        on_crash: Called at the instant of a crash.
    """

    def __init__(self, plan: Mapping[int, Kind] | None = None) -> None:
        """Take a plan: how each call fails that does, by its number from 1."""
        self.calls: list[str] = []
        self.fired: list[tuple[int, Kind]] = []
        self.armed = True
        self.on_crash: Callable[[], object] = lambda: None
        self._plan = plan or {}
        self._gone = False

    @property
    def are_fatal(self) -> bool:
        """Whether a call failed after which a process signs nothing."""
        return any(not self.calls[number - 1].startswith(LOOK) for number, _ in self.fired)

    def call(self, name: str, work: Callable[[], T], error: Callable[[], Exception]) -> T:
        """Do a call, or what the plan makes of it.

        Raises:
            Crash: The process is gone.
        """
        if self._gone:
            raise Crash("the process is gone")
        if not self.armed:
            return work()
        self.calls.append(name)
        kind = self._plan.get(len(self.calls))
        if kind is None:
            return work()
        number = len(self.calls)
        if kind.takes_effect:
            work()
        self.fired.append((number, kind))
        if not kind.is_crash:
            raise error()
        self._gone = True
        self.on_crash()
        raise Crash("the process is gone")


def disk_error() -> Exception:
    """Return what SQLite raises when the disk reports an error."""
    return sqlite3.OperationalError("disk I/O error")


def copy_as_left(data: Path, target: Path) -> Path:
    """Copy the files of a log as a killed process leaves them, and return where they are."""
    shutil.copytree(data, target, ignore=shutil.ignore_patterns("*-shm", "lock"))
    (target / "lock").touch()
    return target


# SQLite.

COUNTED = ("log.db", "checkpoints.db")
"""The databases whose statements count: what is derived may be lost."""

LOOK = "look: "
"""Begins the name of a statement on a connection that only reads: where it fails, a start may look more closely."""


@contextmanager
def faulty_sqlite(faults: Faults) -> Iterator[None]:
    """Let statements to the log's databases go through faults; at the end every connection is closed, as at an exit."""
    honest = sqlite3.connect
    opened: list[sqlite3.Connection] = []

    class Connection(sqlite3.Connection):
        """Counts statements."""

        prefix = ""

        def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
            def work() -> sqlite3.Cursor:
                return super(Connection, self).execute(sql, parameters)  # type: ignore[arg-type]  # what came in

            return faults.call(self.prefix + sql, work, disk_error)

    def connect(database: str, timeout: float = 5.0, *, uri: bool = False, isolation_level: None = None) -> object:
        factory = Connection if any(f"/{name}?" in database for name in COUNTED) else sqlite3.Connection
        options = {"timeout": timeout, "uri": uri, "isolation_level": isolation_level, "factory": factory}
        connection = honest(database, check_same_thread=False, **options)  # type: ignore[call-overload]  # as they came
        if isinstance(connection, Connection):
            connection.prefix = LOOK if "mode=ro" in database else ""
        opened.append(connection)
        return connection

    sqlite3.connect = connect  # type: ignore[assignment]  # as the product calls it
    try:
        yield
    finally:
        sqlite3.connect = honest
        for connection in opened:
            connection.close()


# The protocols.


class FaultyStorage:
    """Storage behind faults."""

    def __init__(self, storage: Storage, faults: Faults, error: Callable[[], Exception] = disk_error) -> None:
        self._storage = storage
        self._faults = faults
        self._error = error

    def append(self, segment: Segment) -> None:
        self._faults.call("append", lambda: self._storage.append(segment), self._error)

    def size(self) -> int:
        return self._faults.call("size", self._storage.size, self._error)

    def segment_at(self, index: int) -> Segment | None:
        return self._faults.call("segment_at", lambda: self._storage.segment_at(index), self._error)

    def entries(self, start: int, end: int, max_bytes: int = 1 << 62) -> list[bytes]:
        return self._faults.call("entries", lambda: self._storage.entries(start, end, max_bytes), self._error)

    def segments_from(self, start: int, end: int, max_count: int, max_bytes: int) -> list[Segment]:
        def read() -> list[Segment]:
            return self._storage.segments_from(start, end, max_count, max_bytes)

        return self._faults.call("segments_from", read, self._error)

    def keys(self, since_ms: int, end: int) -> Iterator[tuple[int, bytes]]:
        return self._faults.call("keys", lambda: self._storage.keys(since_ms, end), self._error)


class FaultyCheckpointStore:
    """CheckpointStore behind faults."""

    def __init__(self, store: CheckpointStore, faults: Faults, error: Callable[[], Exception] = disk_error) -> None:
        self._store = store
        self._faults = faults
        self._error = error

    def acquire(self, origin: str) -> SignedHead | None:
        return self._faults.call("acquire", lambda: self._store.acquire(origin), self._error)

    def latest(self, origin: str) -> SignedHead | None:
        return self._faults.call("latest", lambda: self._store.latest(origin), self._error)

    def swap(self, old: SignedHead, new: SignedHead) -> None:
        self._faults.call("swap", lambda: self._store.swap(old, new), self._error)


class FaultySigner:
    """HeadSigner behind faults."""

    def __init__(self, signer: HeadSigner, faults: Faults, error: Callable[[], Exception]) -> None:
        self._signer = signer
        self._faults = faults
        self._error = error

    @property
    def verifier(self) -> Verifier:
        return self._signer.verifier

    def newest(self) -> Checkpoint:
        return self._faults.call("newest", self._signer.newest, self._error)

    def sign(self, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> bytes:
        return self._faults.call("sign", lambda: self._signer.sign(old, new, proof), self._error)

    def freeze(self, size: int, reason: str) -> bytes:
        return self._faults.call("freeze", lambda: self._signer.freeze(size, reason), self._error)

    def close(self) -> None:
        self._signer.close()
