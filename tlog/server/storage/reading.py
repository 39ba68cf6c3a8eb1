"""Databases as others than their owner read them: a check, a backup, a look. Nothing is ever written.

Without its WAL, or with an empty one, a database that nobody uses is read as it is, and SQLite leaves nothing beside
it. Else it is read through the WAL; then SQLite keeps its index of the WAL beside it, as for any reader.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tlog.merkle import MAX_SIZE
from tlog.server.errors import DamagedFileError, InUseError, MissingFileError, StartRefusedError
from tlog.server.storage import Segment
from tlog.server.storage.database import check_schema
from tlog.server.storage.segments import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_S = 2.0
"""Seconds that a read waits for an owner that recovers or closes the database."""

READ_SIZE = 8 << 20
"""Bytes of entries after which a read ends and another begins."""

_ROWS = 256  # in one read at most


def open_reading(path: Path, schema: str | None, *, alone: bool = False) -> sqlite3.Connection:
    """Open a database for reading.

    Args:
        path: Its file.
        schema: What it must be made of; None takes whatever can be told to be a database.
        alone: Whether the caller holds the lock that keeps everybody else from writing it.

    Raises:
        MissingFileError: It is missing.
        InUseError: Its owner lets nobody read it.
        DamagedFileError: It is no database, or has another schema.
        StartRefusedError: It cannot be opened.
    """
    if not path.exists():
        raise MissingFileError(f"{path} is missing")
    wal = path.with_name(f"{path.name}-wal")
    still = "&immutable=1" if alone and not (wal.exists() and wal.stat().st_size) else ""
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro{still}"
        connection = sqlite3.connect(uri, timeout=BUSY_S, uri=True, isolation_level=None)
        try:
            for setting in ("query_only = 1", "trusted_schema = 0", "cell_size_check = 1"):
                connection.execute(f"PRAGMA {setting}").fetchall()
            if schema is None:
                _load_schema(connection, path)
            else:
                check_schema(connection, path, schema)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _opening_error(path, error) from error
    return connection


def _load_schema(connection: sqlite3.Connection, path: Path) -> None:
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in what it says
        raise DamagedFileError(f"{path} is damaged: its schema cannot be read") from error


def _opening_error(path: Path, error: sqlite3.Error) -> StartRefusedError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InUseError(f"{path} is in use by another process")
    if isinstance(error, sqlite3.OperationalError):
        return StartRefusedError(f"{path} cannot be read: {error}")
    return DamagedFileError(f"{path} is damaged: {error}")


def read_segments(
    connection: sqlite3.Connection, start: int = 0, read_size: int = READ_SIZE, end: int = MAX_SIZE + 1
) -> Iterator[Segment]:
    """Yield the segments of log.db from an index on, in many short reads, so that its WAL can be emptied in between.

    Args:
        connection: A connection to it.
        start: The index.
        read_size: Bytes of entries after which a read ends and another begins.
        end: Those that begin from this index on are not read.

    Raises:
        sqlite3.Error: The file is damaged, or cannot be read.
    """
    names = ", ".join(Segment.__dataclass_fields__)
    select = f"SELECT {names} FROM segment WHERE first BETWEEN ? AND ? ORDER BY first LIMIT {_ROWS}"  # noqa: S608 — constants
    while True:
        part, size = [], 0
        with closing(connection.execute(select, (start, end - 1))) as rows:
            for row in rows:
                segment = segment_of(row)
                part.append(segment)
                size += len(segment.entries)
                if size >= read_size:
                    break
        yield from part
        if not part or part[-1].first >= MAX_SIZE:
            return
        start = part[-1].first + 1
