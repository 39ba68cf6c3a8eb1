"""Every statement that goes to SQLite, one at a time: one can fail, and one can be the last of its process.

A process that is killed leaves its files as they are at that instant. So the copy is taken while the statement that it
dies at holds up all others, on every thread. Whatever the process does afterwards fails, and nothing of it is copied.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from tests.support.nth_call import Crash, Kind, disk_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

COMMIT = (
    "log.db INSERT INTO segment",
    "log.db SELECT first, count",
    "checkpoints.db UPDATE head SET size",
    "log.db PRAGMA wal_checkpoint",
    "checkpoints.db PRAGMA wal_checkpoint",
)
"""Statements of a commit."""

FOLLOW = (
    "tiles.db BEGIN IMMEDIATE",
    "tiles.db INSERT INTO tile",
    "tiles.db INSERT INTO bundle",
    "tiles.db UPDATE position",
    "tiles.db commit",
    "tiles.db INSERT INTO leaf_bucket",
    "tiles.db INSERT INTO leaf_run",
    "tiles.db DELETE FROM",
    "tiles.db PRAGMA wal_checkpoint",
)
"""Statements of a follower."""

START_STATEMENTS = 80
"""About as many statements as a start has."""


@dataclass(slots=True)
class Plan:
    """Which statement fails, and how.

    Attributes:
        begins: How it begins: the name of the file, a space, SQL; empty for any statement.
        number: Which of those, from 1.
        kind: How it fails.
    """

    begins: str
    number: int
    kind: Kind


class Tap:
    """What the statements of one process go through.

    Attributes:
        plan: Which one fails; None when none does any more.
        fired: The statement that failed; empty where none has.
        gone: Whether the process is gone.
        on_crash: Called at that instant.
        count: Statements so far.
    """

    def __init__(self, on_crash: Callable[[], object] = lambda: None) -> None:
        self.plan: Plan | None = None
        self.fired = ""
        self.gone = False
        self.on_crash = on_crash
        self.count = 0
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.RLock()

    def call(self, name: str, work: Callable[[], T]) -> T:
        """Do what a statement does, or what the plan makes of it.

        Raises:
            Crash: The process is gone.
            sqlite3.OperationalError: The statement fails.
        """
        with self._lock:
            if self.gone:
                raise Crash("the process is gone")
            self.count += 1
            kind = self._planned(name)
            if kind is None:
                return work()
            self.fired = name
            if kind.takes_effect:
                work()
            if kind.is_crash:
                self.crash()
                raise Crash("the process is gone")
            raise disk_error()

    def crash(self) -> None:
        """End the process between two statements."""
        with self._lock:
            self.gone = True
            self.on_crash()

    def pausing(self, work: Callable[[], T]) -> T:
        """Do something between two statements."""
        with self._lock:
            return work()

    def opened(self, connection: sqlite3.Connection) -> None:
        """Remember a connection of the process."""
        self._opened.append(connection)

    def close(self) -> None:
        """Close what the process left open."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()

    def _planned(self, name: str) -> Kind | None:
        plan = self.plan
        if plan is None or not name.startswith(plan.begins):
            return None
        plan.number -= 1
        if plan.number > 0:
            return None
        self.plan = None
        return plan.kind


class _Connection(sqlite3.Connection):
    """Sends each statement through a tap."""

    tap: Tap
    file: str

    def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
        run = super().execute
        return self.tap.call(f"{self.file} {sql}", lambda: run(sql, parameters))  # type: ignore[arg-type]  # what came in

    def executemany(self, sql: str, parameters: Iterable[object], /) -> sqlite3.Cursor:
        run = super().executemany
        return self.tap.call(f"{self.file} {sql}", lambda: run(sql, parameters))  # type: ignore[arg-type]  # what came in

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Literal[False]:
        end = super().__exit__
        return self.tap.call(f"{self.file} {'commit' if kind is None else 'rollback'}", lambda: end(kind, error, trace))

    def close(self) -> None:
        self.tap.pausing(super().close)


@contextmanager
def tapped_sqlite(current: Callable[[], Tap]) -> Iterator[None]:
    """Let the statements of each database that is opened go through the tap of that moment."""
    honest = sqlite3.connect

    def connect(
        database: str, timeout: float = 5.0, *, uri: bool = False, isolation_level: Literal[""] | None = ""
    ) -> sqlite3.Connection:
        if not uri:
            return honest(database, timeout=timeout, isolation_level=isolation_level)  # type: ignore[arg-type]  # "" is the default
        connection = honest(
            database,
            timeout=timeout,
            uri=True,
            isolation_level=None,
            factory=_Connection,
            check_same_thread=False,
        )
        connection.tap, connection.file = current(), database.rpartition("/")[2].partition("?")[0]
        connection.tap.opened(connection)
        return connection

    sqlite3.connect = connect  # type: ignore[assignment]  # as the product calls it
    try:
        yield
    finally:
        sqlite3.connect = honest


def copy_log(source: Path, target: Path) -> Path:
    """Copy the files of a log, byte for byte, without SQLite's index of a WAL, and return where they are."""
    target.mkdir()
    for file in source.iterdir():
        if not file.name.endswith("-shm") and file.name != "lock":
            shutil.copyfile(file, target / file.name)
    (target / "key").chmod(0o600)
    return target


def put_back(source: Path, target: Path, name: str) -> None:
    """Put a database of a copy in the place of another one, with its WAL."""
    for ending in ("", "-wal", "-shm"):
        (target / (name + ending)).unlink(missing_ok=True)
        if (source / (name + ending)).exists():
            shutil.copyfile(source / (name + ending), target / (name + ending))
