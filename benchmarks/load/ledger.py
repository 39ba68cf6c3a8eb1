"""What was acknowledged, held against the log: nothing may be lost, moved, or be at one index with something else.

Every acknowledged entry is compared, byte by byte, with the one that the log holds at its index, read through bundles
and tiles that are verified up to the newest checkpoint. What is known takes eight bytes an index, for a long run has
tens of millions.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tlog.reader import read_entries
from tlog.tile import TILE_WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.load.judge import Judge
    from benchmarks.load.part import Acknowledged
    from tlog.checkpoint import Checkpoint
    from tlog.reader import Reading, TileCache

_CHUNK = 32 * TILE_WIDTH
_NOTHING = -1
_BITS = 44
_SPARSE = 1 << 24


@dataclass(frozen=True, slots=True)
class Ledger:
    """Which entry was acknowledged at which index.

    Attributes:
        first: The smallest index.
        slots: For each index from there on, the number of its source and, in the lower 44 bits, that of its entry.
        sources: What was acknowledged, by source.
    """

    first: int
    slots: array[int]
    sources: Sequence[Acknowledged]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield bounds of indexes to read at once, where anything was acknowledged."""
        end = self.first + len(self.slots)
        for start in range(self.first // _CHUNK * _CHUNK, end, _CHUNK):
            if any(slot != _NOTHING for slot in self._slots(start, start + _CHUNK)):
                yield start, start + _CHUNK

    def expected(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield index and entry of what was acknowledged within bounds."""
        for index, slot in enumerate(self._slots(start, end), max(start, self.first)):
            if slot != _NOTHING:
                yield index, self.sources[slot >> _BITS].source.entry(slot & ((1 << _BITS) - 1))

    def _slots(self, start: int, end: int) -> array[int]:
        return self.slots[max(0, start - self.first) : max(0, end - self.first)]


def write_ledger(judge: Judge, sources: Sequence[Acknowledged], size: int | None) -> Ledger:
    """Put together what was acknowledged; tell the judge what can be no log's.

    Args:
        judge: Is told of two entries at one index, and of indexes beyond the size.
        sources: What was acknowledged, by source.
        size: Size of the newest checkpoint; None where there is none.
    """
    count = sum(len(one.indexes) for one in sources)
    first = min((min(one.indexes) for one in sources if one.indexes), default=0)
    last = max((max(one.indexes) for one in sources if one.indexes), default=-1)
    end = last + 1 if size is None else min(size, last + 1)
    if end - first > 2 * count + _SPARSE:
        judge.fail(f"{count} entries were acknowledged at indexes from {first} to {last}")
        return Ledger(0, array("q"), sources)
    slots = array("q", [_NOTHING]) * max(0, end - first)
    beyond = 0
    for which, one in enumerate(sources):
        for index, number in zip(one.indexes, one.numbers, strict=True):
            if index >= end:
                beyond += 1
            elif slots[index - first] != _NOTHING:
                judge.fail(f"two entries were acknowledged at index {index}")
            else:
                slots[index - first] = which << _BITS | number
    if beyond:
        judge.fail(f"{beyond} acknowledged entries are beyond the newest checkpoint, of size {size}")
    return Ledger(first, slots, sources)


def check_acknowledged(judge: Judge, sources: Sequence[Acknowledged]) -> int:
    """Compare what was acknowledged with what the log holds; tell the judge what is wrong.

    Returns:
        How many entries are where they were acknowledged.
    """
    size = judge.head.size
    ledger = write_ledger(judge, sources, size)
    right = 0
    for start, chunk_end in ledger.chunks():
        end = min(chunk_end, size)
        with judge.judging(f"entries {start} to {end - 1}"):
            entries = judge.read(partial(_entries, start, end))
            for index, entry in ledger.expected(start, end):
                if entries[index - start] == entry:
                    right += 1
                else:
                    judge.fail(f"index {index} does not hold the entry that was acknowledged there")
    return right


def check_distinct(judge: Judge, sources: Sequence[Acknowledged]) -> int:
    """Check that no two entries were acknowledged at one index; return how many indexes there are."""
    return sum(slot != _NOTHING for slot in write_ledger(judge, sources, None).slots)


def _entries(start: int, end: int, head: Checkpoint, cache: TileCache) -> Reading[list[bytes]]:
    return read_entries(head, start, end, cache)
