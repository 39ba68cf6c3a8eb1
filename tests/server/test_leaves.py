"""The leaf index: what it finds, while runs are written and merged, and after a crash in between."""

from __future__ import annotations

import sqlite3
from hashlib import sha256

import pytest

from tests.support.writing import Thread, memory_database
from tlog.server import leaves as index_module
from tlog.server.errors import DamageError
from tlog.server.leaves import LeafIndex, find_candidates
from tlog.server.storage import leaves as store_module
from tlog.server.storage.leaves import LeafStore

RUN = 64


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (index_module, store_module):
        monkeypatch.setattr(module, "RUN", RUN)


def leaf(index: int) -> bytes:
    return sha256(b"%d" % index).digest()


class Index:
    """A leaf index over a number of entries, and a reader beside it."""

    def __init__(self) -> None:
        self.database = memory_database()
        self.store = LeafStore(self.database)
        self.index = LeafIndex(Thread(), self.store, [])
        self.size = 0

    async def grow(self, size: int) -> None:
        while self.size < size:
            end = min(size, self.size + 100)
            self.index.extend(self.size, [leaf(index) for index in range(self.size, end)])
            self.size = end
            await self.index.follow(self.size // RUN * RUN)

    async def find(self, leaf_hash: bytes) -> list[int]:
        recent = self.index.recent(leaf_hash)
        (row,) = await find_candidates(self.index, Thread(), self.store, [leaf_hash])
        return row if recent is None else [*row, recent]

    async def check(self, step: int = 1) -> None:
        wanted = range(0, self.size, step)
        assert [await self.find(leaf(index)) for index in wanted] == [[index] for index in wanted]
        misses = [await self.find(leaf(index)) for index in range(self.size, self.size + 500)]
        assert misses == [[]] * 500


async def test_every_leaf_hash_is_found_in_memory_or_in_runs() -> None:
    index = Index()
    for size in (0, 1, 255, 256, 257, 700, 3000):
        await index.grow(size)
        assert index.index.position == size // RUN * RUN
        await index.check()


async def test_eight_runs_become_one_and_nothing_is_lost_at_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_STEP", 100)
    index = Index()
    await index.grow(RUN * 66)
    levels = [run.level for run in index.index._runs]
    assert levels == [0] * 66
    steps = 0
    while await index.index.merge():
        steps += 1
        if steps % 7 == 0:
            await index.check(23)
        if steps == 5:
            await index.grow(RUN * 72)
    await index.check()
    assert [(run.level, run.first) for run in index.index._runs] == [(2, 0), (1, 64 * RUN)]
    buckets = index.database.execute("SELECT count(*) FROM leaf_bucket").fetchone()[0]
    assert buckets == 256 * 64 + 256 * 8
    assert [run.id for run in LeafStore(index.database).runs()] == [run.id for run in index.index._runs]


async def test_a_merge_that_did_not_end_leaves_the_old_runs_and_is_swept_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "_STEP", 16)
    index = Index()
    await index.grow(RUN * 8)
    for _ in range(5):
        await index.index.merge()
    again = LeafStore(index.database)
    index.index = LeafIndex(Thread(), again, again.runs())
    index.store = again
    await index.grow(RUN * 9)
    await index.check()
    for _ in range(2):
        assert await index.index.merge()
    assert index.database.execute("SELECT count(*) FROM leaf_bucket").fetchone()[0] == 256 * 9
    while await index.index.merge():
        pass
    await index.check()
    assert index.database.execute("SELECT count(*) FROM leaf_bucket").fetchone()[0] == 256 * 9


async def test_buckets_of_replaced_runs_are_swept_after_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index()
    await index.grow(RUN * 8)
    monkeypatch.setattr(store_module.LeafStore, "sweep_some", lambda *_: False)
    while await index.index.merge():
        pass
    index.index = LeafIndex(Thread(), index.store, index.store.runs())
    await index.check()
    assert index.database.execute("SELECT count(*) FROM leaf_bucket").fetchone()[0] == 256 * 16
    while await index.index.merge():
        pass
    assert index.database.execute("SELECT count(*) FROM leaf_bucket").fetchone()[0] == 256 * 8
    await index.check()


async def test_a_look_up_that_began_before_a_merge_ended_finds_all_the_same() -> None:
    index = Index()
    await index.grow(RUN * 8)
    wanted = [(leaf(5)[:8], index.index.runs_with(leaf(5)))]
    while await index.index.merge():
        pass
    assert index.store.find(wanted) == [[5]]


async def test_of_equal_leaf_hashes_the_first_index_comes_first() -> None:
    index = Index()
    await index.grow(RUN)
    index.index.extend(RUN, [leaf(3), leaf(4), leaf(3)])
    assert await index.find(leaf(3)) == [3, RUN]


def cut(database: sqlite3.Connection) -> None:
    database.execute("UPDATE leaf_run SET filter = x'00' WHERE id = 1")


def lose(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM leaf_run WHERE id = 1")


@pytest.mark.parametrize("damage", [cut, lose])
async def test_runs_that_leave_a_gap_are_damage(damage: object) -> None:
    index = Index()
    await index.grow(RUN * 3)
    assert callable(damage)
    damage(index.database)
    with pytest.raises(DamageError):
        index.store.runs()


@pytest.mark.parametrize(
    "damage", ["DELETE FROM leaf_bucket", "UPDATE leaf_bucket SET items = CAST(items || x'00' AS BLOB)"]
)
async def test_a_damaged_bucket_is_damage_and_not_an_entry_that_is_new(damage: str) -> None:
    index = Index()
    await index.grow(RUN)
    index.database.execute(damage)
    with pytest.raises(DamageError):
        await index.find(leaf(3))


async def test_a_damaged_index_is_merged_no_further_and_built_anew_at_the_next_start() -> None:
    index = Index()
    await index.grow(RUN * 8)
    assert index.database.execute("SELECT count(*) FROM position").fetchone() == (1,)
    index.database.execute("DELETE FROM leaf_bucket WHERE id & 255 = 40")
    steps = 0
    while await index.index.merge():
        steps += 1
    assert steps == 2
    assert index.database.execute("SELECT count(*) FROM position").fetchone() == (0,)
    await index.grow(RUN * 9)
    assert not await index.index.merge()


async def test_a_malformed_database_is_damage_of_the_index_and_a_failing_disk_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Index()
    await index.grow(RUN * 8)
    errors: list[sqlite3.Error] = [sqlite3.OperationalError("disk I/O error"), sqlite3.DatabaseError("malformed")]

    def fail(*_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(store_module.LeafStore, "merge_some", fail)
    with pytest.raises(sqlite3.OperationalError):
        await index.index.merge()
    assert not await index.index.merge()
    assert index.database.execute("SELECT count(*) FROM position").fetchone() == (0,)
