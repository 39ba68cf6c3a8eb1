"""Order, batches, limits and ends of the sequencer, without a disk and without a clock."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.memory import MemoryCheckpointStore, MemoryStorage
from tests.support.rfc6962 import Tree
from tests.support.writing import Thread, begin, leaves, memory_database, memory_leaves, memory_tiles
from tlog.errors import PushbackError
from tlog.server import sequencer
from tlog.server.clock import Clock
from tlog.server.duplicates import Duplicates
from tlog.server.errors import CommitError, StoppedError, TooLargeError
from tlog.server.idempotency import Keys, request_key
from tlog.server.limit import Limits
from tlog.server.overlay import Overlay
from tlog.server.sequencer import End, Sequencer
from tlog.server.space import Space
from tlog.server.storage.leaves import LeafStore
from tlog.server.tree import Tree as VisibleTree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tlog.server.sequencer import Placed
    from tlog.server.storage import Segment

pytestmark = pytest.mark.invariant("I6", "I19")


class Breaks(MemoryStorage):
    """Fails the append of an entry that says so."""

    def append(self, segment: Segment) -> None:
        if b"break" in segment.entries:
            raise CommitError("disk I/O error")
        super().append(segment)


class Log:
    """A sequencer, and what it stands on."""

    def __init__(self, limits: Limits, *, dedup: bool) -> None:
        self.storage = Breaks()
        self.store = MemoryCheckpointStore()
        self.thread = Thread()
        self.reader = Thread()
        self.overlay = Overlay(0, {})
        self.leaves = memory_leaves()
        self.keys = Keys(limits.key_bytes)
        commit, head = begin(self.storage, self.store)
        self.now_ms = 1000
        tree = VisibleTree(self.overlay, self.reader, memory_tiles())
        duplicates = Duplicates(self.overlay, tree, self.leaves, self.reader, LeafStore(memory_database()))
        space = Space([Path("/")], 0)
        end = End(self.thread, commit, head, self.overlay, duplicates, self.keys, space)
        self.sequencer = Sequencer(end, limits, Clock(self.clock_ms, self.clock_ms), dedup=dedup)
        self.run = asyncio.create_task(self.sequencer.run())

    def clock_ms(self) -> int:
        self.now_ms += 1
        return self.now_ms

    def add(self, entry: bytes) -> asyncio.Task[Placed]:
        return asyncio.create_task(self.one(entry))

    async def one(self, entry: bytes) -> Placed:
        (placed,) = await self.sequencer.add([entry])
        return placed

    def many(self, *entries: bytes, key: str | None = None) -> asyncio.Task[list[Placed]]:
        request = None if key is None else request_key(key, "route", b"".join(entries))
        return asyncio.create_task(self.sequencer.add(entries, request))

    async def hold(self, entry: bytes = b"held") -> asyncio.Task[Placed]:
        """Start a commit that does not end until the gate opens."""
        self.thread.gate.clear()
        task = self.add(entry)
        await settle()
        assert self.thread.runs == 1
        return task

    def batches(self) -> list[int]:
        return [segment.count for segment in self.storage.segments]


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def log_in_memory(*, dedup: bool = True, **limits: int) -> AsyncIterator[Log]:
    log = Log(Limits(**limits), dedup=dedup)
    try:
        yield log
    finally:
        log.thread.gate.set()
        log.sequencer.close()
        await asyncio.wait([log.run])
        log.sequencer.abandon()
        await settle()


async def test_one_entry_is_one_commit() -> None:
    async with log_in_memory() as log:
        for index, entry in enumerate([b"a", b"", b"b", b"x" * 65_535]):
            placed = await log.one(entry)
            assert (placed.index, placed.leaf_hash) == (index, leaves([entry])[0])
            assert placed.head == log.sequencer.head
            assert placed.head.size == index + 1
        assert log.batches() == [1, 1, 1, 1]


async def test_what_arrives_during_a_commit_is_the_next_batch_in_its_order() -> None:
    async with log_in_memory() as log:
        held = await log.hold()
        tasks = [log.add(b"%d" % number) for number in range(50)]
        await settle()
        assert not any(task.done() for task in (held, *tasks))
        assert log.sequencer.head.size == 0
        log.thread.gate.set()
        placed = await asyncio.gather(held, *tasks)
        assert log.batches() == [1, 50]
        assert [each.index for each in placed] == list(range(51))
        assert {each.head.size for each in placed[1:]} == {51}
        tree = Tree([b"held", *(b"%d" % number for number in range(50))])
        assert log.sequencer.head.root == tree.mth(0, 51)
        assert log.storage.entries(0, 51) == tree.entries


async def test_a_batch_has_one_time() -> None:
    async with log_in_memory() as log:
        _ = await log.hold()
        tasks = [log.add(b"x"), log.add(b"y")]
        await settle()
        log.thread.gate.set()
        await asyncio.gather(*tasks)
        first, second = [segment.time_ms for segment in log.storage.segments]
        assert first < second  # each reading is later than the one before


async def test_without_dedup_equal_entries_are_entries_of_their_own() -> None:
    async with log_in_memory(dedup=False) as log:
        placed = await asyncio.gather(*(log.one(b"same") for _ in range(5)))
        assert [each.index for each in placed] == list(range(5))
        assert all(each.is_new for each in placed)


async def test_a_head_and_its_overlay_become_visible_together_before_anybody_is_answered() -> None:
    async with log_in_memory() as log:
        seen: list[tuple[int, int, bool]] = []
        task = log.add(b"x")
        task.add_done_callback(
            lambda _: seen.append((log.sequencer.head.size, log.overlay.size, log.sequencer.advanced.is_set()))
        )
        await task
        await settle()
        assert seen == [(1, 1, True)]
        assert log.overlay.entry(0) == b"x"


async def test_a_batch_is_bounded_in_bytes() -> None:
    async with log_in_memory(batch_bytes=100) as log:
        _ = await log.hold()
        tasks = [log.add(entry) for entry in (b"a" * 60, b"b" * 40, b"c", b"d" * 100, b"e" * 99, b"f")]
        await settle()
        log.thread.gate.set()
        placed = await asyncio.gather(*tasks)
        assert [each.index for each in placed] == [1, 2, 3, 4, 5, 6]
        assert log.batches() == [1, 2, 1, 1, 2]


async def test_an_entry_of_65536_bytes_is_refused_and_costs_nothing() -> None:
    async with log_in_memory() as log:
        with pytest.raises(TooLargeError, match="at most 65535 bytes"):
            await log.one(bytes(65_536))
        assert (await log.one(b"x")).index == 0


async def test_the_pool_is_bounded_in_entries() -> None:
    async with log_in_memory(pool_entries=3) as log:
        held = await log.hold()
        tasks = [log.add(b"%d" % number) for number in range(3)]
        await settle()
        with pytest.raises(PushbackError) as caught:
            await log.one(b"")
        assert caught.value.retry_after == 1
        with pytest.raises(PushbackError):
            log.sequencer.check_admission()
        log.thread.gate.set()
        assert [each.index for each in await asyncio.gather(held, *tasks)] == [0, 1, 2, 3]
        assert (await log.one(b"again")).index == 4


async def test_the_pool_is_bounded_in_bytes() -> None:
    async with log_in_memory(pool_bytes=100) as log:
        _ = await log.hold()
        tasks = [log.add(b"a" * 50), log.add(b"b" * 50)]
        await settle()
        with pytest.raises(PushbackError):
            await log.one(b"")
        log.thread.gate.set()
        await asyncio.gather(*tasks)
        log.sequencer.check_admission()


async def test_the_lag_of_the_follower_is_bounded() -> None:
    async with log_in_memory(lag=256) as log:
        await asyncio.gather(*(log.add(b"%d" % number) for number in range(256)))
        with pytest.raises(PushbackError) as caught:
            await log.one(b"")
        assert caught.value.retry_after == 1
        log.overlay.trim(256)
        assert (await log.one(b"")).index == 256


async def test_an_entry_whose_submitter_is_gone_is_appended_all_the_same() -> None:
    async with log_in_memory() as log:
        _ = await log.hold()
        gone, stays = log.add(b"gone"), log.add(b"stays")
        await settle()
        gone.cancel()
        await settle()
        log.thread.gate.set()
        assert (await stays).index == 2
        assert log.storage.entries(0, 3) == [b"held", b"gone", b"stays"]


async def test_closing_signs_what_was_admitted_and_admits_nothing_more() -> None:
    async with log_in_memory() as log:
        held = await log.hold()
        waiting = [log.add(b"admitted"), log.add(b"admitted too")]
        await settle()
        log.sequencer.close()
        with pytest.raises(StoppedError):
            await log.one(b"too late")
        assert not log.run.done()
        log.thread.gate.set()
        await log.run
        assert [each.index for each in await asyncio.gather(held, *waiting)] == [0, 1, 2]
        assert log.storage.size() == 3


async def test_closing_an_idle_log_ends_it() -> None:
    async with log_in_memory() as log:
        await log.one(b"x")
        log.sequencer.close()
        await log.run
        with pytest.raises(StoppedError):
            await log.one(b"later")


async def test_after_a_failed_commit_nobody_is_answered_until_the_log_is_abandoned() -> None:
    async with log_in_memory() as log:
        _ = await log.hold()
        tasks = [log.add(b"break"), log.add(b"with it")]
        await settle()
        log.thread.gate.set()
        with pytest.raises(CommitError):
            await log.run
        await settle()
        assert not any(task.done() for task in tasks)
        assert log.sequencer.head.size == log.overlay.size == 1
        with pytest.raises(StoppedError):
            await log.one(b"later")
        log.sequencer.abandon()
        for task in tasks:
            with pytest.raises(StoppedError, match="before it could sign"):
                await task


async def test_a_log_is_late_only_while_an_admitted_entry_waits_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_in_memory() as log:
        assert not log.sequencer.is_late()
        _ = await log.hold()
        assert not log.sequencer.is_late()
        monkeypatch.setattr(sequencer, "MAX_UNSIGNED_S", -1.0)
        assert log.sequencer.is_late()
        log.thread.gate.set()
        await settle()
        assert not log.sequencer.is_late()
