"""What a supervisor and a stranger may ask."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.api.test_entries import problem
from tests.support.wire import connected
from tlog.server import sequencer

if TYPE_CHECKING:
    from tests.api.conftest import Api


async def test_a_running_log_is_live_and_ready(api: Api) -> None:
    for route, body in (("/livez", b"live\n"), ("/readyz", b"ready\n")):
        response = await api.get(route)
        assert (response.status, response.body) == (200, body)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_closing_log_is_live_and_not_ready(api: Api) -> None:
    api.log.closing = True
    assert (await api.get("/livez")).status == 200
    response = await api.get("/readyz")
    assert (response.status, problem(response)) == (503, "stopping")


async def test_a_failed_log_is_not_ready(api: Api) -> None:
    api.log.fail()
    assert (await api.get("/readyz")).status == 503


async def test_a_log_is_not_ready_while_an_admitted_entry_waits_too_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    assert api.log._writer is not None
    honest = api.log._writer._end.thread.run

    async def wait(work: object) -> object:
        await gate.wait()
        return await honest(work)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(api.log._writer._end.thread, "run", wait)
    task = asyncio.create_task(api.log.add(b"waits"))
    await asyncio.sleep(0)
    assert (await api.get("/readyz")).status == 200
    monkeypatch.setattr(sequencer, "MAX_UNSIGNED_S", -1.0)
    assert (await api.get("/readyz")).status == 503
    assert (await api.get("/livez")).status == 200
    assert (await api.get("/checkpoint")).status == 200
    gate.set()
    await task
    assert (await api.get("/readyz")).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"junk\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /checkpoint HTTP/9.9\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /add HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    ],
)
async def test_a_request_that_is_none_is_refused_and_adds_nothing(api: Api, data: bytes) -> None:
    async with connected(api.port) as connection:
        with suppress(ConnectionResetError):  # to hang up without a word is fine too
            assert (await connection.send(data)).status == 400
    assert api.log.head.size == 700
    assert (await api.get("/readyz")).status == 200


async def test_an_unfinished_body_adds_nothing(api: Api) -> None:
    async with connected(api.port) as connection:
        unfinished = b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
        task = asyncio.create_task(connection.send(unfinished))
        await asyncio.sleep(0.05)
        await connection.close()
        with pytest.raises(ConnectionResetError):
            await task
    assert (await api.post("/add", b"next")).body == b"700"


async def test_an_expectation_is_met_or_refused(api: Api) -> None:
    response = await api.request("POST", "/add", b"entry", (("Expect", "miracles"),))
    assert response.status == 417
    assert response.headers["cache-control"] == "no-store"
