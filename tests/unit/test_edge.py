"""The right edge of a tree against the RFC's recursive definition."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfc6962 import Tree
from tlog.edge import Edge, Growth, extend

TREE = Tree([b"%d" % number for number in range(3000)])


@cache
def grown(size: int) -> Edge:
    return extend(Edge(), leaves(0, size)).new


def leaves(start: int, end: int) -> list[bytes]:
    return [TREE.mth(index, index + 1) for index in range(start, end)]


def check(growth: Growth, old: int, new: int) -> None:
    """Compare everything that a batch brought with the definition."""
    assert growth.old == grown(old)
    assert growth.new.size == new
    assert growth.new.root() == TREE.mth(0, new)
    nodes = growth.new.nodes()
    assert len(nodes) == new.bit_count()
    assert list(growth.new.peaks) == [TREE.mth(index << level, index + 1 << level) for level, index in nodes]
    for level, hashes in enumerate(growth.levels):
        expected = range(old >> level, new >> level)
        assert hashes == [TREE.mth(index << level, index + 1 << level) for index in expected]
        for index, value in list(zip(expected, hashes, strict=True))[-2:]:
            assert growth.hash_of((level, index)) == value
    assert new >> len(growth.levels) == 0


def test_every_batch_up_to_130_leaves_brings_what_the_rfc_defines() -> None:
    for new in range(131):
        for old in range(new + 1):
            check(extend(grown(old), leaves(old, new)), old, new)


@given(st.integers(0, 1500), st.integers(0, 1500))
def test_large_batches_bring_what_the_rfc_defines(old: int, more: int) -> None:
    check(extend(grown(old), leaves(old, old + more)), old, old + more)


def test_the_empty_tree_has_the_empty_root_and_no_peaks() -> None:
    assert Edge().root() == TREE.mth(0, 0)
    assert Edge().nodes() == []


def test_the_peaks_of_thirteen_leaves_are_those_of_the_docstring() -> None:
    assert grown(13).nodes() == [(3, 0), (2, 2), (0, 12)]


def test_a_growth_knows_its_new_nodes_and_its_old_peaks_and_no_other() -> None:
    growth = extend(grown(13), leaves(13, 20))
    for level, index in grown(13).nodes():
        assert growth.hash_of((level, index)) == TREE.mth(index << level, index + 1 << level)
    for node in ((0, 0), (0, 20), (2, 0), (5, 0), (1, 4)):
        with pytest.raises(KeyError):
            growth.hash_of(node)
