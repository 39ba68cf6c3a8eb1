"""Requests that are sent again: after kill -9 at any moment, under one Idempotency-Key, nothing is appended twice."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support import faulty_tlogd
from tests.support.grow import stored
from tests.support.server import TLOGD, Server, init_log
from tests.support.wire import connected
from tlog.cbor import Value, encode
from tlog.fetch import CBOR, parse_answer, parse_batch_answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.wire import Connection

pytestmark = pytest.mark.invariant("I6", "I17")

KEYS = 24


@dataclass
class Sender:
    """Sends requests one after the other, each until it is answered; entries of all of them are alike.

    Attributes:
        name: Part of its keys.
        sent: Entries of the requests that were begun.
        answers: The indexes that were answered, by key.
    """

    name: str
    sent: Counter[bytes]
    answers: dict[str, list[int]]
    number: int = 0
    open: tuple[str, list[bytes]] | None = None

    async def run(self, port: int) -> None:
        """Send until the server is gone."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with connected(port) as connection:
                while True:
                    if self.open is None:
                        self.open = self._next()
                    key, entries = self.open
                    self._keep(key, await _send(connection, key, entries))
                    self.open = None

    async def finish(self, port: int) -> None:
        """Send what is not answered once more, and everything that is answered again."""
        async with connected(port) as connection:
            if self.open is not None:
                key, entries = self.open
                for _ in range(2):
                    self._keep(key, await _send(connection, key, entries))

    def _next(self) -> tuple[str, list[bytes]]:
        self.number += 1
        entries = [b"alike"] * (1 if self.number % 3 else 5)
        self.sent.update(entries)
        return f"{self.name}-{self.number}", entries

    def _keep(self, key: str, indexes: list[int]) -> None:
        assert self.answers.setdefault(key, indexes) == indexes, "another answer under the same key"


async def _send(connection: Connection, key: str, entries: list[bytes]) -> list[int]:
    headers = (("Accept", CBOR), ("Content-Type", CBOR), ("Idempotency-Key", key))
    if len(entries) == 1:
        response = await connection.request("POST", "/v1/entries", entries[0], headers)
        assert response.status in (200, 201), response
        return [parse_answer(response.body).index]
    response = await connection.request("POST", "/v1/entries/batch", encode(list[Value](entries)), headers)
    assert response.status in (200, 201), response
    return [result.index for result in parse_batch_answer(response.body).results]


def without_dedup(data: Path) -> None:
    """Turn the search for duplicates off: then nothing but the key keeps a retry from appending again."""
    file = data / "treehead.toml"
    file.write_text(f"dedup = false\n{file.read_text()}")


def retry_over_kills(folder: Path, rounds: int) -> None:
    data = folder / "log"
    init_log(data)
    without_dedup(data)
    dice = random.Random(rounds)
    sent: Counter[bytes] = Counter()
    answers: dict[str, list[int]] = {}
    senders = [Sender(f"sender{number}", sent, answers) for number in range(KEYS)]
    with Server(data) as server:
        for _ in range(rounds):
            uvloop.run(_load(senders, server, dice.uniform(0.02, 0.4)))
            server.start()
        uvloop.run(_finish(senders, server.port))
        assert server.stop() == 0
    entries = stored(data)[1:]
    assert Counter(entries) == sent, "a request was carried out twice, or not at all"
    indexes = [index for row in answers.values() for index in row]
    assert sorted(indexes) == list(range(1, len(entries) + 1)), "two requests got one index"
    print(f"{rounds} kills: {len(answers)} requests, {len(entries)} entries, none twice")  # noqa: T201


async def _load(senders: list[Sender], server: Server, seconds: float) -> None:
    run = asyncio.gather(*(sender.run(server.port) for sender in senders))
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.kill)
    await run


async def _finish(senders: list[Sender], port: int) -> None:
    for sender in senders:
        await sender.finish(port)


@pytest.mark.parametrize("kind", ["exit", "raise"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("point", ["append", "swap"])
def test_a_retry_of_a_commit_that_failed_at_an_exact_point_appends_exactly_once(
    tmp_path: Path, point: str, moment: str, kind: str
) -> None:
    data = tmp_path / "log"
    init_log(data)
    without_dedup(data)

    async def first(server: Server) -> None:
        async with connected(server.port) as connection:
            with pytest.raises(ConnectionError):
                await _send(connection, "key", [b"alike"] * 3)

    async def again(server: Server) -> list[list[int]]:
        async with connected(server.port) as connection:
            answers = [await _send(connection, "key", [b"alike"] * 3) for _ in range(2)]
            refused = await connection.request("POST", "/v1/entries", b"other", (("Idempotency-Key", "key"),))
            assert refused.status == 422
            return answers

    with Server(data, (sys.executable, faulty_tlogd.__file__, point, moment, kind, "1")) as server:
        uvloop.run(first(server))
        server.wait()
        server.start(program=TLOGD)
        assert uvloop.run(again(server)) == [[1, 2, 3]] * 2
        assert server.stop() == 0
    assert stored(data)[1:] == [b"alike"] * 3


def test_a_retry_after_kill_9_under_the_same_key_never_appends_twice_over_5_kills(tmp_path: Path) -> None:
    retry_over_kills(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_retry_after_kill_9_under_the_same_key_never_appends_twice_over_40_kills(tmp_path: Path) -> None:
    retry_over_kills(tmp_path, 40)
