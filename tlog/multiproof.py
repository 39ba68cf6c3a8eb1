"""One proof for many entries of one tree: the nodes that, with the leaf hashes of the entries, lead to its root.

A tree is a row of complete subtrees, its peaks (see `tlog.edge`). A peak that holds none of the entries is given as it
is. In each other one, level by level from the leaves up, every node that is known lacks a sibling or has it: the ones
that lack it are given. So neighbours share almost everything: n entries in a row take at most two nodes a level,
whatever n is, where n inclusion proofs take n hashes a level.

    size 7, entries 2 and 3         peaks (2,0) (1,2) (0,6); given (1,0), then (1,2) and (0,6)

The order is fixed by indexes and size: peaks from left to right, within a peak level by level upwards, within a level
by index. Expanding yields every node on the way, so whoever holds the leaf hashes can cut inclusion proofs of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlog.errors import VerificationError
from tlog.merkle import HASH_SIZE, MAX_SIZE, Node, node_hash, subtree_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence


def multiproof_nodes(indexes: Collection[int], size: int) -> list[Node]:
    """Return the nodes that prove the leaves at the indexes in a tree of that size, in the order of the proof.

    Raises:
        ValueError: An index is not below the size, or there is none.
    """
    _check_indexes(indexes, size)
    nodes: list[Node] = []
    for level, index in subtree_nodes(0, size):
        known = {leaf for leaf in indexes if leaf >> level == index}
        if not known:
            nodes.append((level, index))
            continue
        for height in range(level):
            nodes += [(height, sibling) for sibling in sorted({leaf ^ 1 for leaf in known} - known)]
            known = {leaf >> 1 for leaf in known}
    return nodes


def expand_multiproof(leaves: Mapping[int, bytes], size: int, proof: Sequence[bytes]) -> dict[Node, bytes]:
    """Return every node that leaves and proof lead to, the peaks of the tree among them; nothing is verified.

    Args:
        leaves: Leaf hashes of 32 bytes by index; at least one.
        size: Size of the tree.
        proof: The hashes of `multiproof_nodes`, 32 bytes each.

    Raises:
        VerificationError: The proof has another length, or an index, the size or a hash is impossible.
    """
    try:
        wanted = multiproof_nodes(leaves, size)
    except ValueError as error:
        raise VerificationError(str(error)) from error
    if len(proof) != len(wanted):
        raise VerificationError(f"a proof of {len(proof)} hashes where {len(wanted)} are needed")
    if any(len(value) != HASH_SIZE for value in (*leaves.values(), *proof)):
        raise VerificationError("a hash does not have 32 bytes")
    nodes = {(0, index): value for index, value in leaves.items()}
    nodes.update(zip(wanted, proof, strict=True))
    for level, index in subtree_nodes(0, size):
        known = {leaf for leaf in leaves if leaf >> level == index}
        for height in range(level if known else 0):
            known = {leaf >> 1 for leaf in known}
            for parent in known:
                nodes[height + 1, parent] = node_hash(nodes[height, 2 * parent], nodes[height, 2 * parent + 1])
    return nodes


def verify_multiproof(leaves: Mapping[int, bytes], size: int, proof: Sequence[bytes], root: bytes) -> dict[Node, bytes]:
    """Check that leaves are those of the tree of that size and root; return every node on the way, all verified.

    Args:
        leaves: Leaf hashes of 32 bytes by index; at least one.
        size: Size of the tree.
        proof: The hashes of `multiproof_nodes`, 32 bytes each.
        root: Root hash, 32 bytes.

    Raises:
        VerificationError: They are not, or a length, an index or the size is impossible.
    """
    nodes = expand_multiproof(leaves, size, proof)
    peaks = [nodes[peak] for peak in subtree_nodes(0, size)]
    found = peaks.pop()
    while peaks:
        found = node_hash(peaks.pop(), found)
    if found != root:
        raise VerificationError(f"the proof of {len(leaves)} entries does not lead to the root of size {size}")
    return nodes


def cut_inclusion_proofs(indexes: Iterable[int], size: int, nodes: Mapping[Node, bytes]) -> Iterator[list[bytes]]:
    """Yield the inclusion proof of each of the leaves, from the nodes that `verify_multiproof` returned.

    Within its peak a leaf has its own siblings. What follows is the same for all leaves of a peak, and is folded once:
    the peaks to its right as one hash, and then those to its left, the nearest first.

    Raises:
        KeyError: A leaf is not one of those that were proven.
    """
    peaks = subtree_nodes(0, size)
    rest = {peak: _above(at, [nodes[node] for node in peaks]) for at, peak in enumerate(peaks)}
    for index in indexes:
        peak = next(one for one in peaks if index >> one[0] == one[1])
        yield [nodes[level, index >> level ^ 1] for level in range(peak[0])] + rest[peak]


def _above(at: int, peaks: Sequence[bytes]) -> list[bytes]:
    """Return the part of an inclusion proof that is above the peak of that number."""
    right = list(peaks[at + 1 :])
    while len(right) > 1:
        right.append(node_hash(right.pop(-2), right.pop()))
    return right + list(peaks[:at])[::-1]


def _check_indexes(indexes: Collection[int], size: int) -> None:
    if not indexes or not 0 <= min(indexes) <= max(indexes) < size <= MAX_SIZE:
        raise ValueError(f"no entries, or not all of them in a tree of size {size}")
