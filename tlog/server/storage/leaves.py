"""The leaf index in tiles.db: from the first 8 bytes of a leaf hash to the indexes that may have it.

It is a list of *runs*, each over RUN · 8^level entries in a row, oldest first and without a gap. A run never changes;
eight of one level are merged into one of the next. Within a run, items lie in *buckets* by the first bits of their
prefix, a few hundred in each, so a look-up reads one row a run:

    item     prefix [8] ‖ index, 64 bits
    bucket   the items whose prefix begins with its number, in no order
    filter   16 bits an item, 4 of them set for it: where one of them is not set, the run does not have the prefix

Derived from log.db, and only a hint: what it finds counts when the whole leaf hash and the entry are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.server.errors import DamageError
from tlog.server.storage.database import Upkeep

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

RUN = 1 << 16
"""Entries of a run of level 0; above the newest run they are all in memory."""

FAN_BITS = 3

FAN = 1 << FAN_BITS
"""Runs of one level that are merged into one of the next."""

PREFIX_SIZE = 8
"""Bytes of a leaf hash in an item."""

SCHEMA = """
CREATE TABLE leaf_run (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, level INTEGER NOT NULL, filter BLOB NOT NULL
) STRICT;
CREATE TABLE leaf_bucket (id INTEGER PRIMARY KEY, items BLOB NOT NULL) STRICT;
"""

_ITEM = 16
_FILTER_BITS = 16  # for each item: with 4 of them set, one look-up in 400 finds a prefix that is not there
_PROBES = (0, 11, 22, 33)
_RUN_BITS = 32  # of a bucket's id are for its number
_STEP = 64  # buckets of each run that are merged in one transaction: about 4 MB


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the leaf index.

    Attributes:
        id: Number of the run; later ones have larger numbers.
        first: Index of its first entry.
        level: It covers RUN · 8^level entries.
        filter: Its filter.
    """

    id: int
    first: int
    level: int
    filter: bytes

    @property
    def end(self) -> int:
        """The index behind its last entry."""
        return self.first + (RUN << FAN_BITS * self.level)

    def may_have(self, prefix: int) -> bool:
        """Return False where the run cannot have a prefix, given as a number."""
        bits, mask = self.filter, len(self.filter) * 8 - 1
        for shift in _PROBES:
            at = prefix >> shift & mask
            if not bits[at >> 3] >> (at & 7) & 1:
                return False
        return True


class LeafStore:
    """Runs in SQLite; owned by the thread that opened the connection. One of them writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection over that `open_tiles` made."""
        self._connection = connection
        self._upkeep = Upkeep(connection)
        self._newest = 0  # the largest number that was given to a run, also to one that is not there yet

    def runs(self) -> list[Run]:
        """Return all runs, oldest first.

        Raises:
            DamageError: They leave a gap, or a filter has another size.
        """
        rows = self._connection.execute("SELECT id, first, level, filter FROM leaf_run ORDER BY first").fetchall()
        runs = [Run(*row) for row in rows]
        end = 0
        for run in runs:
            if run.first != end or not 0 <= run.level < 16 or len(run.filter) * 8 != _filter_bits(run.level):
                raise DamageError("the leaf index in tiles.db has a gap")
            end = run.end
        return runs

    def sweep(self) -> None:
        """Remove buckets that belong to no run: a merge did not end."""
        ids = [row[0] for row in self._connection.execute("SELECT id FROM leaf_run ORDER BY id")]
        at = 0
        for run in ids:
            self._delete_between(at, run << _RUN_BITS)
            at = (run + 1) << _RUN_BITS
        self._delete_between(at, (1 << 63) - 1)

    def add(self, first: int, leaves: Iterable[tuple[bytes, int]]) -> Run:
        """Add a run of level 0 over RUN entries: their leaf hashes with their indexes."""
        buckets = [bytearray() for _ in range(_buckets(0))]
        bits = bytearray(_filter_bits(0) // 8)
        for leaf, index in leaves:
            buckets[leaf[0]] += leaf[:PREFIX_SIZE] + index.to_bytes(8)
            _set(bits, int.from_bytes(leaf[:PREFIX_SIZE]))
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            run = Run(self._next_id(), first, 0, bytes(bits))
            self._put_buckets(run.id, 0, buckets)
            self._put_run(run)
        self._upkeep.wrote(RUN * _ITEM + len(bits))
        return run

    def find(self, wanted: Sequence[tuple[bytes, frozenset[int]]]) -> list[list[int]]:
        """Return, for each prefix of 8 bytes, the indexes under it, smallest first.

        Args:
            wanted: Prefixes, each with the runs that may have it; where one of them is gone, all are searched.
        """
        self._connection.execute("BEGIN")
        try:
            levels = dict(self._connection.execute("SELECT id, level FROM leaf_run").fetchall())
            return [
                sorted(
                    index
                    for run in (runs if runs <= levels.keys() else levels)
                    for index in self._in_run(run, levels[run], prefix)
                )
                for prefix, runs in wanted
            ]
        finally:
            self._connection.execute("COMMIT")

    def _in_run(self, run: int, level: int, prefix: bytes) -> list[int]:
        bucket = int.from_bytes(prefix) >> (8 * PREFIX_SIZE - _bucket_bits(level))
        items = self._items(run, bucket)
        found, at = [], items.find(prefix)
        while at >= 0:
            if at % _ITEM == 0:
                found.append(int.from_bytes(items[at + PREFIX_SIZE : at + _ITEM]))
            at = items.find(prefix, at + 1)
        return found

    def _items(self, run: int, bucket: int) -> bytes:
        row = self._connection.execute(
            "SELECT items FROM leaf_bucket WHERE id = ?", (run << _RUN_BITS | bucket,)
        ).fetchone()
        if row is None:
            raise DamageError("the leaf index in tiles.db lacks a bucket; it is rebuilt when tiles.db is removed")
        return bytes(row[0])

    def begin_merge(self, runs: Sequence[Run]) -> Merge:
        """Begin to merge eight runs in a row of one level."""
        return Merge(self, runs, self._next_id())

    def _next_id(self) -> int:
        (newest,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM leaf_run").fetchone()
        self._newest = max(self._newest, newest) + 1
        return self._newest

    def _put_buckets(self, run: int, start: int, buckets: Iterable[bytearray]) -> None:
        rows = [(run << _RUN_BITS | number, bytes(items)) for number, items in enumerate(buckets, start)]
        self._connection.executemany("INSERT INTO leaf_bucket (id, items) VALUES (?, ?)", rows)

    def _put_run(self, run: Run) -> None:
        self._connection.execute(
            "INSERT INTO leaf_run (id, first, level, filter) VALUES (?, ?, ?, ?)",
            (run.id, run.first, run.level, run.filter),
        )

    def _delete_between(self, start: int, end: int) -> None:
        """Remove a range of buckets, in transactions of bounded size."""
        delete = "DELETE FROM leaf_bucket WHERE id IN (SELECT id FROM leaf_bucket WHERE id >= ? AND id < ? LIMIT 512)"
        while deleted := self._connection.execute(delete, (start, end)).rowcount:
            self._upkeep.wrote(deleted * 4096)


class Merge:
    """Eight runs that become one, a part at a time; owned by the thread of the store."""

    def __init__(self, store: LeafStore, runs: Sequence[Run], number: int) -> None:
        self._store = store
        self._runs = runs
        self._level = runs[0].level
        self._id = number
        self._bits = bytearray(_filter_bits(self._level + 1) // 8)
        self._done = 0  # buckets of each old run that are in the new one

    def step(self) -> Run | None:
        """Merge some more buckets in one transaction; return the new run when it has replaced the old ones."""
        store, end = self._store, min(self._done + _STEP, _buckets(self._level))
        connection = store._connection  # noqa: SLF001 — one unit with its store
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for bucket in range(self._done, end):
                store._put_buckets(self._id, bucket * FAN, self._split(bucket))  # noqa: SLF001 — as above
            self._done = end
            run = None
            if end == _buckets(self._level):
                run = Run(self._id, self._runs[0].first, self._level + 1, bytes(self._bits))
                connection.executemany("DELETE FROM leaf_run WHERE id = ?", [(old.id,) for old in self._runs])
                store._put_run(run)  # noqa: SLF001 — as above
        store._upkeep.wrote(_STEP * FAN * RUN // _buckets(0) * _ITEM)  # noqa: SLF001 — as above
        return run

    def sweep(self) -> None:
        """Remove the buckets of the old runs; look-ups no longer see them."""
        for run in self._runs:
            self._store._delete_between(run.id << _RUN_BITS, (run.id + 1) << _RUN_BITS)  # noqa: SLF001 — as above

    def _split(self, bucket: int) -> list[bytearray]:
        """Return the eight buckets that one bucket of each old run becomes."""
        parts = [bytearray() for _ in range(FAN)]
        shift = 8 * PREFIX_SIZE - _bucket_bits(self._level + 1)
        for run in self._runs:
            items = self._store._items(run.id, bucket)  # noqa: SLF001 — as above
            for at in range(0, len(items), _ITEM):
                item = items[at : at + _ITEM]
                prefix = int.from_bytes(item[:PREFIX_SIZE])
                parts[prefix >> shift & FAN - 1] += item
                _set(self._bits, prefix)
        return parts


def prefix_of(leaf_hash: bytes) -> int:
    """Return the first 8 bytes of a leaf hash as a number."""
    return int.from_bytes(leaf_hash[:PREFIX_SIZE])


def _bucket_bits(level: int) -> int:
    """Return how many bits of a prefix choose its bucket."""
    return 8 + FAN_BITS * level


def _buckets(level: int) -> int:
    return 1 << _bucket_bits(level)


def _filter_bits(level: int) -> int:
    return (RUN << FAN_BITS * level) * _FILTER_BITS


def _set(bits: bytearray, prefix: int) -> None:
    mask = len(bits) * 8 - 1
    for shift in _PROBES:
        at = prefix >> shift & mask
        bits[at >> 3] |= 1 << (at & 7)
