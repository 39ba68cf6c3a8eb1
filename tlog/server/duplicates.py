"""Finding what the log has already, exactly and off the commit path.

in memory     the leaf index above its runs, where no run may have an older one: no waiting
in tiles.db   where a filter says "maybe": a candidate counts when the tree has that leaf hash at its index

Equal leaf hashes are equal entries: whoever finds two entries with one SHA-256 has broken every proof there is. Entries
themselves are not read, because a repeated batch would take as many bundles as it has entries.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from tlog.server.errors import DamageError
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

    def in_memory(self, leaf_hash: bytes) -> int | None:
        """Return the first index of an entry, where memory alone is enough to be sure."""
        index = self._leaves.recent(leaf_hash)
        if index is None or self._leaves.may_be_in_runs(leaf_hash):
            return None
        return index if self._overlay.hash_of((0, index)) == leaf_hash else None

    def may_be_stored(self, leaf_hash: bytes) -> bool:
        """Return False where the log does not have the entry; memory alone decides."""
        return self._leaves.recent(leaf_hash) is not None or self._leaves.may_be_in_runs(leaf_hash)

    async def find(self, leaf_hashes: Sequence[bytes]) -> list[int | None]:
        """Return the first index of each leaf hash; None where no signed tree has it.

        Raises:
            DamageError: What is stored does not verify.
        """
        rows = await self._candidates(leaf_hashes)
        if any(index >= self._overlay.size for row in rows for index in row):
            error = DamageError("the leaf index in tiles.db names entries that are not there")
            await self._leaves.condemn(error)
            raise error
        hashes = iter(await self._tree.hashes([(0, index) for row in rows for index in row]))
        pairs = [[(index, next(hashes)) for index in row] for row in rows]
        return [
            next((index for index, found in row if found == leaf), None)
            for row, leaf in zip(pairs, leaf_hashes, strict=True)
        ]

    async def check(self, indexes: Sequence[int], leaf_hashes: Sequence[bytes]) -> None:
        """Check that entries are where a record says.

        Raises:
            DamageError: They are not.
        """
        is_there = len(indexes) == len(leaf_hashes) and max(indexes, default=0) < self._overlay.size
        if not is_there or await self._tree.hashes([(0, index) for index in indexes]) != list(leaf_hashes):
            raise DamageError("what is kept under this Idempotency-Key is of other entries")

    async def _candidates(self, leaf_hashes: Sequence[bytes]) -> list[list[int]]:
        """Return where each leaf hash may be; runs come before memory, because their entries are older."""
        recent = [self._leaves.recent(leaf) for leaf in leaf_hashes]  # before the wait: the follower may move them on
        try:
            rows = await find_candidates(self._leaves, self._reader, self._store, leaf_hashes)
        except sqlite3.OperationalError as error:
            raise DamageError(f"tiles.db cannot be read: {error}") from error
        except (DamageError, sqlite3.DatabaseError) as error:
            await self._leaves.condemn(error)
            raise DamageError(f"tiles.db is damaged: {error}") from error
        return [row if index is None else sorted({*row, index}) for row, index in zip(rows, recent, strict=True)]
