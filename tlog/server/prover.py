"""Proofs about the visible tree, each made for one named head, and verified before it is given."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from tlog.errors import NotFoundError, VerificationError
from tlog.merkle import (
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    subtree_nodes,
    subtree_root,
    verify_consistency,
    verify_inclusion,
)
from tlog.multiproof import multiproof_nodes, verify_multiproof
from tlog.server.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tlog.server.storage import SignedHead
    from tlog.server.tree import Tree

BATCH_PROOFS = 2
"""Proofs of batches that are made at a time: each may read thousands of tiles."""

INLINE_PROOFS = 256
"""Entries whose proof is verified on the event loop: 2 ms. That of more entries is verified beside it."""


class Prover(ABC):
    """Makes and verifies proofs for whoever says what the served head is. Owned by the event loop.

    Attributes:
        tree: What is visible.
    """

    def __init__(self, tree: Tree) -> None:
        """Prove what a tree holds."""
        self.tree = tree
        self._proving = asyncio.Semaphore(BATCH_PROOFS)

    @property
    @abstractmethod
    def head(self) -> SignedHead:
        """The served head."""

    async def prove_inclusion(
        self, index: int, size: int, leaf: bytes | None = None, head: SignedHead | None = None
    ) -> tuple[bytes, list[bytes]]:
        """Return the leaf hash of an entry and its inclusion proof in the tree of a size, verified.

        Args:
            index: Index of the entry.
            size: Size of the tree, at most the signed one.
            leaf: The leaf hash that must be proven; None takes the one in the tree.
            head: The signed head that must confirm it; None takes the served one.

        Raises:
            NotFoundError: The index is not below the size, or the size is not signed yet.
            DamageError: What is stored does not lead to the signed root.
        """
        head = head or self.head
        if not index < size <= head.size:
            raise NotFoundError(f"no signed tree of size {size} with an entry {index}")
        nodes = [(0, index), *inclusion_nodes(index, size)]
        stored, *hashes = await self.tree.hashes(nodes)
        proof = inclusion_proof(index, size, hashes)
        root = await self._root(size, head)
        try:
            verify_inclusion(leaf if leaf is not None else stored, index, size, proof, root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        return stored, proof

    async def prove_many(self, indexes: Sequence[int], head: SignedHead) -> list[tuple[bytes, list[bytes]]]:
        """Return the leaf hash and the inclusion proof of each entry, to a signed head, verified.

        Raises:
            NotFoundError: An index is not below the size of the head.
            DamageError: What is stored does not lead to its root.
        """
        return [await self.prove_inclusion(index, head.size, head=head) for index in indexes]

    async def prove_batch(self, leaves: Mapping[int, bytes], head: SignedHead) -> list[bytes]:
        """Return the multiproof of leaf hashes by index, to a signed head, verified.

        Raises:
            NotFoundError: An index is not below the size of the head.
            DamageError: What is stored does not lead to its root.
        """
        if not leaves or max(leaves) >= head.size:
            raise NotFoundError(f"no signed tree of size {head.size} with all these entries")
        async with self._proving:
            proof = await self.tree.hashes(multiproof_nodes(leaves, head.size))
            verify = partial(verify_multiproof, leaves, head.size, proof, head.root)
            try:
                if len(leaves) > INLINE_PROOFS:
                    await asyncio.to_thread(verify)
                else:
                    verify()
            except VerificationError as error:
                raise DamageError(str(error)) from error
        return proof

    async def prove_consistency(self, old_size: int, new_size: int, head: SignedHead | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes, verified up to a signed head, by default the served one.

        Raises:
            NotFoundError: Not 0 ≤ old ≤ new ≤ the signed size.
            DamageError: What is stored does not lead to the signed root.
        """
        head = head or self.head
        if not 0 <= old_size <= new_size <= head.size:
            raise NotFoundError(f"no signed trees of sizes {old_size} and {new_size}, in this order")
        proof = consistency_proof(old_size, new_size, await self.tree.hashes(consistency_nodes(old_size, new_size)))
        if old_size > 0:
            old_root, new_root = await self._root(old_size, head), await self._root(new_size, head)
            try:
                verify_consistency(old_size, new_size, proof, old_root, new_root)
            except VerificationError as error:
                raise DamageError(str(error)) from error
        return proof

    async def read_entry(self, index: int) -> tuple[bytes, bytes, list[bytes], SignedHead]:
        """Return an entry, its leaf hash, its inclusion proof to the served head, and that head; verified together.

        Raises:
            NotFoundError: The served tree has no such entry.
            DamageError: What is stored does not lead to the signed root.
        """
        head = self.head
        entry = await self.tree.entry(index)
        leaf, proof = await self.prove_inclusion(index, head.size, leaf_hash(entry), head)
        return entry, leaf, proof, head

    async def _root(self, size: int, head: SignedHead) -> bytes:
        """Return the root at a size, proven to be a prefix of the signed tree."""
        if size == head.size:
            return head.root
        root = subtree_root(0, size, await self.tree.hashes(subtree_nodes(0, size)))
        hashes = await self.tree.hashes(consistency_nodes(size, head.size))
        try:
            verify_consistency(size, head.size, consistency_proof(size, head.size, hashes), root, head.root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        return root
