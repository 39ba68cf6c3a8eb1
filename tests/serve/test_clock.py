"""A real server whose wall clock is moved under it."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import shifted_tlogd
from tests.support.clocks import HOUR, MINUTE, SECOND, YEAR
from tests.support.notified import Notified
from tests.support.scrape import scrape
from tests.support.server import Server, init_log, run_tlogd
from tests.support.wire import connected, raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.invariant("I15")

CLOCK = ("log", "localhost/x")


class Machine:
    """A machine with one log, whose wall clock can be moved."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "log"
        self._file = folder / "shift"
        self.program: Sequence[str] = (sys.executable, str(Path(shifted_tlogd.__file__)), str(self._file))
        self.shift(0)
        init_log(self.data)
        self.server = Server(self.data, self.program)

    def shift(self, ms: int) -> None:
        """Make the wall clock wrong by so much."""
        draft = self._file.with_suffix(".new")
        draft.write_text(str(ms))
        draft.replace(self._file)

    def times(self) -> list[int]:
        """Return the time of every segment."""
        with closing(sqlite3.connect(self.data / "log.db")) as connection:
            return [time_ms for (time_ms,) in connection.execute("SELECT time_ms FROM segment ORDER BY first")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    with found.server:
        yield found


async def answer_of_readyz(port: int) -> tuple[int, str]:
    async with connected(port) as connection:
        response = await connection.request("GET", "/readyz")
    return response.status, "" if response.status == 200 else json.loads(response.body)["detail"]


async def add(port: int, entry: bytes) -> int:
    async with connected(port) as connection:
        response = await connection.request("POST", "/add", entry)
    if response.status == 503:
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["cache-control"] == "no-store"
    return response.status


@pytest.mark.parametrize(
    ("step_ms", "told"),
    [(11 * MINUTE, "was to be expected"), (10 * YEAR, "was to be expected"), (-HOUR, "before the newest entry")],
    ids=["+11min", "+10y", "-1h"],
)
async def test_a_jump_stops_adding_until_the_clock_is_right(machine: Machine, step_ms: int, told: str) -> None:
    port = machine.server.port
    assert await add(port, b"before") == 200
    machine.shift(step_ms)
    status, detail = await answer_of_readyz(port)
    assert status == 503
    assert told in detail
    assert "nothing is signed until it is right" in detail
    assert [await add(port, b"%d" % number) for number in range(3)] == [503] * 3
    async with connected(port) as connection:
        for path in ("/checkpoint", "/v1/entries/1", "/livez"):
            assert (await connection.request("GET", path)).status == 200
    found = await scrape(port)
    assert found["treehead_clock_stopped", CLOCK] == 1
    assert found["treehead_clock_stops_total", CLOCK] == 1
    assert (found["treehead_ready", CLOCK], found["treehead_tree_size", CLOCK]) == (0, 2)
    machine.shift(0)
    assert (await answer_of_readyz(port))[0] == 200
    assert await add(port, b"after") == 200
    assert (await scrape(port))["treehead_clock_stopped", CLOCK] == 0
    assert len(machine.server.events("clock.stopped")) == 1
    assert len(machine.server.events("clock.resumed")) == 1
    assert machine.server.stop() == 0
    assert machine.times() == sorted(machine.times())
    assert machine.times()[-1] - machine.times()[0] < MINUTE


async def test_a_small_step_back_is_taken_and_counted(machine: Machine) -> None:
    port = machine.server.port
    assert await add(port, b"before") == 200
    machine.shift(-SECOND // 2)
    assert await add(port, b"at once") == 200
    assert (await answer_of_readyz(port))[0] == 200
    assert (await scrape(port))["treehead_clock_clamps_total", CLOCK] == 1
    assert machine.server.stop() == 0
    _, before_ms, after_ms = machine.times()
    assert before_ms == after_ms


async def test_a_body_is_not_read_while_the_clock_is_wrong(machine: Machine) -> None:
    machine.shift(HOUR)
    async with raw(machine.server.port) as (reader, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")  # and no byte of the body was sent


def test_the_watchdog_is_fed_while_the_log_waits_for_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    with Notified(tmp_path / "notify") as told, machine.server as server:
        machine.shift(HOUR)
        server.wait_for("clock.stopped")
        before = len(told.lines)
        told.wait_for(lambda lines: lines[before:].count(b"WATCHDOG=1") >= 30)
        assert not server.events("clock.resumed")
        assert server.stop() == 0


def test_a_start_before_the_newest_entry_is_refused_and_reading_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.shift(-HOUR)
    arguments = ("serve", "--config", machine.data / "treehead.toml", "--port", "0")
    done = run_tlogd(*arguments, program=machine.program)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("tlogd: the clock says ")
    assert "but the newest entry of the log is of " in line
    assert "set the clock of this machine" in line
    with Server(machine.data, ("sh", "-c", 'exec "$0" "$@" --read-only', *machine.program)) as server:
        assert server.stop() == 0
    machine.shift(0)
    with machine.server as server:
        assert server.stop() == 0
