"""The leaf index in tiles.db: from the first 8 bytes of a leaf hash to the indexes that may have it.

It is a list of *runs*, each over RUN · 8^level entries in a row, oldest first and without a gap. A run never changes;
eight of one level are merged into one of the next. Within a run, items lie in *buckets* by the first bits of their
prefix, a few hundred in each, so a look-up reads one row a run:

    item     prefix [8] ‖ index, 64 bits
    bucket   the items whose prefix begins with its number, in no order
    filter   16 bits an item, 4 of them set for it: where one of them is not set, the run does not have the prefix

Derived from log.db, and only a hint: what it finds counts when the whole leaf hash is the one in the tree. What it does
not find is believed, so buckets and filters carry a CRC-32: a flipped bit is damage, and never an entry that seems new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

from tlog.server.errors import DamageError
from tlog.server.storage.database import Upkeep, typed
from tlog.server.storage.draft import ITEM, PROBES, Draft, prefixes_of
from tlog.server.storage.wal import number_transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping, Sequence

RUN = 1 << 16
"""Entries of a run of level 0; above the newest run they are all in memory."""

FAN_BITS = 3

FAN = 1 << FAN_BITS
"""Runs of one level that are merged into one of the next."""

PREFIX_SIZE = 8
"""Bytes of a leaf hash in an item."""

SCHEMA = """
CREATE TABLE leaf_run (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, level INTEGER NOT NULL, filter BLOB NOT NULL, crc INTEGER NOT NULL
) STRICT;
CREATE TABLE leaf_bucket (id INTEGER PRIMARY KEY, items BLOB NOT NULL, crc INTEGER NOT NULL) STRICT;
"""

_FILTER_BITS = 16  # for each item: with 4 of them set, one look-up in 400 finds a prefix that is not there
_RUN_BITS = 32  # of a bucket's id are for its number
_MAX_RUN = (1 << 31) - 1
_STEP = 16  # buckets of each run that are merged in one transaction: about 1 MB
_SWEEP = 512  # buckets that are removed in one transaction: about 2 MB
_MAX_LEVEL = 15


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
        at = prefix & mask  # the first of PROBES, which says no to most
        if not bits[at >> 3] >> (at & 7) & 1:
            return False
        for shift in PROBES:
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
            DamageError: They leave a gap, or a filter is damaged.
        """
        rows = self._connection.execute("SELECT id, first, level, filter, crc FROM leaf_run ORDER BY first").fetchall()
        runs: list[Run] = []
        for row in rows:
            *values, crc = typed(row, int, int, int, bytes, int)
            run = Run(*values)
            if run.first != (runs[-1].end if runs else 0) or not 0 <= run.level <= _MAX_LEVEL:
                raise DamageError("the leaf index in tiles.db has a gap")
            if len(run.filter) * 8 != _filter_bits(run.level) or crc32(run.filter) != crc:
                raise DamageError("a filter of the leaf index in tiles.db is damaged")
            runs.append(run)
        return runs

    def sweep(self) -> bool:
        """Remove some buckets that belong to no run, because a merge did not end; return whether there were any.

        Never while a merge is under way.
        """
        ids = [row[0] for row in self._connection.execute("SELECT id FROM leaf_run ORDER BY id")]
        gaps = zip([-1, *ids], [*ids, _MAX_RUN], strict=True)
        return any(self._delete_some((before + 1) << _RUN_BITS, after << _RUN_BITS) for before, after in gaps)

    def condemn(self) -> None:
        """Let the next start find that tiles.db is damaged, and build it anew from the entries."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM position")
            number_transaction(self._connection)

    def add(self, first: int, leaves: Mapping[bytes, int]) -> Run:
        """Add a run of level 0 over RUN entries: their leaf hashes with their indexes."""
        draft = new_draft(first, 0)
        draft.pour(leaves)
        return self.put(draft)

    def put(self, draft: Draft) -> Run:
        """Add a run that was made in memory, in one transaction."""
        run = Run(self._next_id(), draft.first, draft.level, draft.filter())
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._put_buckets(run.id, 0, draft.buckets)
            self._put_run(run)
            number_transaction(self._connection)
        self._upkeep.wrote((RUN << FAN_BITS * run.level) * ITEM + len(run.filter))
        return run

    def find(self, wanted: Sequence[tuple[bytes, frozenset[int]]]) -> list[list[int]]:
        """Return, for each prefix of 8 bytes, the indexes under it, smallest first.

        Args:
            wanted: Prefixes, each with the runs that may have it; where one of them is gone, all are searched.
        """
        self._connection.execute("BEGIN")
        try:
            rows = self._connection.execute("SELECT id, level FROM leaf_run").fetchall()
            levels = dict(typed(row, int, int) for row in rows)
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

    def reread(self) -> Iterator[int]:
        """Read every run again, a piece at a time, and yield the bytes of each; runs that are merged meanwhile end.

        Raises:
            DamageError: A run, its filter or a bucket is missing or damaged.
        """
        for run in self.runs():
            yield len(run.filter)
            for start in range(0, _buckets(run.level), _STEP):
                read = self._reread(run, range(start, start + _STEP))
                if not read:
                    break
                yield read

    def _reread(self, run: Run, buckets: range) -> int:
        """Return the bytes of some buckets, whose checksums are right; 0 where their run is gone."""
        self._connection.execute("BEGIN")
        try:
            found = self._connection.execute("SELECT 1 FROM leaf_run WHERE id = ?", (run.id,)).fetchone()
            return 1 + sum(len(self._items(run.id, bucket)) for bucket in buckets) if found else 0
        finally:
            self._connection.execute("COMMIT")

    def begin_merge(self, runs: Sequence[Run]) -> Merge:
        """Begin to merge eight runs in a row of one level."""
        return Merge(tuple(runs), self._next_id(), bytearray(_filter_bits(runs[0].level + 1) // 8))

    def merge_some(self, merge: Merge) -> Run | None:
        """Merge some more buckets in one transaction; return the new run when it has replaced the old ones.

        Raises:
            DamageError: A bucket is missing or damaged.
        """
        level = merge.runs[0].level
        end = min(merge.done + _STEP, _buckets(level))
        run = None
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for bucket in range(merge.done, end):
                self._put_buckets(merge.id, bucket * FAN, self._split(merge, bucket))
            if end == _buckets(level):
                run = Run(merge.id, merge.runs[0].first, level + 1, bytes(merge.bits))
                self._connection.executemany("DELETE FROM leaf_run WHERE id = ?", [(old.id,) for old in merge.runs])
                self._put_run(run)
            number_transaction(self._connection)
        merge.done = end
        self._upkeep.wrote((_STEP * FAN * RUN // _buckets(0)) * ITEM)
        return run

    def sweep_some(self, merge: Merge) -> bool:
        """Remove some buckets of the old runs, which look-ups no longer see; return whether there were any."""
        return any(self._delete_some(run.id << _RUN_BITS, (run.id + 1) << _RUN_BITS) for run in merge.runs)

    def _split(self, merge: Merge, bucket: int) -> list[bytearray]:
        """Return the eight buckets that one bucket of each old run becomes."""
        parts = [bytearray() for _ in range(FAN)]
        shift = 8 * PREFIX_SIZE - _bucket_bits(merge.runs[0].level + 1)
        for run in merge.runs:
            items = self._items(run.id, bucket)
            prefixes = prefixes_of(items)
            for prefix, at in zip(prefixes, range(0, len(items), ITEM), strict=True):
                parts[prefix >> shift & FAN - 1] += items[at : at + ITEM]
            _set(merge.bits, prefixes)
        return parts

    def _in_run(self, run: int, level: int, prefix: bytes) -> list[int]:
        bucket = int.from_bytes(prefix) >> (8 * PREFIX_SIZE - _bucket_bits(level))
        items = self._items(run, bucket)
        found, at = [], items.find(prefix)
        while at >= 0:
            if at % ITEM == 0:
                found.append(int.from_bytes(items[at + PREFIX_SIZE : at + ITEM]))
            at = items.find(prefix, at + 1)
        return found

    def _items(self, run: int, bucket: int) -> bytes:
        row = self._connection.execute(
            "SELECT items, crc FROM leaf_bucket WHERE id = ?", (run << _RUN_BITS | bucket,)
        ).fetchone()
        if row is None or crc32(typed(row, bytes, int)[0]) != row[1]:
            raise DamageError("the leaf index in tiles.db is damaged; it is built anew at the next start")
        return bytes(row[0])

    def _next_id(self) -> int:
        """Return a number that no run has, and no bucket that a merge has left."""
        for table, bits in (("leaf_run", 0), ("leaf_bucket", _RUN_BITS)):
            (found,) = self._connection.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()  # noqa: S608 — constants
            self._newest = max(self._newest, found >> bits)
        self._newest += 1
        return self._newest

    def _put_buckets(self, run: int, start: int, buckets: Iterable[bytearray]) -> None:
        rows = [(run << _RUN_BITS | number, bytes(items), crc32(items)) for number, items in enumerate(buckets, start)]
        self._connection.executemany("INSERT INTO leaf_bucket (id, items, crc) VALUES (?, ?, ?)", rows)

    def _put_run(self, run: Run) -> None:
        self._connection.execute(
            "INSERT INTO leaf_run (id, first, level, filter, crc) VALUES (?, ?, ?, ?, ?)",
            (run.id, run.first, run.level, run.filter, crc32(run.filter)),
        )

    def _delete_some(self, start: int, end: int) -> bool:
        """Remove buckets of a range in a transaction of bounded size; return whether there were any."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            deleted = self._connection.execute(
                "DELETE FROM leaf_bucket WHERE id IN (SELECT id FROM leaf_bucket WHERE id >= ? AND id < ? LIMIT ?)",
                (start, end, _SWEEP),
            ).rowcount
            if deleted:
                number_transaction(self._connection)
        self._upkeep.wrote(deleted * (RUN // _buckets(0)) * ITEM)
        return deleted > 0


@dataclass(slots=True)
class Merge:
    """Eight runs that become one, a part at a time; owned by the thread of the store.

    Attributes:
        runs: The old runs.
        id: Number of the new one.
        bits: Its filter so far.
        done: Buckets of each old run that are in the new one.
    """

    runs: tuple[Run, ...]
    id: int
    bits: bytearray = field(repr=False)
    done: int = 0


def new_draft(first: int, level: int) -> Draft:
    """Return a run of a level to be made in memory."""
    return Draft(first, level, _bucket_bits(level), _filter_bits(level))


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


def _set(bits: bytearray, prefixes: Iterable[int]) -> None:
    """Set the bits of a filter that prefixes have."""
    mask = len(bits) * 8 - 1
    for prefix in prefixes:
        for shift in PROBES:
            at = prefix >> shift & mask
            bits[at >> 3] |= 1 << (at & 7)
