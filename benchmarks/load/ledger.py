"""What was acknowledged, held against the log: nothing may be lost, moved, or be at one index with something else.

Every acknowledged entry is compared, byte by byte, with the one that the log holds at its index, read through bundles
and tiles that are verified up to the newest checkpoint.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from tlog.reader import read_entries
from tlog.tile import TILE_WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.load.judge import Judge
    from benchmarks.load.part import Acknowledged
    from tlog.checkpoint import Checkpoint
    from tlog.reader import Reading, TileCache

Place: TypeAlias = tuple[int, int, int]
"""An index, and of the entry there: which source, and its number."""

_CHUNK = 32 * TILE_WIDTH


def check_acknowledged(judge: Judge, ledger: Sequence[Acknowledged]) -> int:
    """Compare what was acknowledged with what the log holds; tell the judge what is wrong.

    Returns:
        How many entries are where they were acknowledged.
    """
    places = places_of(ledger)
    check_distinct(judge, places)
    size = judge.head.size
    beyond = sum(place[0] >= size for place in places)
    if beyond:
        judge.fail(f"{beyond} acknowledged entries are beyond the newest checkpoint, of size {size}")
    right = 0
    for start, group in _groups(places[: len(places) - beyond]):
        end = min(start + _CHUNK, size)
        with judge.judging(f"entries {start} to {end - 1}"):
            entries = judge.read(partial(_entries, start, end))
            right += _compare(judge, ledger, group, entries[: end - start], start)
    return right


def check_distinct(judge: Judge, places: Sequence[Place]) -> int:
    """Check that no two entries were acknowledged at one index; return how many there are."""
    for before, after in itertools.pairwise(places):
        if before[0] == after[0]:
            judge.fail(f"two entries were acknowledged at index {after[0]}")
    return len(places)


def _entries(start: int, end: int, head: Checkpoint, cache: TileCache) -> Reading[list[bytes]]:
    return read_entries(head, start, end, cache)


def _compare(
    judge: Judge, ledger: Sequence[Acknowledged], group: Sequence[Place], entries: Sequence[bytes], start: int
) -> int:
    right = 0
    for index, which, number in group:
        if entries[index - start] == ledger[which].source.entry(number):
            right += 1
        else:
            judge.fail(f"index {index} does not hold the entry that was acknowledged there")
    return right


def places_of(ledger: Sequence[Acknowledged]) -> list[Place]:
    """Return all places, by index."""
    return sorted(
        (index, which, number)
        for which, one in enumerate(ledger)
        for index, number in zip(one.indexes, one.numbers, strict=True)
    )


def _groups(places: Sequence[Place]) -> Iterator[tuple[int, Sequence[Place]]]:
    """Yield places that are read together, with the first index to read."""
    at = 0
    while at < len(places):
        start = places[at][0] // _CHUNK * _CHUNK
        upto = at
        while upto < len(places) and places[upto][0] < start + _CHUNK:
            upto += 1
        yield start, places[at:upto]
        at = upto
