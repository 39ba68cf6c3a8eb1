"""Ends that nobody planned: after each of them the log holds what it acknowledged, and has signed one history."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import time
from contextlib import closing, suppress
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import pytest
import uvloop

from tests.support import faulty_tlogd
from tests.support.grow import stored
from tests.support.rfc6962 import Tree
from tests.support.server import TLOGD, Server, init_log
from tests.support.static import addresses, path, unframed
from tests.support.wire import connected, pool, raw
from tests.support.witness import Seen
from tlog.fetch import CBOR, parse_answer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.invariant("I2", "I4", "I5", "I6", "I8")

RESTART_S = 20.0  # on a machine that does much else; a second where it does not
FAULTY = (sys.executable, faulty_tlogd.__file__)


class Load:
    """Connections that add until the server is gone, and one that looks at heads.

    Attributes:
        unanswered: Entries that were sent and not acknowledged.
        refused: How many requests were answered with 503.
    """

    numbers: ClassVar = count()  # of all loads: an entry that comes again would be a duplicate

    def __init__(self, server: Server, seen: Seen) -> None:
        self.server = server
        self.seen = seen
        self.unanswered: set[bytes] = set()
        self.refused = 0

    async def run(self, connections: int, seconds: float) -> None:
        """Load the server; return when it hung up on everybody."""
        work = [self._add(rich=number % 4 == 0, seconds=seconds) for number in range(connections)]
        await asyncio.gather(self._watch(), *work)

    async def _add(self, *, rich: bool, seconds: float) -> None:
        deadline = time.monotonic() + seconds + 20
        route, headers = ("/v1/entries", (("Accept", CBOR),)) if rich else ("/add", ())
        with suppress(ConnectionError):
            async with connected(self.server.port) as connection:
                while time.monotonic() < deadline:
                    entry = f"entry {next(self.numbers)} of a load ".encode() * 5
                    self.unanswered.add(entry)
                    response = await connection.request("POST", route, entry, headers)
                    if response.status == 503:
                        self.refused += 1
                        return
                    assert response.status == (201 if rich else 200)
                    self.unanswered.remove(entry)
                    self._acknowledged(entry, response.body, rich=rich)
                raise AssertionError("the server was not ended")

    def _acknowledged(self, entry: bytes, body: bytes, *, rich: bool) -> None:
        if not rich:
            self.seen.acknowledgement(int(body), entry)
            return
        answer = parse_answer(body)
        assert answer.index < self.seen.head(answer.checkpoint)
        self.seen.acknowledgement(answer.index, entry)

    async def _watch(self) -> None:
        with suppress(ConnectionError):
            async with connected(self.server.port) as connection:
                while True:
                    response = await connection.request("GET", "/checkpoint")
                    self.seen.head(response.body)
                    await asyncio.sleep(0)


async def crash(server: Server, seen: Seen, after_s: float) -> Load:
    """Kill a server under load."""
    load = Load(server, seen)
    run = asyncio.create_task(load.run(32, after_s))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(server.kill)
    await run
    return load


async def read_all(server: Server, seen: Seen) -> list[bytes]:
    """Return all entries of the served head, as clients get them."""
    async with pool(server.port) as readers:
        (response,) = await readers.get_all(["/checkpoint"])
        wanted = addresses(seen.head(response.body))
        seen.tiles(wanted, await readers.get_all(map(path, wanted)))
        return [entry for address in wanted if address[0] is None for entry in unframed(seen.served[address])]


def kill_again_and_again(folder: Path, rounds: int) -> None:
    """Kill a log under load, start it again, and check everything that anybody saw over all the rounds."""
    data = folder / "log"
    seen = Seen(init_log(data))
    dice = random.Random(rounds)
    attempted: set[bytes] = set()
    starts: list[float] = []
    with Server(data) as server:
        for number in range(rounds):
            load = uvloop.run(crash(server, seen, dice.uniform(0.05, 0.6)))
            attempted |= load.unanswered
            server.start()
            starts.append(server.start_s)
            assert server.start_s < RESTART_S
            if number < 10 or number % 10 == 0 or number == rounds - 1:  # everything again and again takes its time
                seen.check(uvloop.run(read_all(server, seen)))
        assert server.stop() == 0
    assert len(seen.acknowledged) > rounds, "there was no load"
    entries = stored(data)
    tree = seen.check(entries)
    assert tree.mth(0, len(entries)) == seen.heads[len(entries)]
    extra = set(entries[1:]) - set(seen.acknowledged.values())
    assert extra <= attempted, "an entry that nobody sent"
    assert len(set(entries)) == len(entries), "an entry was added twice"
    print(  # noqa: T201
        f"{rounds} kills: {len(seen.acknowledged)} acknowledged, {len(extra)} kept besides, {len(seen.heads)} heads, "
        f"restarts {min(starts):.2f} to {max(starts):.2f} s"
    )


def test_nothing_acknowledged_is_lost_and_no_two_heads_differ_over_4_kills_under_load(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost_and_no_two_heads_differ_over_200_kills_under_load(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 200)


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.7])
def test_a_graceful_stop_under_load_answers_all_that_it_keeps(tmp_path: Path, after_s: float) -> None:
    data = tmp_path / "log"
    seen = Seen(init_log(data))

    async def stop(server: Server) -> tuple[Load, int]:
        load = Load(server, seen)
        run = asyncio.create_task(load.run(32, after_s))
        await asyncio.sleep(after_s)
        code = await asyncio.to_thread(server.stop)
        await run
        return load, code

    with Server(data) as server:
        load, code = uvloop.run(stop(server))
        assert code == 0, server.stderr
        assert server.events("log.closed")[0]["size"] == len(stored(data))
        assert "request.failed" not in server.stderr
    entries = stored(data)
    seen.check(entries)
    assert set(entries[1:]) == set(seen.acknowledged.values()), "kept, and not answered"
    assert load.unanswered.isdisjoint(entries)


def test_a_second_signal_ends_the_process_at_once_and_the_log_starts_again(tmp_path: Path) -> None:
    data = tmp_path / "log"
    seen = Seen(init_log(data))

    async def hold(server: Server) -> int:
        async with raw(server.port) as (reader, writer):
            writer.write(b"POST /add HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
            assert b" 100 " in await reader.readline()  # its head is read; its body never comes
            server.terminate()
            await asyncio.to_thread(server.wait_for, "server.stopping")
            server.terminate()
            code = await asyncio.to_thread(server.wait)
            assert await reader.read() == b"\r\n"
            return code

    with Server(data) as server:
        assert uvloop.run(hold(server)) == 1
        server.start()
        assert len(uvloop.run(read_all(server, seen))) == 1


@pytest.mark.parametrize("kind", ["exit", "raise"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("point", ["append", "swap"])
def test_a_commit_that_fails_at_an_exact_point_is_finished_or_was_never_there(
    tmp_path: Path, point: str, moment: str, kind: str
) -> None:
    data = tmp_path / "log"
    seen = Seen(init_log(data))

    async def add_three(server: Server) -> None:
        async with connected(server.port) as connection:
            for number in (1, 2):
                entry = b"acknowledged %d" % number
                seen.acknowledgement(int((await connection.request("POST", "/add", entry)).body), entry)
            with pytest.raises(ConnectionError):
                await connection.request("POST", "/add", b"not acknowledged")

    with Server(data, (*FAULTY, point, moment, kind, "3")) as server:
        uvloop.run(add_three(server))
        assert server.wait() == (faulty_tlogd.EXIT_CODE if kind == "exit" else 4)
        assert len(server.events("log.stopped")) == (kind == "raise")
        signed = head_in_store(data)
        server.start(program=TLOGD)
        entries = uvloop.run(read_all(server, seen))
        assert server.stop() == 0
    kept = [] if (point, moment) == ("append", "before") else [b"not acknowledged"]
    assert entries[1:] == [b"acknowledged 1", b"acknowledged 2", *kept]
    assert len(server.events("log.resumed")) == (bool(kept) and (point, moment) != ("swap", "after"))
    assert signed == (4 if (point, moment) == ("swap", "after") else 3)
    assert seen.check(stored(data)).mth(0, len(entries)) == seen.heads[len(entries)]
    assert head_in_store(data) == len(entries)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_start_that_fails_while_it_signs_what_was_stored_can_be_tried_again(tmp_path: Path, moment: str) -> None:
    data = tmp_path / "log"
    seen = Seen(init_log(data))

    async def add_one(server: Server) -> None:
        async with connected(server.port) as connection:
            with pytest.raises(ConnectionError):
                await connection.request("POST", "/add", b"stored, not signed")

    with Server(data, (*FAULTY, "append", "after", "exit", "1")) as server:
        uvloop.run(add_one(server))
        server.wait()
        for _ in range(2):
            with pytest.raises(AssertionError, match=r"no server\.listening"):
                server.start(program=(*FAULTY, "swap", moment, "exit", "1"))
            if moment == "after":
                break
        server.start(program=TLOGD)
        entries = uvloop.run(read_all(server, seen))
    assert entries[1:] == [b"stored, not signed"]
    assert Tree(entries).mth(0, 2) == seen.heads[2]


def head_in_store(data: Path) -> int:
    """Return the size of the signed head, read from the file."""
    with closing(sqlite3.connect(data / "checkpoints.db")) as connection:
        (size,) = connection.execute("SELECT size FROM head").fetchone()
        return int(size)
