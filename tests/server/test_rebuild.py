"""Building tiles anew: whatever segments a log is made of, what is written is what the RFC and the follower say."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.support.rfc6962 import Tree
from tests.support.static import content, framed
from tests.support.writing import memory_database
from tlog.errors import FormatError
from tlog.server import rebuild
from tlog.server.rebuild import Builder
from tlog.server.storage import Segment
from tlog.server.storage import leaves as runs
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.tiles import TileStore
from tlog.tile import Tile

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = 256


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rebuild, runs):
        monkeypatch.setattr(module, "RUN", RUN)


def segments(entries: Sequence[bytes], lengths: Sequence[int]) -> list[Segment]:
    """Return entries in segments of these lengths, and the rest in one."""
    ends = [end for end in accumulate(lengths) if end < len(entries)]
    bounds = pairwise([0, *ends, len(entries)])
    return [Segment(start, end - start, framed(entries[start:end]), b"", b"", 0) for start, end in bounds]


class Built:
    """A store that was built from segments, a few at a time."""

    def __init__(self, parts: Sequence[Segment], at_once: int) -> None:
        self.database = memory_database()
        self.tiles, self.leaves = TileStore(self.database), LeafStore(self.database)
        self.builder = Builder(self.tiles, self.leaves, parts[-1].end)
        for start in range(0, len(parts), at_once):
            self.builder.take(parts[start : start + at_once])

    def check_tiles(self, tree: Tree) -> None:
        size = len(tree.entries)
        assert self.builder.size == size
        assert self.tiles.position() == size // 256 * 256
        for level in range(3):
            count = size >> 8 * (level + 1)
            found = self.tiles.tiles([Tile(level, index) for index in range(count + 1)])
            assert found == [*(content(tree, (level, index, 256)) for index in range(count)), None]
        for index in range(size // 256):
            data = self.tiles.bundle(index)
            assert data is not None
            assert zlib.decompress(data, 31) == content(tree, (None, index, 256))
        assert self.tiles.bundle(size // 256) is None

    def find(self, leaf: bytes) -> list[int]:
        prefix = int.from_bytes(leaf[:8])
        mine = frozenset(run.id for run in self.leaves.runs() if run.may_have(prefix))
        return self.leaves.find([(leaf[:8], mine)])[0] if mine else []


LENGTHS = [[1] * 300, [256] * 9, [1, 255, 257, 511, 1, 1, 1000], [700] * 10, []]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_tiles_and_bundles_are_those_of_the_rfc(lengths: list[int], at_once: int) -> None:
    random = Random(f"{lengths}{at_once}")
    for size in (1, 255, 256, 2500):
        entries = [random.randbytes(random.randrange(40)) for _ in range(size)]
        Built(segments(entries, lengths), at_once).check_tiles(Tree(entries))


def test_upper_tiles_are_written_when_they_are_full() -> None:
    entries = [b"%d" % number for number in range(65_536 + 300)]
    Built(segments(entries, [5000] * 20), 4).check_tiles(Tree(entries))


@pytest.mark.parametrize(
    ("count", "levels"),
    [(0, []), (1, [0]), (7, [0] * 7), (8, [1]), (17, [1, 1, 0]), (64, [2]), (74, [2, 1, 0, 0]), (129, [2, 2, 0])],
)
def test_runs_are_made_at_their_final_size_and_find_every_entry(count: int, levels: list[int]) -> None:
    size = count * RUN + 100
    entries = [b"%d" % number for number in range(size)]
    tree = Tree(entries)
    built = Built(segments(entries, [1000] * 100), 5)
    found = built.leaves.runs()
    assert [run.level for run in found] == levels
    assert (found[-1].end if found else 0) == count * RUN
    for index in range(0, size, 37):
        assert built.find(tree.mth(index, index + 1)) == ([index] if index < count * RUN else [])
    for _ in built.leaves.reread():
        pass
    misses = [built.find(Random(number).randbytes(32)) for number in range(500)]
    assert misses == [[]] * 500


def test_of_equal_entries_near_each_other_only_the_first_is_kept() -> None:
    entries = [b"same"] * (64 * RUN)
    built = Built(segments(entries, [1000] * 100), 5)
    assert [run.level for run in built.leaves.runs()] == [2]
    assert built.find(Tree(entries).mth(0, 1)) == list(range(0, 64 * RUN, RUN))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_segment_of_another_number_of_entries_is_refused(change: int) -> None:
    parts = segments([b"%d" % number for number in range(600)], [300])
    parts[1] = replace(parts[1], count=parts[1].count + change)
    with pytest.raises(FormatError):
        Built(parts, 2)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_segment_that_is_cut_off_is_refused(cut: int) -> None:
    parts = segments([b"x"] * 600, [300])
    parts[1] = replace(parts[1], entries=parts[1].entries[:-cut])
    with pytest.raises(FormatError):
        Built(parts, 2)
