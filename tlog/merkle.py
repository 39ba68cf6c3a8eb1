"""The Merkle tree: hashing, roots and proofs (RFC 6962 §2.1, RFC 9162 §2.1, subtrees as in tlog-mirror).

Notation. MTH is the tree hash of the RFC. A *node* (level, index) is the root of a complete subtree: it covers the
2^level leaves from index·2^level on. A *range* is a half-open pair of leaf indexes. A *subtree* [start, end) is valid
when start is a multiple of the smallest power of two that is at least end - start; its hash is MTH(D[start:end]).

              root = (3,0) of eight leaves              (0,0) is the leaf hash of entry 0
            (2,0)         (2,1)
         (1,0)  (1,1)  (1,2)  (1,3)
        0  1    2  3   4  5   6  7

Plan, read, fold: `*_nodes` say which nodes a proof is made of, the caller reads their hashes in one batch, and
`*_proof` folds them. Every kind of proof is one list of ranges (`_proof_ranges`): inclusion is the subtree of one leaf,
consistency is the subtree [0, old size).

`verify_*` return None or raise VerificationError, for every wrong length, range or index too. A proof has exactly one
right length for its sizes, so neither a shorter nor a longer one is ever accepted.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

from tlog.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Node: TypeAlias = tuple[int, int]
"""(level, index) of a complete subtree."""

HASH_SIZE = 32
"""Bytes in a SHA-256 digest."""

MAX_SIZE = 2**63 - 1
"""Largest tree size: what fits a signed 64-bit integer, as other implementations and SQLite keep it."""

EMPTY_ROOT = sha256(b"").digest()
"""MTH of the empty tree (RFC 6962 §2.1)."""


def leaf_hash(entry: bytes) -> bytes:
    """Return H(0x00 ‖ entry), the hash of a leaf (RFC 6962 §2.1)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return H(0x01 ‖ left ‖ right), the hash of an interior node (RFC 6962 §2.1)."""
    return sha256(b"\x01" + left + right).digest()


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return MTH over leaf hashes of 32 bytes each (RFC 6962 §2.1).

    Level by level: neighbours are paired, and an odd last node rises unchanged, which gives the RFC's split at the
    largest power of two.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        odd = level[-1:] if len(level) & 1 else []
        level = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]


# Plan: which nodes are needed.


def subtree_nodes(start: int, end: int) -> list[Node]:
    """Return the complete subtrees that make up [start, end), left to right.

    Raises:
        ValueError: [start, end) is not a valid subtree, or is empty.
    """
    _check_subtree(start, end)
    nodes: list[Node] = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def inclusion_nodes(index: int, size: int) -> list[Node]:
    """Return the nodes that PATH(index, D[size]) is folded from (RFC 6962 §2.1.1).

    Raises:
        ValueError: The index is not below the size.
    """
    return subtree_consistency_nodes(index, index + 1, size)


def consistency_nodes(old_size: int, new_size: int) -> list[Node]:
    """Return the nodes that PROOF(old_size, D[new_size]) is folded from (RFC 6962 §2.1.2).

    Raises:
        ValueError: Not 0 ≤ old size ≤ new size.
    """
    return _nodes_of(_consistency_ranges(old_size, new_size))


def subtree_inclusion_nodes(index: int, start: int, end: int) -> list[Node]:
    """Return the nodes that prove leaf `index` of the whole tree within the subtree [start, end).

    Raises:
        ValueError: [start, end) is not a valid subtree, or does not hold the index.
    """
    return _nodes_of(_subtree_inclusion_ranges(index, start, end))


def subtree_consistency_nodes(start: int, end: int, size: int) -> list[Node]:
    """Return the nodes that SUBTREE_PROOF(start, end, D[size]) is folded from (draft plants-merkle-tree-certs §4).

    Raises:
        ValueError: [start, end) is not a valid subtree of a tree of that size.
    """
    return _nodes_of(_proof_ranges(start, end, size))


# Fold: from the hashes of these nodes to the proof.


def subtree_root(start: int, end: int, hashes: Sequence[bytes]) -> bytes:
    """Fold the hashes of `subtree_nodes(start, end)` into MTH(D[start:end])."""
    return _fold_ranges([(start, end)], hashes)[0]


def inclusion_proof(index: int, size: int, hashes: Sequence[bytes]) -> list[bytes]:
    """Fold the hashes of `inclusion_nodes(index, size)` into the proof, leaf's sibling first (RFC 6962 §2.1.1)."""
    return subtree_consistency_proof(index, index + 1, size, hashes)


def consistency_proof(old_size: int, new_size: int, hashes: Sequence[bytes]) -> list[bytes]:
    """Fold the hashes of `consistency_nodes(old_size, new_size)` into the proof (RFC 6962 §2.1.2)."""
    return _fold_ranges(_consistency_ranges(old_size, new_size), hashes)


def subtree_inclusion_proof(index: int, start: int, end: int, hashes: Sequence[bytes]) -> list[bytes]:
    """Fold the hashes of `subtree_inclusion_nodes(index, start, end)` into the proof, leaf's sibling first."""
    return _fold_ranges(_subtree_inclusion_ranges(index, start, end), hashes)


def subtree_consistency_proof(start: int, end: int, size: int, hashes: Sequence[bytes]) -> list[bytes]:
    """Fold the hashes of `subtree_consistency_nodes(start, end, size)` into the proof."""
    return _fold_ranges(_proof_ranges(start, end, size), hashes)


def _check_subtree(start: int, end: int) -> None:
    """Raise ValueError unless [start, end) is a valid subtree that holds a leaf."""
    if not 0 <= start < end <= MAX_SIZE or start & ((1 << (end - start - 1).bit_length()) - 1):
        raise ValueError(f"[{start}, {end}) is not a valid subtree")


def _proof_ranges(start: int, end: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges whose hashes are SUBTREE_PROOF(start, end, D[size]), in the order of the proof.

    From the whole tree [low, high) downwards: split at the largest power of two, and keep the half that the subtree is
    not in. A subtree that begins a half and outgrows its left part (only [0, old size) can) is itself split there.
    """
    _check_subtree(start, end)
    if end > size:
        raise ValueError(f"[{start}, {end}) is not within a tree of size {size}")
    low, high, whole, ranges = 0, size, True, []
    while (low, high) != (start, end):
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        if end <= middle:
            ranges.append((middle, high))
            high = middle
        else:
            ranges.append((low, middle))
            if start < middle:
                start, whole = middle, False
            low = middle
    return ([] if whole else [(low, high)]) + ranges[::-1]


def _consistency_ranges(old_size: int, new_size: int) -> list[tuple[int, int]]:
    """Return the ranges of PROOF(old_size, D[new_size]); none from the empty tree."""
    if old_size == 0 <= new_size <= MAX_SIZE:
        return []
    return _proof_ranges(0, old_size, new_size)


def _subtree_inclusion_ranges(index: int, start: int, end: int) -> list[tuple[int, int]]:
    """Return the ranges of PATH(index - start, D[start:end]), in indexes of the whole tree."""
    _check_subtree(start, end)
    return [(start + low, start + high) for low, high in _proof_ranges(index - start, index - start + 1, end - start)]


def _nodes_of(ranges: Iterable[tuple[int, int]]) -> list[Node]:
    """Return the complete subtrees of all the ranges, in order."""
    return [node for start, end in ranges for node in subtree_nodes(start, end)]


def _fold_ranges(ranges: Iterable[tuple[int, int]], hashes: Sequence[bytes]) -> list[bytes]:
    """Return one hash a range from the hashes of its complete subtrees; the two must fit exactly."""
    folded: list[bytes] = []
    used = 0
    for start, end in ranges:
        parts = list(hashes[used : used + (end - start).bit_count()])
        used += (end - start).bit_count()
        if used > len(hashes):
            raise ValueError("fewer hashes than nodes")
        root = parts.pop()
        while parts:
            root = node_hash(parts.pop(), root)
        folded.append(root)
    if used != len(hashes):
        raise ValueError("more hashes than nodes")
    return folded


# Verify.


def root_from_inclusion_proof(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162 §2.1.3.2).

    Raises:
        VerificationError: A length, the index or the size is impossible.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise VerificationError(f"index {index} is not in a tree of size {size}")
    _check_hashes(leaf_hash, *proof)
    fn, sn, root = index, size - 1, leaf_hash
    for sibling in proof:
        if sn == 0:
            raise VerificationError("inclusion proof is too long")
        if fn & 1 or fn == sn:
            root = node_hash(sibling, root)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise VerificationError("inclusion proof is too short")
    return root


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf is number `index` of the tree of that size and root (RFC 9162 §2.1.3.2).

    Raises:
        VerificationError: It is not, or a length, the index or the size is impossible.
    """
    if root_from_inclusion_proof(leaf_hash, index, size, proof) != root:
        raise VerificationError(f"inclusion proof of index {index} does not lead to the root of size {size}")


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that the tree of the old size is a prefix of the tree of the new size (RFC 9162 §2.1.4.2).

    From size 0 there is nothing to prove: the proof is empty and the old root is EMPTY_ROOT.

    Raises:
        VerificationError: It is not, or a length or a size is impossible.
    """
    if old_size != 0:
        verify_subtree_consistency(0, old_size, new_size, proof, old_root, new_root)
    elif proof or old_root != EMPTY_ROOT:
        raise VerificationError("the empty tree has the empty root and an empty consistency proof")
    elif not 0 <= new_size <= MAX_SIZE or (new_size == 0) != (new_root == EMPTY_ROOT) or len(new_root) != HASH_SIZE:
        raise VerificationError(f"impossible root of size {new_size}")


def verify_subtree_inclusion(
    leaf_hash: bytes, index: int, start: int, end: int, proof: Sequence[bytes], subtree_root: bytes
) -> None:
    """Check that leaf `index` of the whole tree is in the subtree [start, end) of that hash (tlog-mirror).

    Raises:
        VerificationError: It is not, or a length, the index or the subtree is impossible.
    """
    _refuse_subtree(start, end)
    verify_inclusion(leaf_hash, index - start, end - start, proof, subtree_root)


def verify_subtree_consistency(
    start: int, end: int, size: int, proof: Sequence[bytes], subtree_root: bytes, root: bytes
) -> None:
    """Check that [start, end) with that hash is a subtree of the tree of that size and root (plants draft §4).

    Two roots are folded at once: `fr` of the subtree, only while its part of the path lasts (fn < sn), and `sr` of the
    whole tree.

    Raises:
        VerificationError: It is not, or a length, the subtree or the size is impossible.
    """
    _refuse_subtree(start, end)
    if not end <= size <= MAX_SIZE:
        raise VerificationError(f"[{start}, {end}) is not within a tree of size {size}")
    _check_hashes(subtree_root, root, *proof)
    fn, sn, tn = start, end - 1, size - 1
    while fn != sn and (sn & 1 or sn == tn):
        fn, sn, tn = fn >> 1, sn >> 1, tn >> 1
    rest = list(proof) if fn != sn else [subtree_root, *proof]
    if not rest:
        raise VerificationError("consistency proof is too short")
    fr = sr = rest[0]
    for sibling in rest[1:]:
        if tn == 0:
            raise VerificationError("consistency proof is too long")
        if sn & 1 or sn == tn:
            fr = node_hash(sibling, fr) if fn < sn else fr
            sr = node_hash(sibling, sr)
            while not sn & 1:
                fn, sn, tn = fn >> 1, sn >> 1, tn >> 1
        else:
            sr = node_hash(sr, sibling)
        fn, sn, tn = fn >> 1, sn >> 1, tn >> 1
    if tn != 0:
        raise VerificationError("consistency proof is too short")
    if fr != subtree_root or sr != root:
        raise VerificationError(f"no consistency between [{start}, {end}) and the root of size {size}")


def _refuse_subtree(start: int, end: int) -> None:
    """Raise VerificationError unless [start, end) is a valid subtree that holds a leaf."""
    try:
        _check_subtree(start, end)
    except ValueError as error:
        raise VerificationError(str(error)) from error


def _check_hashes(*hashes: bytes) -> None:
    """Raise VerificationError unless every hash has 32 bytes."""
    if not {HASH_SIZE}.issuperset(map(len, hashes)):
        raise VerificationError("a hash does not have 32 bytes")
