"""A log.db or a backup as a source of entries: it answers the requests of `tlog.fetch` from what it holds.

It may know a newer head than the log that is repaired, and shows it: a backup holds one, that of a log.db is in the
checkpoints.db beside it, if there is one, and where log.db goes on for more than one commit, a newer head was signed.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.fetch import Response
from tlog.merkle import leaf_hash
from tlog.server.backup import SCHEMA as BACKUP_SCHEMA
from tlog.server.errors import DamagedFileError, InUseError, MissingFileError, StartRefusedError
from tlog.server.salvage import Blocks, are_commits, read_behind, read_pieces
from tlog.server.storage.reading import open_reading
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.segments import SqliteStorage
from tlog.server.verify.finding import CHECKPOINTS
from tlog.tile import TILE_WIDTH, Bundle, Tile, format_bundle, format_tile, parse_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tlog.fetch import Request
    from tlog.server.backup import Steps
    from tlog.server.storage import Segment


class StoredSource:
    """A log.db or a backup: its tiles are made from its entries, so every entry up to the size is hashed first."""

    def __init__(self, path: Path, size: int, steps: Steps) -> None:
        """Open and hash it.

        Raises:
            StartRefusedError: It cannot be read, goes on for more than one commit, or is served.
        """
        self._note: bytes | None = None
        try:
            self._connection = open_reading(path, BACKUP_SCHEMA)
            self._note = _note_in(self._connection, "backup")
        except DamagedFileError:
            self._connection = open_reading(path, LOG_SCHEMA)
            self._note = _note_beside(path)
        try:
            _check_end(self._connection, path, size)
            self._blocks = Blocks(read_pieces(self._connection, size), size, steps("hashing the source"))
        except BaseException:
            self._connection.close()
            raise
        self._storage = SqliteStorage(self._connection)

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Answer from the entries; see Source."""
        return [self._answer(request.path) for request in requests]

    def _answer(self, path: str) -> Response:
        try:
            body = self._note if path == "checkpoint" else self._read(parse_path(path))
        except (TreeheadError, sqlite3.Error):  # missing, or damaged there as well
            body = None
        return Response(404, {}, b"") if body is None else Response(200, {}, body)

    def _read(self, address: Tile | Bundle) -> bytes | None:
        if isinstance(address, Tile) and address.level:
            row = self._blocks.row(address.level, address.index)
            return None if row is None or len(row) < address.width else format_tile(row[: address.width])
        start = address.index * TILE_WIDTH
        end = start + address.width
        if end > self._blocks.size:
            return None
        entries = self._storage.entries(start, end)
        return format_bundle(entries) if isinstance(address, Bundle) else format_tile(map(leaf_hash, entries))

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def _note_in(connection: sqlite3.Connection, table: str) -> bytes | None:
    """Return the signed head that a database holds; None where there is none, or it cannot be read."""
    try:
        row = connection.execute(f"SELECT note FROM {table}").fetchone()  # noqa: S608 — constants
    except sqlite3.Error:
        return None
    return row[0] if row and isinstance(row[0], bytes) else None


def _note_beside(path: Path) -> bytes | None:
    """Return the signed head of a log.db from the checkpoint store in its folder, if that is there.

    Raises:
        StartRefusedError: A server holds it, or it cannot be opened.
    """
    store = path.with_name(CHECKPOINTS)
    try:
        with closing(open_reading(store, None)) as connection:
            return _note_in(connection, "head")
    except InUseError as error:
        raise StartRefusedError(
            f"{store} is held by a server, and may be ahead of this log. Nothing was changed; stop that, or name its "
            "URL as the source, where it shows its newest head"
        ) from error
    except (MissingFileError, DamagedFileError):
        return None  # none is there, or it is damaged; then log.db alone says how far it went


def _check_end(connection: sqlite3.Connection, path: Path, size: int) -> None:
    """Refuse a log.db that goes on for more than one commit behind the signed size of the log that is repaired."""
    found: list[tuple[int, Segment | None]] = []
    with suppress(sqlite3.DatabaseError):  # damaged there: what can be read counts
        for row in read_behind(connection, size):
            found.append(row)
            if are_commits(found, size):
                raise StartRefusedError(
                    f"the source {path} goes on behind the signed head {size} by more than one commit: those before "
                    "the last were signed, so the checkpoint store here was taken back, and the log would fork. "
                    "Nothing was changed. Bring the newest checkpoints.db"
                )
