"""Tails: the part of inclusion proofs that all entries of a full tile share, from the tile to the root.

    proof of an entry  =  its eight siblings in the tile, then the tail of the tile

A tail is verified once, with the function with which clients verify that a subtree is part of a tree. After that an
entry's proof is verified by folding the eight siblings up to the tile's own hash. Both are of one named root.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tlog.errors import VerificationError
from tlog.merkle import (
    subtree_consistency_nodes,
    subtree_consistency_proof,
    verify_inclusion,
    verify_subtree_consistency,
)
from tlog.server.errors import DamageError
from tlog.server.expanded import hash_in, siblings_in
from tlog.tile import TILE_HEIGHT, TILE_WIDTH

if TYPE_CHECKING:
    from tlog.server.tree import Tree

MAX_TAILS = 1 << 16
"""Most tails that are kept: 30 MB at the worst, for proofs of sixteen million entries in one tree."""


class Tails:
    """The tails of trees. Owned by the event loop."""

    def __init__(self, tree: Tree) -> None:
        """Begin with none."""
        self._tree = tree
        self._kept: OrderedDict[tuple[int, int], tuple[bytes, bytes, list[bytes]]] = OrderedDict()

    def prove(self, index: int, size: int, root: bytes) -> tuple[bytes, list[bytes]] | None:
        """Return the leaf hash of an entry and its inclusion proof, verified up to a root that is known to be true.

        None where something has to be read first, or the entry is in no full tile of the tree and the tile store.

        Raises:
            DamageError: What is in memory does not lead to the root.
        """
        number, offset = divmod(index, TILE_WIDTH)
        expanded = self._tree.expanded_now(number)
        if expanded is None or (number + 1) * TILE_WIDTH > size:
            return None
        found = self._tail(number, size, root)
        if found is None:
            return None
        tile_root, tail = found
        leaf, proof = hash_in(expanded, 0, offset), siblings_in(expanded, offset)
        try:
            verify_inclusion(leaf, offset, TILE_WIDTH, proof, tile_root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        return leaf, proof + tail

    def _tail(self, number: int, size: int, root: bytes) -> tuple[bytes, list[bytes]] | None:
        """Return the hash of a full tile and its tail, verified; None where something has to be read first."""
        key = (number, size)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == root:
            return kept[1], kept[2]
        start, end = number * TILE_WIDTH, (number + 1) * TILE_WIDTH
        hashes = self._tree.hashes_now([(TILE_HEIGHT, number), *subtree_consistency_nodes(start, end, size)])
        if hashes is None:
            return None
        tail = subtree_consistency_proof(start, end, size, hashes[1:])
        try:
            verify_subtree_consistency(start, end, size, tail, hashes[0], root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        self._kept[key] = (root, hashes[0], tail)
        if len(self._kept) > MAX_TAILS:
            self._kept.popitem(last=False)
        return hashes[0], tail
