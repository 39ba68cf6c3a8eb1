"""The leaf index: from a leaf hash to the first index that has it.

The newest entries are in a map in memory, exact: everything above the newest run. The rest is in runs in tiles.db,
which the follower writes and merges behind the tiles, and whose filters are in memory. An entry is in the map until it
is in a run.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from tlog.server.errors import DamageError
from tlog.server.storage.leaves import FAN, PREFIX_SIZE, RUN, LeafStore, Merge, Run, prefix_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tlog.server.storage.database import Database

log = structlog.get_logger()


class LeafIndex:
    """Owned by the event loop; the follower moves it on.

    Attributes:
        position: Entries below it are in runs.
    """

    def __init__(self, thread: Database, store: LeafStore, runs: Sequence[Run]) -> None:
        """Begin with the runs of a store.

        Args:
            thread: The thread that owns the store.
            store: The writer's side.
            runs: What it holds; the caller adds the leaf hashes above them.
        """
        self._thread = thread
        self._store = store
        self._runs = list(runs)
        self._recent: dict[bytes, int] = {}  # in the order of the indexes
        self._merge: Merge | None = None
        self._is_damaged = False
        self._is_swept = not runs  # of what a merge has left that did not end, before the last start
        self.position = runs[-1].end if runs else 0

    def extend(self, first: int, leaf_hashes: Sequence[bytes]) -> None:
        """Add entries that became visible."""
        recent = self._recent
        for index, leaf in enumerate(leaf_hashes, first):
            recent.setdefault(leaf, index)

    def recent(self, leaf_hash: bytes) -> int | None:
        """Return the first index of a leaf hash above the runs."""
        return self._recent.get(leaf_hash)

    def may_be_in_runs(self, leaf_hash: bytes) -> bool:
        """Return False where no run has a leaf hash."""
        runs = self._runs
        if not runs:
            return False
        prefix = prefix_of(leaf_hash)
        for run in runs:  # noqa: SIM110 — a generator would cost as much as the filters
            if run.may_have(prefix):
                return True
        return False

    def runs_with(self, leaf_hash: bytes) -> frozenset[int]:
        """Return the runs that may have a leaf hash."""
        prefix = prefix_of(leaf_hash)
        return frozenset([run.id for run in self._runs if run.may_have(prefix)])

    async def follow(self, position: int) -> None:
        """Write the runs that are due, now that tiles go up to a position."""
        while position - self.position >= RUN:
            end = self.position + RUN
            rows = {leaf: index for leaf, index in islice(self._recent.items(), RUN) if index < end}
            self._runs.append(await self._thread.run(partial(self._add, self.position, rows)))
            for leaf in rows:
                del self._recent[leaf]
            self.position = end

    def _add(self, first: int, rows: Mapping[bytes, int], _: object) -> Run:
        return self._store.add(first, rows)

    async def merge(self) -> bool:
        """Do a part of a merge; return whether there is more to do. A damaged index is merged no further."""
        if self._is_damaged:
            return False
        try:
            if not self._is_swept:
                self._is_swept = not await self._thread.run(lambda _: self._store.sweep())
                return True
            if self._merge is None:
                runs = self._due()
                if not runs:
                    return False
                self._merge = await self._thread.run(lambda _: self._store.begin_merge(runs))
            return await self._merge_some(self._merge)
        except sqlite3.OperationalError:
            raise  # a disk that fails or is full, which is no damage
        except (DamageError, sqlite3.DatabaseError) as error:
            await self.condemn(error)
            return False

    async def _merge_some(self, merge: Merge) -> bool:
        if merge.runs[0] not in self._runs:
            if not await self._thread.run(lambda _: self._store.sweep_some(merge)):
                self._merge = None
            return True
        merged = await self._thread.run(lambda _: self._store.merge_some(merge))
        if merged is not None:
            at = self._runs.index(merge.runs[0])
            self._runs[at : at + FAN] = [merged]
        return True

    async def condemn(self, error: Exception) -> None:
        """Take the index for damaged: what it is asked for is refused, and the next start builds it anew."""
        if not self._is_damaged:
            self._is_damaged = True
            log.error("leaves.damaged", reason=str(error))
            await self._thread.run(lambda _: self._store.condemn())

    def _due(self) -> list[Run]:
        """Return eight runs of one level, the lowest that has so many."""
        for level in range(16):
            runs = [run for run in self._runs if run.level == level]
            if len(runs) >= FAN:
                return runs[:FAN]
        return []


async def find_candidates(
    index: LeafIndex, reader: Database, store: LeafStore, leaf_hashes: Sequence[bytes]
) -> list[list[int]]:
    """Return, for each leaf hash, the indexes in runs that may have it, smallest first.

    Args:
        index: The leaf index.
        reader: The thread that owns the store.
        store: The reader's side.
        leaf_hashes: 32 bytes each.
    """
    wanted = [(leaf[:PREFIX_SIZE], index.runs_with(leaf)) for leaf in leaf_hashes]
    if not any(runs for _, runs in wanted):
        return [[] for _ in wanted]
    find = partial(store.find, wanted)
    return await reader.run(lambda _: find())
