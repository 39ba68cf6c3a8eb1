"""Which times a log believes, and that nothing is ever stamped with another."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.support.clocks import HOUR, MINUTE, SECOND, YEAR, Clocks
from tests.support.grow import CREATED_MS, create, raise_fatal
from tlog.server import sequencer
from tlog.server.clock import Clock, ClockError, check_start, steady, utc, wall_clock_ms
from tlog.server.commit import Commit
from tlog.server.errors import StartRefusedError
from tlog.server.idempotency import request_key
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tlog.server.commit import Committed
    from tlog.server.log import ServedLog
    from tlog.server.sequencer import Placed

pytestmark = pytest.mark.invariant("I15")

NOON = 1_790_000_000_000


def clocks() -> Clocks:
    return Clocks(steady=NOON, wall=NOON)


def is_believed(clock: Clock, last_ms: int) -> bool:
    try:
        clock.read(last_ms)
    except ClockError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------- single readings


@pytest.mark.parametrize(
    ("step_ms", "believed"),
    [
        (0, True),
        (-1, True),
        (-SECOND, True),
        (-SECOND - 1, False),
        (-HOUR, False),
        (9 * MINUTE, True),
        (10 * MINUTE, True),
        (10 * MINUTE + 2, False),
        (11 * MINUTE, False),
        (10 * YEAR, False),
        (400_000 * YEAR, False),
    ],
)
def test_a_step_is_believed_or_not(step_ms: int, *, believed: bool) -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    assert clock.read(NOON) == NOON
    world.wall += step_ms
    assert is_believed(clock, NOON) is believed
    assert bool(clock.stopped) is not believed
    assert clock.stops == (not believed)


@pytest.mark.parametrize(("step_ms", "believed"), [(-10 * MINUTE, True), (-11 * MINUTE, False), (-YEAR, False)])
def test_a_step_back_is_noticed_where_nothing_was_stored_for_long(step_ms: int, *, believed: bool) -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    world.wall += step_ms
    assert is_believed(clock, NOON - 2 * YEAR) is believed


def test_a_clock_that_stands_still_is_believed_for_ten_minutes() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    world.is_frozen = True
    believed = []
    for _ in range(30):
        world.pass_by(MINUTE)
        believed.append(is_believed(clock, NOON))
    assert believed == [True] * 10 + [False] * 20
    world.is_frozen, world.wall = False, world.steady
    assert clock.read(NOON) == world.steady


def test_a_belief_is_regained_where_the_clock_is_set_right() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    with capture_logs() as lines:
        for _ in range(3):
            world.wall += HOUR
            for _ in range(5):
                assert not is_believed(clock, NOON)
            world.wall -= HOUR
            for _ in range(5):
                assert is_believed(clock, NOON)
    assert [line["event"] for line in lines] == ["clock.stopped", "clock.resumed"] * 3
    assert clock.stops == 3


def test_a_belief_is_regained_where_a_clock_that_went_back_has_caught_up() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    world.wall -= 5 * MINUTE
    seconds = 0
    while not is_believed(clock, NOON):
        world.pass_by(SECOND)
        seconds += 1
        assert seconds < 1000
    assert seconds == 299


def test_many_small_steps_are_not_believed_together() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    believed = []
    for _ in range(5):
        world.pass_by(SECOND)
        world.wall += 9 * MINUTE
        believed.append(is_believed(clock, NOON))
    assert believed == [True, False, False, False, False]


def test_a_wrong_time_is_not_believed_because_it_lasts() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    world.wall += 11 * MINUTE
    for _ in range(2000):
        world.pass_by(HOUR)
        assert not is_believed(clock, NOON)


@pytest.mark.parametrize("parts_per_million", [-900, -100, 100, 900])
@pytest.mark.parametrize("every_ms", [7, 999, SECOND, 10 * MINUTE, 30 * 24 * HOUR])
def test_a_clock_that_drifts_is_believed_for_ever(parts_per_million: int, every_ms: int) -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    for step in range(1, 3000):
        world.steady = NOON + step * every_ms
        world.wall = NOON + step * every_ms * (1_000_000 + parts_per_million) // 1_000_000
        clock.read(NOON)


def test_a_steady_clock_that_goes_back_is_no_reason_to_believe() -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    world.steady -= HOUR
    assert not is_believed(clock, NOON)
    assert not is_believed(clock, NOON)


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3 * HOUR),
            st.one_of(st.just(0), st.integers(-2 * SECOND, 2 * SECOND), st.integers(-HOUR, HOUR), st.just(10 * YEAR)),
        ),
        max_size=60,
    )
)
def test_times_never_fall_and_never_leave_the_steady_clock(steps: Sequence[tuple[int, int]]) -> None:
    world = clocks()
    clock = Clock(world.wall_ms, world.steady_ms)
    last_ms = NOON
    for passed_ms, step_ms in steps:
        world.pass_by(passed_ms)
        world.wall += step_ms
        before_ms = last_ms
        if is_believed(clock, last_ms):
            last_ms = max(world.wall, last_ms)
        assert last_ms >= before_ms
        since_ms = world.steady - NOON
        assert last_ms - world.steady <= 10 * MINUTE + since_ms / 1000 + 1
        if abs(world.wall - world.steady) <= 10 * MINUTE - since_ms / 1000 and world.wall >= last_ms - SECOND:
            assert not clock.stopped


def test_a_start_before_the_newest_segment_is_refused_with_both_times() -> None:
    check_start(NOON - SECOND, NOON)
    with pytest.raises(StartRefusedError, match=r"clock says 2026-09-21T13:13:18Z, but .* of 2026-09-21T14:13:20Z"):
        check_start(NOON - HOUR - 2 * SECOND, NOON)
    assert utc(10**17) == "100000000000000000 ms since 1970"


def test_the_clocks_of_the_system_are_read() -> None:
    before = time.time() * 1000 - 1
    assert before <= wall_clock_ms() <= time.time() * 1000 + 1
    read = steady(NOON)
    times = [read() for _ in range(1000)]
    assert times == sorted(times)
    assert NOON <= times[0] <= times[-1] < NOON + 10_000


# ------------------------------------------------------------------------------------------------------- a whole log


@asynccontextmanager
async def opened(data: Path, world: Clocks) -> AsyncIterator[ServedLog]:
    async with open_log(create(data), raise_fatal, world.wall_ms, steady_ms=world.steady_ms) as log:
        yield log


def created() -> Clocks:
    return Clocks(steady=CREATED_MS, wall=CREATED_MS)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def times(data: Path) -> list[int]:
    with closing(sqlite3.connect(data / "log.db")) as connection:
        return [time_ms for (time_ms,) in connection.execute("SELECT time_ms FROM segment ORDER BY first")]


@pytest.mark.parametrize(
    ("step_ms", "is_signed"),
    [
        (-1, True),
        (-SECOND, True),
        (-HOUR, False),
        (9 * MINUTE, True),
        (11 * MINUTE, False),
        (10 * YEAR, False),
        (0, True),
    ],
    ids=["-1ms", "-1s", "-1h", "+9min", "+11min", "+10y", "frozen"],
)
async def test_a_step_anywhere_stops_signing_or_does_no_harm(tmp_path: Path, step_ms: int, *, is_signed: bool) -> None:
    world, places = created(), random.Random(step_ms)
    async with opened(tmp_path / "log", world) as log:
        for _ in range(10):
            for _ in range(places.randrange(1, 6)):
                world.pass_by(places.randrange(1, 100_000))
                await log.add(places.randbytes(8))
            size = log.head.size
            world.is_frozen = step_ms == 0
            world.pass_by(0 if step_ms else 5 * MINUTE)
            world.wall += step_ms
            if is_signed:
                await log.add(places.randbytes(8))
                assert log.is_ready()
            else:
                with pytest.raises(ClockError) as refused:
                    await log.add(places.randbytes(8))
                assert refused.value.retry_after
                assert (log.is_ready(), log.is_healthy(), log.gauges().is_clock_stopped) == (False, True, True)
                assert "nothing is signed until it is right" in log.why_not_ready()
            assert log.head.size == size + is_signed
            world.is_frozen, world.wall = False, world.steady
            world.pass_by(11 * MINUTE)  # until what was signed ahead of time is past
            assert log.is_ready()
        assert log.meter.clock_stops >= (0 if is_signed else 10)
    found = times(tmp_path / "log")
    assert found == sorted(found)
    assert all(time_ms <= world.steady + 10 * MINUTE for time_ms in found)


async def test_an_idle_log_notices_its_clock_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "CLOCK_LOOK_S", 0.001)
    world = created()
    async with opened(tmp_path / "log", world) as log:
        world.wall += HOUR
        with capture_logs() as lines:
            await until(lambda: bool(lines))
            assert log.gauges().is_clock_stopped
        assert [line["event"] for line in lines] == ["clock.stopped"]


class Gate:
    """Holds commits up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        honest = Commit.run

        def run(commit: Commit, entries: Sequence[bytes], hashes: Sequence[bytes], ms: int, keys: bytes) -> Committed:
            self.reached.set()
            assert self.open.wait(10)
            return honest(commit, entries, hashes, ms, keys)

        monkeypatch.setattr(Commit, "run", run)

    async def hold(self, log: ServedLog) -> asyncio.Task[Placed]:
        """Add an entry whose commit does not go on until the gate is open."""
        first = asyncio.create_task(log.add(b"first"))
        await asyncio.to_thread(self.reached.wait, 10)
        return first


async def test_entries_that_were_admitted_wait_for_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "CLOCK_LOOK_S", 0.01)
    world = created()
    async with opened(tmp_path / "log", world) as log:
        gate = Gate(monkeypatch)
        first = await gate.hold(log)
        second = asyncio.create_task(log.add(b"second"))
        await asyncio.sleep(0)
        world.wall += HOUR
        gate.open.set()
        assert (await first).index == 1
        await until(lambda: log.gauges().is_clock_stopped)
        assert (log.head.size, second.done()) == (2, False)
        world.wall -= HOUR
        assert (await asyncio.wait_for(second, 10)).index == 2
    assert max(times(tmp_path / "log")) == world.wall


async def test_entries_do_not_wait_for_the_clock_for_ever_and_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "CLOCK_LOOK_S", 0.01)
    monkeypatch.setattr(sequencer, "CLOCK_WAIT_S", 0.05)
    world = created()
    request = request_key("once", "POST /v1/entries", b"second")
    async with opened(tmp_path / "log", world) as log:
        gate = Gate(monkeypatch)
        first = await gate.hold(log)
        waiting = [asyncio.create_task(log.add(b"second", request)), asyncio.create_task(log.add(b"second"))]
        await asyncio.sleep(0)
        world.wall += HOUR
        gate.open.set()
        await first
        for task in waiting:
            with pytest.raises(ClockError):
                await asyncio.wait_for(task, 10)
        assert (log.head.size, log.gauges().pool_entries) == (2, 0)
        world.wall -= HOUR
        placed = await log.add(b"second", request)
        assert (placed.index, placed.is_new) == (2, True)


async def test_a_log_that_closes_does_not_wait_for_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = created()
    async with opened(tmp_path / "log", world) as log:
        gate = Gate(monkeypatch)
        first = await gate.hold(log)
        second = asyncio.create_task(log.add(b"second"))
        await asyncio.sleep(0)
        world.wall += HOUR
        gate.open.set()
    assert (await first).index == 1
    with pytest.raises(ClockError):
        await second
    assert len(times(tmp_path / "log")) == 2


async def test_a_log_does_not_open_before_its_newest_entry(tmp_path: Path) -> None:
    world = created()
    data = tmp_path / "log"
    async with opened(data, world) as log:
        world.pass_by(HOUR)
        await log.add(b"entry")
    from tlog.server.config import read_config  # noqa: PLC0415  # as `serve` does, once it is there

    config = read_config(data / "treehead.toml")
    for behind_ms in (SECOND + 1, HOUR, YEAR):
        with pytest.raises(StartRefusedError, match="set the clock"):
            async with open_log(config, raise_fatal, lambda: CREATED_MS + HOUR - behind_ms):  # noqa: B023 — at once
                pass
        async with open_log(config, raise_fatal, lambda: CREATED_MS + HOUR - behind_ms, read_only=True) as log:  # noqa: B023 — as above
            assert log.is_ready()
            assert await log.tree.entry(1) == b"entry"
    async with open_log(config, raise_fatal, lambda: CREATED_MS + HOUR - SECOND) as log:
        assert (await log.add(b"later")).index == 2
    assert times(data)[-1] == CREATED_MS + HOUR
