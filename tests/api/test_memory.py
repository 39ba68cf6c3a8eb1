"""What clients can make the server hold, and what is answered while it takes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.wire import connected
from tlog.cbor import encode
from tlog.errors import PushbackError
from tlog.fetch import CBOR, parse_answer
from tlog.server.api.bodies import Bodies
from tlog.server.errors import ReadOnlyError

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.invariant("I19")

HEADERS = (("Content-Type", CBOR), ("Accept", CBOR))


def test_bytes_count_from_their_arrival_to_the_answer() -> None:
    bodies = Bodies(100)
    with bodies.hold() as first, bodies.hold() as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(PushbackError):
            first.grow(1)
        assert bodies.held == 100
    assert bodies.held == 0
    with bodies.hold() as third:
        third.grow(50)
        with pytest.raises(PushbackError):
            third.grow(51)
    assert bodies.held == 0


async def test_all_bodies_together_are_bounded_and_it_passes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encode([bytes([number]) * 60_000 for number in range(100)])
    most, arrived = len(batch) + 1000, asyncio.Event()
    take = Bodies.take

    def counting(self: Bodies, size: int) -> None:
        self._most = most
        take(self, size)
        if self.held == len(batch) - 1:
            arrived.set()

    monkeypatch.setattr(Bodies, "take", counting)
    async with connected(api.port) as slow:
        lines = ["POST /v1/entries/batch HTTP/1.1", "Host: x", f"Content-Type: {CBOR}", f"Content-Length: {len(batch)}"]
        head = "\r\n".join([*lines, "", ""]).encode()
        sending = asyncio.create_task(slow.send(head + batch[:-1]))
        await asyncio.wait_for(arrived.wait(), 20)
        refused = await api.post("/v1/entries", bytes(1002))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await api.post("/v1/entries", bytes(1001))).status == 201
        sending.cancel()
        await asyncio.wait([sending])
    for number in range(1000):
        if (await api.post("/v1/entries", b"%d" % number * 1002)).status == 201:
            return
    raise AssertionError("what was held is not given back")


async def test_a_retry_under_a_known_key_is_answered_while_the_log_takes_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = (("Accept", CBOR), ("Idempotency-Key", "once"))
    first = parse_answer((await api.post("/v1/entries", b"new", *headers)).body)
    assert api.log._writer is not None

    def refuse(_: int = 1) -> None:
        raise ReadOnlyError("full")

    monkeypatch.setattr(api.log._writer, "check_admission", refuse)
    again = await api.post("/v1/entries", b"new", *headers)
    assert (again.status, parse_answer(again.body).index) == (200, first.index)
    other = await api.post("/v1/entries", b"newer", ("Accept", CBOR), ("Idempotency-Key", "other"))
    assert other.status == 403
