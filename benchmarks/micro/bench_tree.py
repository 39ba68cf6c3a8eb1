"""The tree: hashing, growing, counting a second time, and its proofs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.micro.fixture import entries, hashes
from tlog.edge import Edge, extend
from tlog.merkle import (
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from tlog.server.recount import Recount
from tlog.tile import format_bundle

if TYPE_CHECKING:
    from benchmarks.micro.fixture import Benchmark
    from tlog.edge import Growth

SIZE = 1_000_003
"""Leaves before a batch: an odd edge with many peaks, as a log has it."""

BATCHES = (1, 64, 1024)


def edge_of(size: int) -> Edge:
    """Return an edge of that size; its hashes need not be those of entries."""
    return Edge(size, tuple(hashes(size.bit_count())))


def test_leaf_hash(benchmark: Benchmark) -> None:
    """Hash an entry of 300 bytes."""
    (entry,) = entries(1)
    assert len(benchmark(lambda: leaf_hash(entry))) == 32


def test_node_hash(benchmark: Benchmark) -> None:
    """Hash two nodes."""
    left, right = hashes(2)
    assert len(benchmark(lambda: node_hash(left, right))) == 32


@pytest.mark.parametrize("count", BATCHES)
def test_extend(benchmark: Benchmark, count: int) -> None:
    """Grow the edge by a batch, as step 3 of a commit does."""
    edge, leaves = edge_of(SIZE), hashes(count)
    assert benchmark(lambda: extend(edge, leaves)).new.size == SIZE + count


@pytest.mark.parametrize("count", BATCHES)
def test_recount(benchmark: Benchmark, count: int) -> None:
    """Count a stored batch the second way, as step 5 does; its leaf hashes are part of it."""
    edge, framed = edge_of(SIZE), format_bundle(entries(count))
    heights = (level for level, _ in edge.nodes())
    recount = Recount(edge.size, tuple(zip(heights, edge.peaks, strict=True)))

    def count_again() -> tuple[int, bytes]:
        counted, _ = recount.add(framed)
        return counted.size, counted.root()

    assert benchmark(count_again)[0] == SIZE + count


@pytest.mark.parametrize("count", BATCHES)
def test_consistency(benchmark: Benchmark, count: int) -> None:
    """Prove a growth, and verify the proof."""
    growth = extend(edge_of(SIZE), hashes(count))
    old_root, new_root = growth.old.root(), growth.new.root()

    def prove_and_verify() -> None:
        proof = _consistency(growth)
        verify_consistency(SIZE, SIZE + count, proof, old_root, new_root)

    benchmark(prove_and_verify)


def _consistency(growth: Growth) -> list[bytes]:
    old, new = growth.old.size, growth.new.size
    return consistency_proof(old, new, [growth.hash_of(node) for node in consistency_nodes(old, new)])


def test_build_inclusion(benchmark: Benchmark) -> None:
    """Plan and fold an inclusion proof in a tree of a million leaves; reading its hashes is not part of it."""
    index = SIZE // 3
    values = hashes(len(inclusion_nodes(index, SIZE)))

    def build() -> list[bytes]:
        nodes = inclusion_nodes(index, SIZE)
        return inclusion_proof(index, SIZE, values[: len(nodes)])

    assert benchmark(build)


def test_verify_inclusion(benchmark: Benchmark) -> None:
    """Verify the inclusion proof of the first leaf of a batch, in a tree of a million leaves."""
    leaves = hashes(64)
    growth = extend(edge_of(SIZE), leaves)
    size, root = growth.new.size, growth.new.root()
    proof = inclusion_proof(SIZE, size, [growth.hash_of(node) for node in inclusion_nodes(SIZE, size)])
    benchmark(lambda: verify_inclusion(leaves[0], SIZE, size, proof, root))
