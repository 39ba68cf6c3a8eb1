"""Checking the leaf index in tiles.db (see `tlog.server.storage.leaves`), by its own reading of the format.

Every entry that runs cover must be found by its leaf hash, or an earlier one that is equal. Items that name no entry of
their run, stand in the wrong bucket or are missing in the filter are damage, too.
"""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.server.storage.database import typed
from tlog.server.storage.leaves import FAN_BITS, PREFIX_SIZE, RUN
from tlog.server.verify.finding import TILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlog.server.verify.finding import Findings

_ITEM = 16  # prefix ‖ index
_RUN_BITS = 32  # of a bucket's id are for its number
_FILTER_BITS = 16  # for each entry
_PROBES = (0, 11, 22, 33)
_MAX_LEVEL = 16


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of the leaf index."""

    id: int
    first: int
    level: int
    filter: bytes

    @property
    def count(self) -> int:
        return RUN << FAN_BITS * self.level

    @property
    def bucket_bits(self) -> int:
        return 8 + FAN_BITS * self.level


class StoredLeaves:
    """The leaf index of tiles.db.

    Attributes:
        end: Entries below it are in runs.
    """

    def __init__(self, connection: sqlite3.Connection, findings: Findings) -> None:
        """Read the runs, which must leave no gap."""
        self._connection = connection
        self._findings = findings
        self._runs: list[_Run] = []
        self.end = 0
        for row in connection.execute("SELECT id, first, level, filter, crc FROM leaf_run ORDER BY first"):
            *values, crc = typed(row, int, int, int, bytes, int)
            run = _Run(*values)
            if run.first != self.end or not 0 <= run.level < _MAX_LEVEL:
                findings.damage(TILES, f"the leaf index does not go on at entry {self.end}")
                break
            if len(run.filter) * 8 != run.count * _FILTER_BITS or zlib.crc32(run.filter) != crc:
                findings.damage(TILES, f"the leaf index from entry {run.first} on has a filter that is not its own")
                break
            self._runs.append(run)
            self.end += run.count

    def _items(self, run: _Run, bucket: int) -> bytes | None:
        key = run.id << _RUN_BITS | bucket
        try:
            row = self._connection.execute("SELECT items, crc FROM leaf_bucket WHERE id = ?", (key,)).fetchone()
            row = row and typed(row, bytes, int)
        except sqlite3.DatabaseError:
            return None
        return None if row is None or len(row[0]) % _ITEM or zlib.crc32(row[0]) != row[1] else bytes(row[0])

    def find(self, leaf: bytes, before: int) -> Iterator[int]:
        """Yield the indexes up to one that the index gives for the prefix of a leaf hash."""
        prefix = leaf[:PREFIX_SIZE]
        for run in self._runs:
            if run.first > before or not _may_have(run.filter, int.from_bytes(prefix)):
                continue
            items = self._items(run, int.from_bytes(prefix) >> 8 * PREFIX_SIZE - run.bucket_bits) or b""
            for at in range(0, len(items), _ITEM):
                index = int.from_bytes(items[at + PREFIX_SIZE : at + _ITEM])
                if items[at : at + PREFIX_SIZE] == prefix and index <= before:
                    yield index

    def check_found(self, index: int, leaf: bytes, leaf_of: Callable[[int], bytes | None]) -> None:
        """Check that an entry is found by its leaf hash, or an earlier one that is equal.

        Args:
            index: Index of the entry.
            leaf: Its leaf hash.
            leaf_of: Reads the leaf hash of another entry.
        """
        found = self.find(leaf, index)
        if index < self.end and not any(at == index or leaf_of(at) == leaf for at in found):
            self._findings.damage(TILES, f"the leaf index does not find entry {index}")

    def check_all(self, prefixes: bytes, leaf_of: Callable[[int], bytes | None]) -> None:
        """Check every item of every run.

        Args:
            prefixes: The first 8 bytes of the leaf hash of every entry, one after the other.
            leaf_of: Reads the leaf hash of an entry.
        """
        for run in self._runs:
            if (run.first + run.count) * PREFIX_SIZE > len(prefixes):
                self._findings.damage(
                    TILES, f"the leaf index from entry {run.first} on is of entries that are not there"
                )
                return
            seen = self._check_items(run, prefixes)
            at = seen.find(0)
            while at >= 0:  # a duplicate, or lost
                leaf = leaf_of(run.first + at)
                if leaf is not None:
                    self.check_found(run.first + at, leaf, leaf_of)
                at = seen.find(0, at + 1)
            self._findings.count("leaves", run.count)

    def _check_items(self, run: _Run, prefixes: bytes) -> bytearray:
        """Check the items of a run, and return for each of its entries whether there was one for it."""
        seen = bytearray(run.count)
        bits = bytearray(len(run.filter))
        for bucket in range(1 << run.bucket_bits):
            items = self._items(run, bucket)
            if items is None:
                self._findings.damage(
                    TILES, f"the leaf index from entry {run.first} on lacks a bucket, or it is damaged"
                )
                continue
            for at in range(0, len(items), _ITEM):
                prefix, index = items[at : at + PREFIX_SIZE], int.from_bytes(items[at + PREFIX_SIZE : at + _ITEM])
                number, offset = int.from_bytes(prefix), index - run.first
                is_its = 0 <= offset < run.count and prefixes[index * PREFIX_SIZE : (index + 1) * PREFIX_SIZE] == prefix
                if not is_its or number >> 8 * PREFIX_SIZE - run.bucket_bits != bucket:
                    self._findings.damage(TILES, f"the leaf index from entry {run.first} on holds an item of no entry")
                    continue
                seen[offset] = 1
                _set(bits, number)
        if bits != run.filter:
            self._findings.damage(TILES, f"the leaf index from entry {run.first} on has a filter that is not its own")
        return seen


def _may_have(bits: bytes, prefix: int) -> bool:
    return all(bits[at >> 3] >> (at & 7) & 1 for at in _positions(bits, prefix))


def _set(bits: bytearray, prefix: int) -> None:
    for at in _positions(bits, prefix):
        bits[at >> 3] |= 1 << (at & 7)


def _positions(bits: bytes | bytearray, prefix: int) -> list[int]:
    return [prefix >> shift & len(bits) * 8 - 1 for shift in _PROBES]
