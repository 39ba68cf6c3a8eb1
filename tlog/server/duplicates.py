"""Finding what the log has already, exactly and off the commit path.

in memory     the leaf index above its runs, and entries in the overlay: no waiting
in tiles.db   where a filter says "maybe": a candidate counts when its leaf hash and its bytes are equal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlog.errors import NotFoundError
from tlog.server.leaves import find_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.leaves import LeafIndex
    from tlog.server.overlay import Overlay
    from tlog.server.storage.database import Database
    from tlog.server.storage.leaves import LeafStore
    from tlog.server.tree import Tree


class Duplicates:
    """Looks entries up in the visible tree. Owned by the event loop."""

    def __init__(self, overlay: Overlay, tree: Tree, leaves: LeafIndex, reader: Database, store: LeafStore) -> None:
        """Look into a tree and its leaf index.

        Args:
            overlay: The newest part of the tree.
            tree: The tree.
            leaves: Its leaf index.
            reader: The thread that owns the store.
            store: The reader's side of the leaf index.
        """
        self._overlay = overlay
        self._tree = tree
        self._leaves = leaves
        self._reader = reader
        self._store = store

    def extend(self, first: int, leaf_hashes: Sequence[bytes]) -> None:
        """Add entries that became visible."""
        self._leaves.extend(first, leaf_hashes)

    def in_memory(self, leaf_hash: bytes, entry: bytes) -> int | None:
        """Return the index of an entry, where memory alone is enough to be sure."""
        index = self._leaves.recent(leaf_hash)
        return index if index is not None and self._overlay.entry(index) == entry else None

    def may_be_stored(self, leaf_hash: bytes) -> bool:
        """Return False where only memory can have the entry."""
        return self._leaves.recent(leaf_hash) is not None or bool(self._leaves.runs_with(leaf_hash))

    async def find(self, wanted: Sequence[tuple[bytes, bytes]]) -> list[int | None]:
        """Return the first index of each entry, given with its leaf hash before it; None where the log has it not.

        Raises:
            DamageError: What is stored does not verify.
        """
        rows = await self._candidates([leaf for leaf, _ in wanted])
        return [await self._first(row, entry) for row, (_, entry) in zip(rows, wanted, strict=True)]

    async def find_leaf(self, leaf_hash: bytes) -> int:
        """Return the first index of a leaf hash.

        Raises:
            NotFoundError: No signed tree has it.
            DamageError: What is stored does not verify.
        """
        (row,) = await self._candidates([leaf_hash])
        hashes = await self._tree.hashes([(0, index) for index in row])
        for index, found in zip(row, hashes, strict=True):
            if found == leaf_hash:
                return index
        raise NotFoundError("no signed tree has an entry with this leaf hash")

    async def _candidates(self, leaf_hashes: Sequence[bytes]) -> list[list[int]]:
        """Return where each leaf hash may be; runs come before memory, because their entries are older."""
        recent = [self._leaves.recent(leaf) for leaf in leaf_hashes]  # before the wait: the follower may move them on
        rows = await find_candidates(self._leaves, self._reader, self._store, leaf_hashes)
        return [row if index is None else sorted({*row, index}) for row, index in zip(rows, recent, strict=True)]

    async def _first(self, candidates: Sequence[int], entry: bytes) -> int | None:
        for index in candidates:
            if await self._tree.entry(index) == entry:
                return index
        return None
