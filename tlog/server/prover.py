"""Proofs about the visible tree, each made for one named head, and verified before it is given.

A proof is a generator that asks for the hashes of nodes and returns what it has verified. `_read` has them read,
`_read_now` gives up where memory lacks one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from tlog.errors import NotFoundError, VerificationError
from tlog.merkle import (
    Node,
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
from tlog.multiproof import cut_inclusion_proofs, multiproof_nodes, verify_multiproof
from tlog.server.errors import DamageError
from tlog.server.tails import Tails

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlog.server.storage import SignedHead
    from tlog.server.tree import Tree

T = TypeVar("T")

Proving: TypeAlias = Generator[Sequence[Node], list[bytes], T]
"""Asks for the hashes of nodes, and returns what it has verified."""

BATCH_PROOFS = 2
"""Proofs of batches that are made at a time: each may read thousands of tiles."""

MAX_ROOTS = 1024
"""Most roots of older trees that are kept: clients ask for proofs in the few trees that they trust."""

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
        self._tails = Tails(tree)
        self._roots: OrderedDict[int, bytes] = OrderedDict()  # of sizes that were proven

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
        return await self._read(_inclusion(index, size, leaf, head or self.head))

    def prove_inclusion_now(self, index: int, size: int) -> tuple[bytes, list[bytes]] | None:
        """Return what `prove_inclusion` does, or raise the same; None where something has to be read first."""
        head = self.head
        if index < size <= head.size:
            root = head.root if size == head.size else self._root_now(size, head)
            found = None if root is None else self._tails.prove(index, size, root)
            if found is not None:
                return found
        return self._read_now(_inclusion(index, size, None, head))

    def _root_now(self, size: int, head: SignedHead) -> bytes | None:
        """Return the root at a size, proven to be that of a prefix of the signed tree, which it stays for ever."""
        root = self._roots.get(size)
        if root is None:
            root = self._read_now(_root(size, head))
            if root is not None:
                self._roots[size] = root
                if len(self._roots) > MAX_ROOTS:
                    self._roots.popitem(last=False)
        return root

    async def prove_many(self, indexes: Sequence[int], head: SignedHead) -> list[tuple[bytes, list[bytes]]]:
        """Return the leaf hash and the inclusion proof of each entry, to a signed head, verified.

        Raises:
            NotFoundError: An index is not below the size of the head.
            DamageError: What is stored does not lead to its root.
        """
        return [await self.prove_inclusion(index, head.size, head=head) for index in indexes]

    def prove_many_now(self, indexes: Sequence[int], head: SignedHead) -> list[tuple[bytes, list[bytes]]] | None:
        """Return what `prove_many` does, or raise the same; None where something has to be read first."""
        found: list[tuple[bytes, list[bytes]]] = []
        for index in indexes:
            proven = self._tails.prove(index, head.size, head.root) if index < head.size else None
            if proven is None:
                proven = self._read_now(_inclusion(index, head.size, None, head))
            if proven is None:
                return None
            found.append(proven)
        return found

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
            verify = partial(_verify_batch, leaves, proof, head)
            if len(leaves) > INLINE_PROOFS:
                await asyncio.to_thread(verify)
            else:
                verify()
        return proof

    def prove_each_now(self, leaves: Mapping[int, bytes], head: SignedHead) -> list[list[bytes]] | None:
        """Return the inclusion proof of each leaf hash, in their order, all verified at once as one multiproof.

        None where something has to be read first.

        Raises:
            DamageError: What is in memory does not lead to the root of the head.
        """
        proof = self.tree.hashes_now(multiproof_nodes(leaves, head.size))
        if proof is None:
            return None
        return list(cut_inclusion_proofs(leaves, head.size, _verify_batch(leaves, proof, head)))

    async def prove_consistency(self, old_size: int, new_size: int, head: SignedHead | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes, verified up to a signed head, by default the served one.

        Raises:
            NotFoundError: Not 0 ≤ old ≤ new ≤ the signed size.
            DamageError: What is stored does not lead to the signed root.
        """
        return await self._read(_consistency(old_size, new_size, head or self.head))

    def prove_consistency_now(self, old_size: int, new_size: int, head: SignedHead | None = None) -> list[bytes] | None:
        """Return what `prove_consistency` does, or raise the same; None where something has to be read first."""
        return self._read_now(_consistency(old_size, new_size, head or self.head))

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

    async def _read(self, proving: Proving[T]) -> T:
        """Read what a proof asks for."""
        nodes = next(proving)
        while True:
            try:
                nodes = proving.send(await self.tree.hashes(nodes))
            except StopIteration as done:
                return cast("T", done.value)

    def _read_now(self, proving: Proving[T]) -> T | None:
        """Give a proof what it asks for where memory has it; else give it up, and return None."""
        nodes = next(proving)
        while True:
            hashes = self.tree.hashes_now(nodes)
            if hashes is None:
                return None
            try:
                nodes = proving.send(hashes)
            except StopIteration as done:
                return cast("T", done.value)


def _inclusion(index: int, size: int, leaf: bytes | None, head: SignedHead) -> Proving[tuple[bytes, list[bytes]]]:
    """Ask for the hashes of an inclusion proof; return the leaf hash and the proof, verified."""
    if not index < size <= head.size:
        raise NotFoundError(f"no signed tree of size {size} with an entry {index}")
    stored, *hashes = yield [(0, index), *inclusion_nodes(index, size)]
    proof = inclusion_proof(index, size, hashes)
    root = yield from _root(size, head)
    try:
        verify_inclusion(leaf if leaf is not None else stored, index, size, proof, root)
    except VerificationError as error:
        raise DamageError(str(error)) from error
    return stored, proof


def _consistency(old_size: int, new_size: int, head: SignedHead) -> Proving[list[bytes]]:
    """Ask for the hashes of a consistency proof; return it, verified."""
    if not 0 <= old_size <= new_size <= head.size:
        raise NotFoundError(f"no signed trees of sizes {old_size} and {new_size}, in this order")
    hashes = yield consistency_nodes(old_size, new_size)
    proof = consistency_proof(old_size, new_size, hashes)
    if old_size > 0:
        old_root = yield from _root(old_size, head)
        new_root = yield from _root(new_size, head)
        try:
            verify_consistency(old_size, new_size, proof, old_root, new_root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
    return proof


def _root(size: int, head: SignedHead) -> Proving[bytes]:
    """Ask for the root at a size; return it, proven to be that of a prefix of the signed tree."""
    if size == head.size:
        return head.root
    nodes = subtree_nodes(0, size)
    hashes = yield [*nodes, *consistency_nodes(size, head.size)]
    root = subtree_root(0, size, hashes[: len(nodes)])
    try:
        proof = consistency_proof(size, head.size, hashes[len(nodes) :])
        verify_consistency(size, head.size, proof, root, head.root)
    except VerificationError as error:
        raise DamageError(str(error)) from error
    return root


def _verify_batch(leaves: Mapping[int, bytes], proof: Sequence[bytes], head: SignedHead) -> dict[Node, bytes]:
    """Verify a multiproof up to a signed head; return every node on the way."""
    try:
        return verify_multiproof(leaves, head.size, proof, head.root)
    except VerificationError as error:
        raise DamageError(str(error)) from error
