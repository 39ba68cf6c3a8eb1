"""Equal entries and repeated requests: one index, one append, whoever comes when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.test_sequencer import log_in_memory, settle
from tests.support.writing import leaves
from tlog.errors import PushbackError
from tlog.server.errors import CommitError, DamageError, KeyReusedError, ReadOnlyError, StoppedError, TooLargeError
from tlog.server.idempotency import KEY_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.server.sequencer import Placed

pytestmark = pytest.mark.invariant("I17", "I29")


def indexes(placed: Sequence[Placed]) -> list[tuple[int, bool]]:
    return [(one.index, one.is_new) for one in placed]


async def test_an_entry_of_the_log_gets_its_first_index_and_the_newest_head() -> None:
    async with log_in_memory() as log:
        first = await log.one(b"a")
        await log.one(b"b")
        again = await log.one(b"a")
        assert (first.index, first.is_new, again.index, again.is_new) == (0, True, 0, False)
        assert again.head == log.sequencer.head
        assert log.sequencer.head.size == 2


async def test_an_entry_equal_to_one_under_way_joins_it() -> None:
    async with log_in_memory() as log:
        held = await log.hold(b"same")
        early = log.add(b"same")
        pooled = log.add(b"other")
        late = log.add(b"other")
        await settle()
        assert not any(task.done() for task in (held, early, pooled, late))
        log.thread.gate.set()
        placed = await asyncio.gather(held, early, pooled, late)
        assert indexes(placed) == [(0, True), (0, False), (1, True), (1, False)]
        assert all(one.head.size > one.index for one in placed)
        assert log.batches() == [1, 1]


async def test_an_entry_twice_in_one_batch_is_one_entry() -> None:
    async with log_in_memory() as log:
        assert indexes(await log.many(b"a", b"b", b"a")) == [(0, True), (1, True), (0, False)]
        assert indexes(await log.many(b"b", b"c", b"c")) == [(1, False), (2, True), (2, False)]
        assert log.batches() == [2, 1]


async def test_a_submitter_that_leaves_takes_nobody_with_it() -> None:
    async with log_in_memory() as log:
        held = await log.hold(b"same")
        joined = log.add(b"same")
        await settle()
        held.cancel()
        await settle()
        log.thread.gate.set()
        assert (await joined).index == 0
        assert log.storage.entries(0, 1) == [b"same"]


async def test_after_a_failed_commit_an_equal_entry_is_not_answered_either() -> None:
    async with log_in_memory() as log:
        _ = await log.hold(b"held")
        tasks = [log.add(b"break"), log.add(b"break")]
        await settle()
        log.thread.gate.set()
        await asyncio.wait([log.run])
        assert not any(task.done() for task in tasks)
        log.sequencer.abandon()
        for task in tasks:
            with pytest.raises(StoppedError):
                await task


async def test_what_is_in_the_leaf_index_alone_is_compared_with_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_in_memory() as log:
        await log.many(*(b"%d" % number for number in range(256)))
        log.leaves._recent.clear()

        async def candidates(leaf_hashes: Sequence[bytes]) -> list[list[int]]:
            return [[3, 5, 7] for _ in leaf_hashes]

        monkeypatch.setattr(log.sequencer.admission._found, "_candidates", candidates)
        monkeypatch.setattr(log.sequencer.admission._found, "may_be_stored", lambda _: True)
        assert indexes([await log.one(b"7")]) == [(7, False)]
        assert indexes([await log.one(b"new")]) == [(256, True)]


async def test_a_leaf_index_that_names_what_is_not_there_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_in_memory() as log:
        await log.many(b"a", b"b")

        async def candidates(_: object) -> list[list[int]]:
            return [[2]]

        monkeypatch.setattr(log.sequencer.admission._found, "_candidates", candidates)
        monkeypatch.setattr(log.sequencer.admission._found, "may_be_stored", lambda _: True)
        with pytest.raises(DamageError):
            await log.one(b"c")
        assert log.leaves._is_damaged


async def test_those_who_join_an_entry_that_is_looked_up_share_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_in_memory() as log:
        await log.many(b"old", b"other")
        log.leaves._recent.clear()
        monkeypatch.setattr(log.sequencer.admission._found, "may_be_stored", lambda _: True)
        gate = asyncio.Event()

        async def find(leaf_hashes: Sequence[bytes]) -> list[int | None]:
            await gate.wait()
            return [0 if leaf == leaves([b"old"])[0] else None for leaf in leaf_hashes]

        monkeypatch.setattr(log.sequencer.admission._found, "find", find)
        first = log.many(b"old", b"new")
        await settle()
        joined = log.many(b"new", b"old", b"newer")
        only_old = log.many(b"old")
        await settle()
        assert log.sequencer.pool.entries == 3
        gate.set()
        assert indexes(await first) == [(0, False), (2, True)]
        assert indexes(await joined) == [(2, False), (0, False), (3, True)]
        assert indexes(await only_old) == [(0, False)]
        assert log.sequencer.pool.entries == log.sequencer.pool.bytes == 0


async def test_damage_met_while_looking_up_fails_that_request_and_those_who_joined_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with log_in_memory() as log:
        await log.one(b"first")
        gate = asyncio.Event()

        async def find(_: object) -> list[int | None]:
            await gate.wait()
            raise DamageError("tiles.db lacks a bucket")

        monkeypatch.setattr(log.sequencer.admission._found, "find", find)
        monkeypatch.setattr(log.sequencer.admission._found, "may_be_stored", lambda leaf: leaf == leaves([b"x"])[0])
        tasks = [log.many(b"x", b"y", key="k"), log.many(b"x")]
        await settle()
        good = log.many(b"z")
        gate.set()
        for task in tasks:
            with pytest.raises(DamageError):
                await task
        assert indexes(await good) == [(1, True)]
        assert indexes(await log.many(b"y")) == [(2, True)]
        assert log.sequencer.pool.entries == 0


async def test_a_look_up_that_is_cancelled_stops_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_in_memory() as log:
        looking: list[asyncio.Task[object] | None] = []

        async def find(_: list[bytes]) -> list[int | None]:
            looking.append(asyncio.current_task())
            await asyncio.Event().wait()
            return []

        monkeypatch.setattr(log.sequencer.admission._found, "find", find)
        monkeypatch.setattr(log.sequencer.admission._found, "may_be_stored", lambda _: True)
        task = log.many(b"x", key="k")
        await settle()
        (look_up,) = looking
        assert look_up is not None
        look_up.cancel()
        with pytest.raises(CommitError, match="cancelled"):
            await log.run
        log.sequencer.abandon()
        with pytest.raises(StoppedError):
            await task


async def test_a_request_under_the_same_key_is_carried_out_once() -> None:
    async with log_in_memory(dedup=False) as log:
        assert indexes(await log.many(b"a", b"a", key="k")) == [(0, True), (1, True)]
        assert indexes(await log.many(b"a", b"a", key="k")) == [(0, False), (1, False)]
        assert indexes(await log.many(b"a", b"a", key="l")) == [(2, True), (3, True)]
        assert log.sequencer.head.size == 4


async def test_a_request_under_a_key_that_is_under_way_waits_for_it() -> None:
    async with log_in_memory(dedup=False) as log:
        _ = await log.hold()
        tasks = [log.many(b"a", key="k"), log.many(b"a", key="k")]
        await settle()
        with pytest.raises(KeyReusedError):
            await log.many(b"b", key="k")
        assert not any(task.done() for task in tasks)
        log.thread.gate.set()
        assert [indexes(placed) for placed in await asyncio.gather(*tasks)] == [[(1, True)], [(1, False)]]


async def test_another_request_under_a_used_key_is_refused_for_24_hours() -> None:
    async with log_in_memory(dedup=False) as log:
        await log.many(b"a", key="k")
        with pytest.raises(KeyReusedError):
            await log.many(b"b", key="k")
        log.now_ms += KEY_MS
        assert indexes(await log.many(b"b", key="k")) == [(1, True)]


async def test_the_key_of_a_request_that_appended_nothing_counts_too() -> None:
    async with log_in_memory() as log:
        await log.many(b"a")
        assert indexes(await log.many(b"a", key="k")) == [(0, False)]
        with pytest.raises(KeyReusedError):
            await log.many(b"b", key="k")


async def test_keys_are_bounded_and_one_that_counts_is_never_forgotten() -> None:
    async with log_in_memory(key_bytes=900) as log:
        await log.many(b"a", key="1")
        await log.many(b"b", key="2")
        with pytest.raises(PushbackError) as caught:
            await log.many(b"c", key="3")
        assert caught.value.retry_after == 600
        assert indexes(await log.many(b"a", key="1")) == [(0, False)]
        assert indexes(await log.many(b"c")) == [(2, True)]
        log.now_ms += KEY_MS
        assert indexes(await log.many(b"d", key="3")) == [(3, True)]


async def test_the_records_of_keys_are_in_the_segment_of_their_entries() -> None:
    async with log_in_memory() as log:
        _ = await log.hold()
        tasks = [log.many(b"a", b"held", b"b", key="k"), log.many(b"c"), log.many(b"b", b"d", key="l")]
        await settle()
        log.thread.gate.set()
        await asyncio.gather(*tasks)
        segment = log.storage.segments[1]
        assert segment.keys[64:68] == (3).to_bytes(4)
        assert segment.keys[68:92] == b"".join(index.to_bytes(8) for index in (2, 0, 3))
        assert segment.keys[92 + 64 :] == (2).to_bytes(4) + b"".join(index.to_bytes(8) for index in (3, 4))


async def test_a_batch_is_refused_whole_where_it_is_too_large() -> None:
    async with log_in_memory(batch_entries=2) as log:
        with pytest.raises(TooLargeError, match="2 entries, not 3"):
            await log.many(b"a", b"b", b"c")
        with pytest.raises(TooLargeError, match="65535"):
            await log.many(b"a", bytes(65_536))
        assert log.sequencer.pool.entries == 0


async def test_at_its_largest_size_the_log_takes_no_more() -> None:
    async with log_in_memory(tree_size=3) as log:
        await log.many(b"a", b"b", b"c")
        with pytest.raises(ReadOnlyError, match="takes 3 at most"):
            await log.one(b"d")


async def test_the_first_index_of_a_leaf_hash_is_found() -> None:
    async with log_in_memory(dedup=False) as log:
        await log.many(b"a", b"b", b"b")
        assert await log.sequencer.admission._found.find(leaves([b"b", b"c", b"a"])) == [1, None, 0]


async def test_a_record_of_other_entries_is_not_repeated() -> None:
    async with log_in_memory() as log:
        await log.many(b"a", b"b", key="k")
        ((record, time_ms),) = log.keys._records.values()
        log.keys.put(replace(record, indexes=(1, 0)), time_ms)
        with pytest.raises(DamageError, match="other entries"):
            await log.many(b"a", b"b", key="k")
        log.keys.put(replace(record, indexes=(0, 2)), time_ms)
        with pytest.raises(DamageError, match="other entries"):
            await log.many(b"a", b"b", key="k")


async def test_what_is_in_a_commit_counts_for_the_largest_size() -> None:
    async with log_in_memory(tree_size=5) as log:
        held = await log.hold()
        tasks = [log.many(b"a", b"b"), log.many(b"c")]
        await settle()
        with pytest.raises(ReadOnlyError):
            await log.many(b"d", b"e")
        log.thread.gate.set()
        await asyncio.gather(held, *tasks)
        assert indexes(await log.many(b"d")) == [(4, True)]
        with pytest.raises(ReadOnlyError):
            await log.one(b"e")


async def test_entries_that_join_count_for_the_pool() -> None:
    async with log_in_memory(pool_entries=4) as log:
        _ = await log.hold()
        joined = [log.many(*[b"held"] * 4) for _ in range(4)]
        await settle()
        with pytest.raises(PushbackError):
            await log.one(b"x")
        log.thread.gate.set()
        await asyncio.gather(*joined)
        assert log.sequencer.pool.places == 0
        assert (await log.one(b"x")).index == 1


async def test_large_entries_that_wait_for_the_follower_are_bounded_in_bytes() -> None:
    async with log_in_memory(lag_bytes=100) as log:
        await log.many(b"a" * 60, b"b" * 60)
        with pytest.raises(PushbackError):
            await log.one(b"c")


async def test_who_waits_for_a_head_gets_the_first_that_is_larger() -> None:
    async with log_in_memory() as log:
        waiting = asyncio.create_task(log.sequencer.wait_for_head(1))
        await log.one(b"a")
        await settle()
        assert not waiting.done()
        await log.one(b"b")
        assert (await waiting).size == 2


ENTRIES = st.sampled_from([b"%d" % number for number in range(6)])
STEPS = st.lists(st.tuples(st.lists(ENTRIES, min_size=1, max_size=4), st.sampled_from([None, "k", "l"])), max_size=24)


@given(STEPS, st.data())
@settings(max_examples=150)
def test_whatever_comes_in_whatever_order_each_entry_has_one_index(
    steps: list[tuple[list[bytes], str | None]], data: st.DataObject
) -> None:
    asyncio.run(_any_order(steps, data))


async def _any_order(steps: list[tuple[list[bytes], str | None]], data: st.DataObject) -> None:
    async with log_in_memory() as log:
        tasks = []
        for entries, key in steps:
            if data.draw(st.booleans()):
                log.thread.gate.clear()
            tasks.append((entries, log.many(*entries, key=key)))
            if data.draw(st.booleans()):
                await settle()
            if data.draw(st.booleans()):
                log.thread.gate.set()
        log.thread.gate.set()
        done = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        stored = log.storage.entries(0, log.storage.size())
        assert len(set(stored)) == len(stored)
        for (entries, _), placed in zip(tasks, done, strict=True):
            if isinstance(placed, BaseException):
                assert isinstance(placed, KeyReusedError)
                continue
            assert [stored[one.index] for one in placed] == entries
            assert all(one.index < one.head.size for one in placed)
        new = [one.index for placed in done if isinstance(placed, list) for one in placed if one.is_new]
        assert sorted(new) == list(range(len(stored)))
