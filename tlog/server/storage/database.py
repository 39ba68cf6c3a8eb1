"""SQLite connections: their settings, their threads, and their upkeep.

One aiosqlite connection is one thread with one queue. Work is given to it as whole functions: a function cannot be
cancelled half-way, while a transaction of several awaits can, and would stay open for whoever comes next.

Settings are read back, because SQLite ignores a setting that it cannot follow without a word. Its own WAL checkpoint
hides I/O errors, so it is off, and `Upkeep` runs one between commits, where an error is seen.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar

import aiosqlite

from tlog.server.errors import CommitError, DamagedFileError, InUseError, MissingFileError, StartRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

T = TypeVar("T")
R = TypeVar("R", bound="tuple[object, ...]")

WAL_PAGES = 250
"""Pages in the WAL after which its content is moved to the database: larger ones make slow commits slower."""

SETTLE_MS = 5000
"""Milliseconds that a start waits for a read of another process, such as a backup's, to end."""

_PAGE = 4096
_ROW_PAGES = 4  # pages that a commit writes besides its content

Settings: TypeAlias = "Mapping[str, str | int]"

DURABLE: Settings = {"journal_mode": "wal", "synchronous": 2}
"""Settings under which a commit that returned survives a power failure."""

DURABLE_ALONE: Settings = {"locking_mode": "exclusive", **DURABLE}
"""The same, and no other process can even read: for the checkpoint store."""

DERIVED: Settings = {"journal_mode": "wal", "synchronous": 1}
"""Settings for what can be rebuilt: a power failure may take the newest commits, but never tears one."""

DRAFT: Settings = {"journal_mode": "off", "synchronous": 0}
"""Settings for a new file that nobody reads before it is whole and durable: an error or a crash spoils it."""

_COMMON: Settings = {
    "wal_autocheckpoint": 0,
    "foreign_keys": 1,
    "trusted_schema": 0,
    "cell_size_check": 1,
    "busy_timeout": 0,
}


class Database:
    """A connection and its thread; `run` is the only way in."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        """Take an open connection over."""
        self._connection = connection

    @classmethod
    async def open(cls, connect: Callable[[], sqlite3.Connection]) -> Self:
        """Start a thread and open a connection on it."""
        opening = aiosqlite.Connection(connect, iter_chunk_size=64)
        try:
            return cls(await opening)
        except BaseException:
            opening._thread.join()  # noqa: SLF001 — it would outlive the loop, and say so on standard error
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a whole function on the thread, and wait for its outcome even if the caller is cancelled meanwhile."""
        # aiosqlite offers single statements in public; a commit must be one function on the thread.
        execute: Callable[..., Awaitable[T]] = self._connection._execute  # noqa: SLF001 — as said
        job = asyncio.ensure_future(execute(work, self._connection._conn))  # noqa: SLF001 — as said
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise

    async def close(self) -> None:
        """Finish what is queued, close the connection, and end the thread."""
        await self._connection.close()


@asynccontextmanager
async def running(connect: Callable[[], sqlite3.Connection]) -> AsyncIterator[Database]:
    """Open a database on a thread of its own, and close it afterwards."""
    database = await Database.open(connect)
    try:
        yield database
    finally:
        await database.close()


def connect(path: Path, schema: str, settings: Settings, *, create: bool = False) -> sqlite3.Connection:
    """Open a database with exactly that schema and those settings.

    Raises:
        StartRefusedError: It is missing or in use, is no database, has another schema, or does not follow a setting.
    """
    mode = "rwc" if create else "rw"
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, timeout=0, uri=True, isolation_level=None)
        try:
            for name, value in {**settings, **_COMMON}.items():
                _set(connection, path, name, value)
            if create:
                connection.executescript(f"BEGIN IMMEDIATE;\n{schema}\nCOMMIT;")
            check_schema(connection, path, schema)
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError as error:
        if not path.exists():
            raise MissingFileError(f"{path} is missing") from error
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise InUseError(f"{path} is in use by another process: {error}") from error
        raise StartRefusedError(f"{path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    return connection


def settle(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Move what the WAL holds into the database, durably, before anything of it is trusted.

    After a crash SQLite reads a WAL whose last fsync never happened, or failed: what is in it may be gone tomorrow.

    Raises:
        StartRefusedError: It cannot be moved.
    """
    try:
        connection.execute(f"PRAGMA busy_timeout = {SETTLE_MS}").fetchall()
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("PRAGMA busy_timeout = 0").fetchall()
    except sqlite3.Error as error:
        connection.close()
        raise StartRefusedError(f"{path}: its WAL cannot be made durable: {error}") from error
    if busy:
        connection.close()
        raise StartRefusedError(f"{path} is in use by another program, so its WAL cannot be made durable; end it")
    return connection


def _set(connection: sqlite3.Connection, path: Path, name: str, value: str | int) -> None:
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    (found,) = connection.execute(f"PRAGMA {name}").fetchone()
    if found != value:
        raise StartRefusedError(f"{path}: SQLite keeps {name} at {found} instead of {value}; is it on a local disk?")


def typed(row: R, *kinds: type) -> R:
    """Return a row whose values have the types of their columns, as they do unless a page is damaged.

    Raises:
        sqlite3.DatabaseError: One has another.
    """
    if tuple(map(type, row)) != kinds:
        raise sqlite3.DatabaseError("a row holds a value of another type than its column")
    return row


def check_schema(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    """Refuse a database whose tables or triggers are not the ones that this version would make.

    Raises:
        DamagedFileError: They are not.
    """
    with sqlite3.connect(":memory:") as fresh:
        fresh.executescript(schema)
        wanted = _fingerprint(fresh)
    fresh.close()
    try:
        found = _fingerprint(connection)
    except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in what it says
        raise DamagedFileError(f"{path} is damaged: its schema cannot be read") from error
    if found != wanted:
        raise DamagedFileError(f"{path} has another schema than this version writes; was it edited, or is it older?")


def _fingerprint(connection: sqlite3.Connection) -> bytes:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    return sha256(repr(rows).encode()).digest()


class Upkeep:
    """Counts what was written to a WAL, and moves it to the database when it is enough."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Begin with an empty count."""
        self._connection = connection
        self._pages = 0  # owned by the thread of the connection

    def wrote(self, size: int) -> None:
        """Count a commit of `size` bytes; past the limit, run a WAL checkpoint.

        Raises:
            CommitError: It failed: the disk reports an error, and no commit may follow.
        """
        self._pages += size // _PAGE + _ROW_PAGES
        if self._pages > WAL_PAGES:
            self._pages = 0
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                raise CommitError(f"WAL checkpoint failed: {error}") from error
