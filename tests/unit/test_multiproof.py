"""Multiproofs, against inclusion proofs and roots as the RFC defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfc6962 import Tree
from tlog.errors import VerificationError
from tlog.merkle import leaf_hash
from tlog.multiproof import cut_inclusion_proofs, expand_multiproof, multiproof_nodes, verify_multiproof

ENTRIES = [b"%d" % number for number in range(70)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
TREE = Tree(ENTRIES)


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(st.integers(1, len(ENTRIES)))
    return size, sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))


def proof_of(indexes: list[int], size: int) -> list[bytes]:
    return [TREE.mth(index << level, (index + 1) << level) for level, index in multiproof_nodes(indexes, size)]


@given(trees())
def test_leaves_and_proof_lead_to_the_root_of_the_rfc(tree: tuple[int, list[int]]) -> None:
    size, indexes = tree
    leaves = {index: LEAVES[index] for index in indexes}
    nodes = verify_multiproof(leaves, size, proof_of(indexes, size), TREE.mth(0, size))
    assert list(cut_inclusion_proofs(indexes, size, nodes)) == [TREE.path(index, 0, size) for index in indexes]


@given(trees(), st.data())
def test_one_bit_or_one_hash_that_is_wrong_is_refused(tree: tuple[int, list[int]], data: st.DataObject) -> None:
    size, indexes = tree
    root = TREE.mth(0, size)
    leaves = {index: LEAVES[index] for index in indexes}
    proof = proof_of(indexes, size)
    row = data.draw(st.sampled_from([*indexes, *(-at for at in range(1, len(proof) + 1))]))
    bit = 1 << data.draw(st.integers(0, 255))
    bad_leaves, bad_proof = dict(leaves), list(proof)
    old = leaves[row] if row >= 0 else proof[row]
    flipped = (int.from_bytes(old) ^ bit).to_bytes(32)
    if row >= 0:
        bad_leaves[row] = flipped
    else:
        bad_proof[row] = flipped
    with pytest.raises(VerificationError, match="does not lead"):
        verify_multiproof(bad_leaves, size, bad_proof, root)
    for length in ([*proof, b"\0" * 32], proof[:-1] if proof else [b"\0" * 32]):
        with pytest.raises(VerificationError, match="are needed"):
            verify_multiproof(leaves, size, length, root)


@given(trees(), st.data())
def test_another_index_is_refused(tree: tuple[int, list[int]], data: st.DataObject) -> None:
    size, indexes = tree
    root, proof = TREE.mth(0, size), proof_of(indexes, size)
    leaves = {index: LEAVES[index] for index in indexes}
    other = data.draw(st.integers(0, size + 2).filter(lambda index: index not in leaves))
    moved = {other if index == indexes[0] else index: value for index, value in leaves.items()}
    with pytest.raises(VerificationError):
        verify_multiproof(moved, size, proof, root)


def test_a_row_of_entries_takes_two_nodes_a_level_at_most() -> None:
    assert len(multiproof_nodes(range(5_000, 6_000), 1_000_000)) <= 2 * 20


def test_impossible_input_is_refused() -> None:
    with pytest.raises(VerificationError):
        expand_multiproof({}, 4, [])
    with pytest.raises(VerificationError):
        expand_multiproof({-1: LEAVES[0]}, 4, [])
    with pytest.raises(VerificationError, match="32 bytes"):
        expand_multiproof({0: b"short"}, 1, [])
    with pytest.raises(VerificationError, match="32 bytes"):
        expand_multiproof({0: LEAVES[0]}, 2, [b"short"])
    with pytest.raises(KeyError):
        next(cut_inclusion_proofs([1], 3, verify_multiproof({0: LEAVES[0]}, 1, [], LEAVES[0])))
