"""The Merkle tree against the RFCs' recursive definitions, the values they print, and the vectors of other logs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import flip
from tests.support.rfc6962 import Tree, is_valid_subtree
from tests.support.skips import vectors
from tlog.errors import VerificationError
from tlog.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    Node,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_inclusion_proof,
    subtree_consistency_nodes,
    subtree_consistency_proof,
    subtree_inclusion_nodes,
    subtree_inclusion_proof,
    subtree_nodes,
    subtree_root,
    tree_root,
    verify_consistency,
    verify_inclusion,
    verify_subtree_consistency,
    verify_subtree_inclusion,
)

pytestmark = pytest.mark.invariant("I21")

BOUND = 130
TREE = Tree([b"entry %d" % number for number in range(5000)])
UNIFORM = Tree([b"the same"], uniform=True)
JUNK = b"\x55" * 32

Verify: TypeAlias = Callable[[Sequence[bytes]], None]


def hashes_of(nodes: list[Node], tree: Tree = TREE) -> list[bytes]:
    """Return the hashes of nodes, by the RFC."""
    return [tree.mth(index << level, index + 1 << level) for level, index in nodes]


def root(size: int) -> bytes:
    return TREE.mth(0, size)


def leaf(index: int) -> bytes:
    return TREE.mth(index, index + 1)


def valid_subtrees(size: int) -> Iterator[tuple[int, int]]:
    """Yield every valid subtree of a tree of that size."""
    for start in range(size):
        for end in range(start + 1, size + 1):
            if is_valid_subtree(start, end):
                yield start, end
            elif start:  # a longer one is not valid either
                break


def refuses(verify: Verify, proof: Sequence[bytes]) -> None:
    with pytest.raises(VerificationError):
        verify(proof)


def refuses_every_other_proof(verify: Verify, proof: list[bytes]) -> None:
    """Accept a proof, and refuse each that differs from it in one respect."""
    verify(proof)
    verify(tuple(proof))
    refuses(verify, [*proof, JUNK])
    refuses(verify, [JUNK, *proof])
    refuses(verify, [*proof, *proof[-1:], JUNK])
    for at, value in enumerate(proof):
        for bad in (flip(value, 0), flip(value, -1), value[:31], value + b"\x00", b"", bytes(32)):
            refuses(verify, [*proof[:at], bad, *proof[at + 1 :]])
        refuses(verify, proof[:at] + proof[at + 1 :])
        refuses(verify, proof[: at + 1] + proof[at:])
    for at in range(1, len(proof)):
        refuses(verify, [*proof[: at - 1], proof[at], proof[at - 1], *proof[at + 1 :]])


# --------------------------------------------------------------------------------------------------- hashes and roots


def test_the_hashes_are_those_that_the_rfc_defines() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"\x00").hex() == "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    left_and_right = leaf_hash(b""), leaf_hash(b"\x00")
    assert node_hash(*left_and_right).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"


def test_every_root_equals_the_rfc_definition() -> None:
    for size in range(BOUND + 1):
        leaves = [leaf(index) for index in range(size)]
        assert tree_root(leaves) == root(size)
        assert tree_root(tuple(leaves)) == root(size)


@given(st.lists(st.binary(max_size=40), max_size=700))
def test_the_root_of_any_entries_equals_the_rfc_definition(entries: list[bytes]) -> None:
    assert tree_root(list(map(leaf_hash, entries))) == Tree(entries).mth(0, len(entries))


def test_every_valid_subtree_folds_to_the_rfc_definition() -> None:
    for start, end in valid_subtrees(BOUND):
        nodes = subtree_nodes(start, end)
        assert nodes[0][1] << nodes[0][0] == start
        assert subtree_root(start, end, hashes_of(nodes)) == TREE.mth(start, end)


def test_what_is_not_a_valid_subtree_is_refused() -> None:
    for start in range(-2, 20):
        for end in range(-2, 40):
            if is_valid_subtree(start, end):
                verify_subtree_consistency(
                    start, end, end, TREE.subtree_proof(start, end, end), TREE.mth(start, end), root(end)
                )
                continue
            with pytest.raises(ValueError, match="not a valid subtree"):
                subtree_nodes(start, end)
            with pytest.raises(VerificationError):
                verify_subtree_consistency(start, end, 64, [], EMPTY_ROOT, root(64))
            with pytest.raises(VerificationError):
                verify_subtree_inclusion(leaf(0), start, start, end, [], leaf(0))


# --------------------------------------------------------------------------------------------------- proofs are right


def test_every_inclusion_proof_equals_path_and_verifies() -> None:
    for size in range(1, BOUND + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, hashes_of(inclusion_nodes(index, size)))
            assert proof == TREE.path(index, 0, size)
            assert root_from_inclusion_proof(leaf(index), index, size, proof) == root(size)
            verify_inclusion(leaf(index), index, size, proof, root(size))


def test_every_consistency_proof_equals_proof_and_verifies() -> None:
    for new in range(BOUND + 1):
        for old in range(new + 1):
            proof = consistency_proof(old, new, hashes_of(consistency_nodes(old, new)))
            assert proof == TREE.proof(old, new)
            verify_consistency(old, new, proof, root(old), root(new))


def test_every_subtree_consistency_proof_equals_subtree_proof_and_verifies() -> None:
    for size in range(1, BOUND + 1):
        for start, end in valid_subtrees(size):
            proof = subtree_consistency_proof(start, end, size, hashes_of(subtree_consistency_nodes(start, end, size)))
            assert proof == TREE.subtree_proof(start, end, size)
            verify_subtree_consistency(start, end, size, proof, TREE.mth(start, end), root(size))


def test_every_subtree_inclusion_proof_equals_path_and_verifies() -> None:
    for start, end in valid_subtrees(BOUND):
        for index in range(start, end):
            nodes = subtree_inclusion_nodes(index, start, end)
            proof = subtree_inclusion_proof(index, start, end, hashes_of(nodes))
            assert proof == TREE.path(index - start, start, end)
            verify_subtree_inclusion(leaf(index), index, start, end, proof, TREE.mth(start, end))


def test_the_seven_leaf_example_of_rfc_6962() -> None:
    a, b, c, d, e, f, j = (leaf(index) for index in range(7))
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l_ = node_hash(g, h), node_hash(i, j)
    paths = {0: [b, h, l_], 3: [c, g, l_], 4: [f, j, k], 6: [i, k]}
    for index, path in paths.items():
        assert inclusion_proof(index, 7, hashes_of(inclusion_nodes(index, 7))) == path
        verify_inclusion(leaf(index), index, 7, path, node_hash(k, l_))
    proofs = {3: [c, d, g, l_], 4: [l_], 6: [i, j, k]}
    for old, proof in proofs.items():
        assert consistency_proof(old, 7, hashes_of(consistency_nodes(old, 7))) == proof
        verify_consistency(old, 7, proof, root(old), node_hash(k, l_))


@given(st.data())
def test_proofs_in_trees_of_thousands_equal_the_rfc_definition(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 5000))
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    path = inclusion_proof(index, size, hashes_of(inclusion_nodes(index, size)))
    assert path == TREE.path(index, 0, size)
    refuses_every_other_proof(lambda p: verify_inclusion(leaf(index), index, size, p, root(size)), path)
    proof = consistency_proof(old, size, hashes_of(consistency_nodes(old, size)))
    assert proof == TREE.proof(old, size)
    refuses_every_other_proof(lambda p: verify_consistency(old, size, p, root(old), root(size)), proof)


@st.composite
def huge_subtrees(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw start, end and size of a subtree in a tree of up to 2^63 - 1 leaves."""
    size = draw(st.integers(1, MAX_SIZE))
    level = draw(st.integers(0, 62))
    start = draw(st.integers(0, size - 1)) >> level << level
    end = min(size, start + draw(st.integers(1, 1 << level)))
    return start, end, size


@given(huge_subtrees())
def test_proofs_in_trees_of_up_to_2_63_equal_the_rfc_definition(case: tuple[int, int, int]) -> None:
    start, end, size = case
    old_size = size - start
    whole = UNIFORM.mth(0, size)
    for first, last in ((start, end), (start, start + 1), (0, old_size)):
        proof = subtree_consistency_proof(
            first, last, size, hashes_of(subtree_consistency_nodes(first, last, size), UNIFORM)
        )
        assert proof == UNIFORM.subtree_proof(first, last, size)
        verify_subtree_consistency(first, last, size, proof, UNIFORM.mth(first, last), whole)
    path = UNIFORM.path(start, 0, size)
    assert inclusion_proof(start, size, hashes_of(inclusion_nodes(start, size), UNIFORM)) == path
    verify_inclusion(UNIFORM.mth(0, 1), start, size, path, whole)
    verify_consistency(old_size, size, UNIFORM.proof(old_size, size), UNIFORM.mth(0, old_size), whole)
    inner = UNIFORM.path(0, 0, end - start)
    assert (
        subtree_inclusion_proof(start, start, end, hashes_of(subtree_inclusion_nodes(start, start, end), UNIFORM))
        == inner
    )
    verify_subtree_inclusion(UNIFORM.mth(0, 1), start, start, end, inner, UNIFORM.mth(start, end))


# ---------------------------------------------------------------------------------------------------- plan and fold


def test_nodes_outside_of_a_tree_are_not_planned() -> None:
    for index, size in ((0, 0), (-1, 5), (5, 5), (6, 5), (0, -1), (MAX_SIZE, MAX_SIZE)):
        with pytest.raises(ValueError, match=r"\["):
            inclusion_nodes(index, size)
    for old, new in ((-1, 5), (6, 5), (0, -1), (0, MAX_SIZE + 1), (MAX_SIZE + 1, MAX_SIZE + 1), (-1, -1)):
        with pytest.raises(ValueError, match=r"\["):
            consistency_nodes(old, new)
    for index, start, end in ((3, 4, 8), (8, 4, 8), (5, 5, 7), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"\["):
            subtree_inclusion_nodes(index, start, end)
    with pytest.raises(ValueError, match="not within a tree of size 7"):
        subtree_consistency_nodes(4, 8, 7)


def test_hashes_that_do_not_fit_the_plan_are_not_folded() -> None:
    hashes = hashes_of(inclusion_nodes(2, 13))
    with pytest.raises(ValueError, match="fewer hashes than nodes"):
        inclusion_proof(2, 13, hashes[:-1])
    with pytest.raises(ValueError, match="more hashes than nodes"):
        inclusion_proof(2, 13, [*hashes, JUNK])


# ----------------------------------------------------------------------------------------------------------- refusals

SMALL = 15


def test_inclusion_is_refused_when_one_thing_is_wrong() -> None:
    for size in range(1, SMALL):
        for index in range(size):
            proof = TREE.path(index, 0, size)
            refuses_every_other_proof(partial(_inclusion, leaf(index), index, size, root(size)), proof)
            for bad in (flip(leaf(index), 7), leaf(index)[1:], leaf(index) + b"\x00", b"", TREE.entries[index]):
                refuses(partial(_inclusion, bad, index, size, root(size)), proof)
            for bad in (flip(root(size), 100), root(size)[1:], root(size) + b"\x00", b"", EMPTY_ROOT):
                refuses(partial(_inclusion, leaf(index), index, size, bad), proof)


def _inclusion(leaf_: bytes, index: int, size: int, root_: bytes, proof: Sequence[bytes]) -> None:
    verify_inclusion(leaf_, index, size, proof, root_)


def test_inclusion_is_refused_at_every_other_index() -> None:
    for size in range(1, 27):
        for index in range(size):
            proof = TREE.path(index, 0, size)
            for other in {*range(-2, size + 2), index + 2**32, index - 2**63, MAX_SIZE, MAX_SIZE + 1} - {index}:
                refuses(partial(_inclusion, leaf(index), other, size, root(size)), proof)
                if other in range(size):
                    refuses(partial(_inclusion, leaf(other), index, size, root(size)), proof)


def test_inclusion_is_refused_in_the_tree_of_every_other_size() -> None:
    for size in range(1, 27):
        for index in range(size):
            proof = TREE.path(index, 0, size)
            for other in {*range(27), 2**32 + size} - {size}:
                refuses(partial(_inclusion, leaf(index), index, other, root(min(other, 4999))), proof)
            for impossible in (-1, -size, 0, index, MAX_SIZE + 1, 2**64 + size):
                refuses(partial(_inclusion, leaf(index), index, impossible, root(size)), proof)


def test_a_root_of_another_size_is_refused_where_the_path_has_another_length() -> None:
    """A root does not commit to its size: the signed head does. Here the length of the path is all that binds."""
    for size in range(1, 27):
        for index in range(size):
            proof = TREE.path(index, 0, size)
            for other in range(index + 1, 27):
                if len(TREE.path(index, 0, other)) != len(proof):
                    refuses(partial(_inclusion, leaf(index), index, other, root(size)), proof)


def test_a_size_above_2_63_is_refused_though_everything_fits() -> None:
    size = MAX_SIZE + 1
    whole, half = UNIFORM.mth(0, size), UNIFORM.mth(0, size // 2)
    refuses(partial(_inclusion, UNIFORM.mth(0, 1), 5, size, whole), UNIFORM.path(5, 0, size))
    refuses(partial(_consistency, size // 2, size, half, whole), UNIFORM.proof(size // 2, size))
    refuses(partial(_subtree, 0, size // 2, size, half, whole), UNIFORM.subtree_proof(0, size // 2, size))
    refuses(partial(_subtree, 0, size, size, whole, whole), [])
    refuses(partial(_within, UNIFORM.mth(0, 1), 5, 0, size, whole), UNIFORM.path(5, 0, size))


@pytest.mark.parametrize("bad", [b"", leaf(0)[1:], leaf(0) + b"\x00"], ids=["empty", "short", "long"])
def test_equal_hashes_of_another_length_are_refused_where_nothing_is_folded(bad: bytes) -> None:
    refuses(partial(_inclusion, bad, 0, 1, bad), [])
    refuses(partial(_within, bad, 4, 4, 5, bad), [])
    refuses(partial(_consistency, 1, 1, bad, bad), [])
    refuses(partial(_subtree, 0, 9, 9, bad, bad), [])


def test_consistency_is_refused_when_one_thing_is_wrong() -> None:
    for new in range(SMALL):
        for old in range(new + 1):
            proof = TREE.proof(old, new)
            refuses_every_other_proof(partial(_consistency, old, new, root(old), root(new)), proof)
            for bad in (flip(root(old), 7), root(old)[1:], root(old) + b"\x00", b"", JUNK):
                refuses(partial(_consistency, old, new, bad, root(new)), proof)
            for bad in (root(new)[1:], root(new) + b"\x00", b""):
                refuses(partial(_consistency, old, new, root(old), bad), proof)
            if old:  # from the empty tree any root follows
                refuses(partial(_consistency, old, new, root(old), flip(root(new), 9)), proof)
            if old != new:
                refuses(partial(_consistency, old, new, root(new), root(old)), proof)


def _consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    verify_consistency(old, new, proof, old_root, new_root)


def test_consistency_is_refused_between_every_other_pair_of_sizes() -> None:
    for new in range(1, 24):
        for old in range(1, new + 1):
            proof = TREE.proof(old, new)
            for other in range(1, 24):
                if other != old and TREE.proof(min(other, new), new) != proof:
                    refuses(partial(_consistency, other, new, root(other), root(new)), proof)
                if other != new and TREE.proof(min(old, other), other) != proof:
                    refuses(partial(_consistency, old, other, root(old), root(other)), proof)
            for impossible in (-1, -old, MAX_SIZE + 1, new + 1, new + 2**64):
                refuses(partial(_consistency, impossible, new, root(old), root(new)), proof)
            for impossible in (-1, -new, 0, old - 1, MAX_SIZE + 1):
                refuses(partial(_consistency, old, impossible, root(old), root(new)), proof)


def test_one_size_has_one_root() -> None:
    for size in range(1, SMALL):
        verify_consistency(size, size, [], root(size), root(size))
        for other in range(SMALL):
            if other != size:
                refuses(partial(_consistency, size, size, root(other), root(size)), [])
                refuses(partial(_consistency, size, size, root(size), root(other)), [])
        refuses(partial(_consistency, size, size, root(size), root(size)), [root(size)])


def test_from_the_empty_tree_nothing_is_proven() -> None:
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    verify_consistency(0, MAX_SIZE, [], EMPTY_ROOT, JUNK)
    refuses(partial(_consistency, 0, 5, EMPTY_ROOT, root(5)), [root(5)])
    refuses(partial(_consistency, 0, 5, root(5), root(5)), [])
    refuses(partial(_consistency, 0, 0, EMPTY_ROOT, JUNK), [])
    refuses(partial(_consistency, 0, 5, EMPTY_ROOT, EMPTY_ROOT), [])
    refuses(partial(_consistency, 0, MAX_SIZE + 1, EMPTY_ROOT, JUNK), [])
    refuses(partial(_consistency, 0, -1, EMPTY_ROOT, JUNK), [])


def test_subtree_consistency_is_refused_when_one_thing_is_wrong() -> None:
    for size in range(1, SMALL):
        for start, end in valid_subtrees(size):
            proof = TREE.subtree_proof(start, end, size)
            inner = TREE.mth(start, end)
            refuses_every_other_proof(partial(_subtree, start, end, size, inner, root(size)), proof)
            for bad in (flip(inner, 7), inner[1:], inner + b"\x00", b"", JUNK):
                refuses(partial(_subtree, start, end, size, bad, root(size)), proof)
            for bad in (flip(root(size), -1), root(size)[1:], root(size) + b"\x00", b""):
                refuses(partial(_subtree, start, end, size, inner, bad), proof)
            for impossible in (-1, 0, end - 1, MAX_SIZE + 1):
                refuses(partial(_subtree, start, end, impossible, inner, root(size)), proof)
            for other in valid_subtrees(size):
                if other != (start, end):
                    refuses(partial(_subtree, *other, size, inner, root(size)), proof)
                    if TREE.subtree_proof(*other, size) != proof:
                        refuses(partial(_subtree, *other, size, TREE.mth(*other), root(size)), proof)


def _subtree(start: int, end: int, size: int, inner: bytes, root_: bytes, proof: Sequence[bytes]) -> None:
    verify_subtree_consistency(start, end, size, proof, inner, root_)


def test_subtree_inclusion_is_refused_when_one_thing_is_wrong() -> None:
    for start, end in valid_subtrees(SMALL):
        for index in range(start, end):
            proof = TREE.path(index - start, start, end)
            inner = TREE.mth(start, end)
            refuses_every_other_proof(partial(_within, leaf(index), index, start, end, inner), proof)
            refuses(partial(_within, flip(leaf(index), 0), index, start, end, inner), proof)
            refuses(partial(_within, leaf(index)[1:], index, start, end, inner), proof)
            refuses(partial(_within, leaf(index), index, start, end, flip(inner, 0)), proof)
            for other in {*range(-1, end + 1), index + 2**63} - {index}:
                refuses(partial(_within, leaf(index), other, start, end, inner), proof)
            for other in range(start + 1, SMALL):
                if other != end:
                    refuses(partial(_within, leaf(index), index, start, other, TREE.mth(start, other)), proof)


def _within(leaf_: bytes, index: int, start: int, end: int, inner: bytes, proof: Sequence[bytes]) -> None:
    verify_subtree_inclusion(leaf_, index, start, end, proof, inner)


numbers = st.one_of(st.integers(-3, 20), st.integers(-(2**65), 2**65), st.sampled_from([MAX_SIZE, MAX_SIZE + 1]))
anything = st.one_of(st.binary(max_size=3), st.binary(min_size=31, max_size=33), st.sampled_from([EMPTY_ROOT, leaf(0)]))


@given(numbers, numbers, numbers, numbers, st.lists(anything, max_size=70), anything, anything)
def test_only_verification_errors_come_out_of_anything(
    a: int, b: int, c: int, d: int, proof: list[bytes], first: bytes, second: bytes
) -> None:
    for verify in (
        lambda: verify_inclusion(first, a, b, proof, second),
        lambda: verify_consistency(a, b, proof, first, second),
        lambda: verify_subtree_consistency(a, b, c, proof, first, second),
        lambda: verify_subtree_inclusion(first, a, b, c, proof, second),
        lambda: root_from_inclusion_proof(first, c, d, proof),
    ):
        with suppress(VerificationError):
            verify()


# ------------------------------------------------------------------------------------------------------------ vectors


def unhex(values: list[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in values]


def test_the_classic_tree_of_eight_leaves() -> None:
    case = json.loads((vectors("merkle") / "rfc6962_eight_leaf_tree.json").read_text())
    leaves = [leaf_hash(entry) for entry in unhex(case["leaf_inputs"])]
    assert [tree_root(leaves[:size]) for size in range(9)] == unhex(case["root_by_size"])
    for level, row in enumerate(case["node_hashes_by_level"]):
        for index, value in enumerate(unhex(row)):
            start, end = index << level, index + 1 << level
            assert tree_root(leaves[start:end]) == value
    assert unhex([case["empty_root"]]) == [EMPTY_ROOT]


def test_the_known_answers_of_googles_certificate_transparency() -> None:
    folder = vectors("merkle")
    case = json.loads((folder / "google_ct_kat.json").read_text())
    tree = json.loads((folder / case["tree"]).read_text())
    entries, roots = Tree(unhex(tree["leaf_inputs"])), unhex(tree["root_by_size"])
    assert unhex([case["hasher"]["empty"]]) == [EMPTY_ROOT]
    for item in case["hasher"]["leaves"]:
        assert leaf_hash(bytes.fromhex(item["input"])).hex() == item["hash"]
    for item in case["hasher"]["nodes"]:
        assert node_hash(*unhex([item["left"], item["right"]])).hex() == item["hash"]
    for item in case["inclusion_paths"]:
        index, size, path = item["leaf_index"], item["tree_size"], unhex(item["path"])
        if size == 0:
            with pytest.raises(ValueError, match="not within a tree of size 0"):
                inclusion_nodes(index, size)
            continue
        assert inclusion_proof(index, size, hashes_of(inclusion_nodes(index, size), entries)) == path
        verify_inclusion(entries.mth(index, index + 1), index, size, path, roots[size])
    for item in case["consistency_proofs"]:
        old, new, proof = item["size1"], item["size2"], unhex(item["proof"])
        assert consistency_proof(old, new, hashes_of(consistency_nodes(old, new), entries)) == proof
        verify_consistency(old, new, proof, roots[old], roots[new])
    for item in case["consistency_invalid"]:
        old_root, new_root = unhex([item["root1"], item["root2"]])
        refuses(partial(_consistency, item["size1"], item["size2"], old_root, new_root), unhex(item["proof"]))


def test_a_certificate_is_in_a_real_log_of_three_million() -> None:
    case = json.loads((vectors("merkle") / "google_ct_kat.json").read_text())["real_ct_inclusion"]
    hashed = leaf_hash(bytes.fromhex(case["leaf_input_hex"]))
    assert hashed.hex() == case["leaf_hash"]
    verify = partial(_inclusion, hashed, case["leaf_index"], case["tree_size"], bytes.fromhex(case["root"]))
    refuses_every_other_proof(verify, unhex(case["path"]))
