"""tiles.db: full tiles, full bundles, how far they go, and the leaf index.

Derived from log.db: it may be lost, and is rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.server.errors import DamageError
from tlog.server.storage import leaves
from tlog.server.storage.database import DERIVED, DRAFT, Upkeep, connect, typed
from tlog.server.storage.wal import number_file, number_transaction
from tlog.tile import TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = (
    """
CREATE TABLE tile (id INTEGER PRIMARY KEY, hashes BLOB NOT NULL CHECK (length(hashes) = 8192)) STRICT;
CREATE TABLE bundle (id INTEGER PRIMARY KEY, gzip BLOB NOT NULL) STRICT;
CREATE TABLE position (id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL) STRICT;
INSERT INTO position VALUES (0, 0);
"""
    + leaves.SCHEMA
)

_LEVEL_BITS = 6  # tile levels are 0 to 63


@dataclass(frozen=True, slots=True)
class Derived:
    """What the follower writes in one transaction.

    Attributes:
        tiles: Full tiles and their hashes, 8,192 bytes each.
        bundles: Full bundles, gzip-encoded.
        size: The position after it: a multiple of 256.
    """

    tiles: list[tuple[Tile, bytes]]
    bundles: list[tuple[Bundle, bytes]]
    size: int


class TileStore:
    """Full tiles and bundles in SQLite; owned by the thread that opened the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection over that `open_tiles` made."""
        self._connection = connection
        self._upkeep = Upkeep(connection)

    def position(self) -> int:
        """Return how many entries the tiles cover: a multiple of 256.

        Raises:
            DamageError: It is lost, or is none.
        """
        row = self._connection.execute("SELECT size FROM position").fetchone()
        if row is None or typed(row, int)[0] < 0 or row[0] % TILE_WIDTH:
            raise DamageError("tiles.db does not say how far it goes")
        return int(row[0])

    def write(self, derived: Derived) -> None:
        """Add tiles and bundles, which must be new, and move the position, in one transaction."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = [(_tile_id(tile), hashes) for tile, hashes in derived.tiles]
            self._connection.executemany("INSERT INTO tile (id, hashes) VALUES (?, ?)", rows)
            parts = [(bundle.index, data) for bundle, data in derived.bundles]
            self._connection.executemany("INSERT INTO bundle (id, gzip) VALUES (?, ?)", parts)
            self._connection.execute("UPDATE position SET size = ?", (derived.size,))
            number_transaction(self._connection)
        self._upkeep.wrote(sum(len(data) for _, data in rows + parts))

    def tiles(self, tiles: Iterable[Tile]) -> list[bytes | None]:
        """Return the hashes of full tiles; None for one that is not there."""
        find = "SELECT hashes FROM tile WHERE id = ?"
        return [self._find(find, _tile_id(tile)) for tile in tiles]

    def bundle(self, index: int) -> bytes | None:
        """Return a full bundle, gzip-encoded; None if it is not there."""
        return self._find("SELECT gzip FROM bundle WHERE id = ?", index)

    def _find(self, statement: str, key: int) -> bytes | None:
        row = self._connection.execute(statement, (key,)).fetchone()
        if row is not None and not isinstance(row[0], bytes):
            raise DamageError("a row of tiles.db is damaged; it is rebuilt when it is removed and the server started")
        return None if row is None else row[0]


def _tile_id(tile: Tile) -> int:
    if tile.width != TILE_WIDTH:
        raise ValueError("only full tiles are stored")
    return tile.index << _LEVEL_BITS | tile.level


def open_tiles(path: Path) -> sqlite3.Connection:
    """Open tiles.db.

    Raises:
        StartRefusedError: It is missing, or is not what this version writes.
    """
    return connect(path, SCHEMA, DERIVED)


def create_tiles(path: Path) -> sqlite3.Connection:
    """Create a tiles.db that gets its name when it is whole, and was made durable.

    Raises:
        StartRefusedError: It cannot be created.
    """
    connection = connect(path, SCHEMA, DRAFT, create=True)
    number_file(connection)
    return connection
