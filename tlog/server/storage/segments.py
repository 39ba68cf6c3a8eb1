"""log.db: the entries, one row a commit. Insert-only: triggers refuse every change and removal."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from tlog.errors import FormatError
from tlog.server.errors import CommitError, StartRefusedError
from tlog.server.storage import Segment
from tlog.server.storage.database import DURABLE, Upkeep, connect, settle, typed
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = """
CREATE TABLE segment (
    first INTEGER PRIMARY KEY CHECK (first >= 0),
    count INTEGER NOT NULL CHECK (count > 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    leaf_digest BLOB NOT NULL CHECK (length(leaf_digest) = 32),
    time_ms INTEGER NOT NULL,
    keys BLOB NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    entries BLOB NOT NULL
) STRICT;
CREATE INDEX segment_with_keys ON segment (time_ms, first) WHERE keys != x'';
CREATE TRIGGER segment_is_final BEFORE UPDATE ON segment BEGIN SELECT raise(ABORT, 'segments are insert-only'); END;
CREATE TRIGGER segment_stays BEFORE DELETE ON segment BEGIN SELECT raise(ABORT, 'segments are insert-only'); END;
"""

_SIZE = "SELECT coalesce((SELECT first + count FROM segment ORDER BY first DESC LIMIT 1), 0)"
_COLUMNS = "first, count, entries, root, leaf_digest, time_ms, keys, digest"  # in the order of Segment

HEADER = _COLUMNS.replace("entries", "x''")
"""The columns of a segment without its entries, which are read only where somebody needs them."""


_ROWS = 256  # in one read at most

_KINDS = (int, int, bytes, bytes, bytes, int, bytes, bytes)


def segment_of(row: tuple[Any, ...]) -> Segment:
    """Return the segment of a row of log.db.

    Raises:
        sqlite3.DatabaseError: The row is damaged.
    """
    return Segment(*typed(row, *_KINDS))


class SqliteStorage:
    """Storage in SQLite; owned by the thread that opened the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection over that `open_segments` made."""
        self._connection = connection
        self._upkeep = Upkeep(connection)

    def append(self, segment: Segment) -> None:
        """Make a segment durable; see Storage."""
        row = (segment.first, segment.count, segment.entries, segment.root, segment.leaf_digest)
        try:
            inserted = self._connection.execute(
                f"INSERT INTO segment ({_COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE ?1 = ({_SIZE})",
                (*row, segment.time_ms, segment.keys, segment.digest),
            ).rowcount
        except sqlite3.Error as error:
            raise CommitError(f"the entries could not be stored: {error}") from error
        if inserted != 1:
            raise CommitError(f"the stored log does not end at {segment.first}; is another process writing to it?")
        self._upkeep.wrote(len(segment.entries))

    def size(self) -> int:
        """Return the number of entries."""
        (size,) = self._connection.execute(_SIZE).fetchone()
        return int(size)

    def segment_at(self, index: int) -> Segment | None:
        """Return the segment that holds an entry."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM segment WHERE first <= ? ORDER BY first DESC LIMIT 1",  # noqa: S608 — constants
            (index,),
        ).fetchone()
        segment = None if row is None else segment_of(row)
        return segment if segment is not None and index < segment.end else None

    def entries(self, start: int, end: int, max_bytes: int = 1 << 62) -> list[bytes]:
        """Return entries [start, end), or fewer; see Storage."""
        found: list[bytes] = []
        at, size = start, 0
        while at < end and size < max_bytes:
            segments = self.segments_from(at, end, _ROWS, max_bytes - size) if at > start else [self._holding(at)]
            for segment in segments:
                size += len(segment.entries)
                found += parse_bundle(segment.entries, segment.count)[at - segment.first : end - segment.first]
                at = segment.end
        return found

    def _holding(self, index: int) -> Segment:
        segment = self.segment_at(index)
        if segment is None:
            raise _lacks(index)
        return segment

    def segments_from(self, start: int, end: int, max_count: int, max_bytes: int) -> list[Segment]:
        """Return the segments that hold entries [start, end), or fewer; see Storage."""
        found: list[Segment] = []
        at, size = start, 0
        select = f"SELECT {_COLUMNS} FROM segment WHERE first >= ? AND first < ? ORDER BY first LIMIT ?"  # noqa: S608 — constants
        with closing(self._connection.execute(select, (start, end, max_count))) as rows:
            for row in rows:
                segment = segment_of(row)
                if segment.first != at:
                    raise _lacks(at)
                found.append(segment)
                at, size = segment.end, size + len(segment.entries)
                if size >= max_bytes:
                    break
        if not found:
            raise _lacks(at)
        return found

    def keys(self, since_ms: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield time and key records of segments that have some."""
        for row in self._connection.execute(
            f"SELECT {HEADER} FROM segment "  # noqa: S608 — constants
            "WHERE keys != x'' AND time_ms >= ? AND first < ? ORDER BY time_ms, first",
            (since_ms, end),
        ):
            segment = segment_of(row)
            if not segment.is_whole:
                raise FormatError(f"what is kept of entries {segment.first} to {segment.end - 1} is not what came in")
            yield segment.time_ms, segment.keys


def _lacks(index: int) -> StartRefusedError:
    return StartRefusedError(f"log.db has no entry {index}; restore it with: tlogd repair --from URL|DIR")


def open_segments(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open log.db.

    Raises:
        StartRefusedError: It is missing, or is not what this version writes.
    """
    return settle(connect(path, SCHEMA, DURABLE, create=create), path)


def empty_wal(path: Path) -> None:
    """Move what the WAL of a log.db that nobody uses holds into it, where there is such a file and it can be read."""
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size:
        with suppress(StartRefusedError):
            open_segments(path).close()
