"""checkpoints.db: the newest signed head, and nothing else. Whoever controls this file can make the log fork."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from tlog.server.errors import CommitError
from tlog.server.storage import SignedHead
from tlog.server.storage.database import DURABLE_ALONE, Upkeep, connect, settle, typed

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
CREATE TABLE head (
    origin TEXT PRIMARY KEY NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    note BLOB NOT NULL
) STRICT;
"""


KINDS = (str, int, int, bytes, bytes)
"""Types of the columns of a head."""


class SqliteCheckpointStore:
    """CheckpointStore in SQLite; owned by the thread that opened the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection over that `open_checkpoints` made."""
        self._connection = connection
        self._upkeep = Upkeep(connection)

    def create(self, head: SignedHead) -> None:
        """Insert the first head of an origin.

        Raises:
            CommitError: The origin has one.
        """
        self._change(
            "INSERT INTO head (origin, epoch, size, root, note) VALUES (?, ?, ?, ?, ?)",
            (head.origin, head.epoch, head.size, head.root, head.note),
        )

    def acquire(self, origin: str) -> SignedHead | None:
        """Take the log over; see CheckpointStore."""
        if self.latest(origin) is not None:
            self._change("UPDATE head SET epoch = epoch + 1 WHERE origin = ?", (origin,))
        return self.latest(origin)

    def latest(self, origin: str) -> SignedHead | None:
        """Return the head; see CheckpointStore."""
        select = "SELECT origin, epoch, size, root, note FROM head WHERE origin = ?"
        row = self._connection.execute(select, (origin,)).fetchone()
        return None if row is None else SignedHead(*typed(row, *KINDS))

    def swap(self, old: SignedHead, new: SignedHead) -> None:
        """Replace the head; see CheckpointStore."""
        self._change(
            "UPDATE head SET size = ?, root = ?, note = ? WHERE origin = ? AND epoch = ? AND size = ? AND root = ?",
            (new.size, new.root, new.note, old.origin, old.epoch, old.size, old.root),
        )
        self._upkeep.wrote(len(new.note))

    def close(self) -> None:
        """Close the connection, and let other processes have the file."""
        self._connection.close()

    def _change(self, statement: str, values: tuple[str | int | bytes, ...]) -> None:
        """Run one statement that must change exactly one row."""
        try:
            changed = self._connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise CommitError(f"the checkpoint store failed: {error}") from error
        if changed != 1:
            raise CommitError("lost the checkpoint store: it holds another head, or another process took the log over")


def open_checkpoints(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open checkpoints.db, for this process alone.

    Raises:
        StartRefusedError: It is missing, in use, or is not what this version writes.
    """
    return settle(connect(path, SCHEMA, DURABLE_ALONE, create=create), path)
