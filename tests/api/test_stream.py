"""GET /v1/checkpoints/stream: heads as server-sent events, for many, and for those who are slow."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp

from tests.api.conftest import serving
from tests.api.test_entries import problem
from tests.support.server import Server, init_log
from tests.support.wire import connected, raw
from tlog.server.api import stream
from tlog.server.api.stream import Feed
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pytest

    from tests.api.conftest import Api

ROUTE = "/v1/checkpoints/stream"

DEADLINE_S = 10


@asynccontextmanager
async def following(port: int) -> AsyncIterator[asyncio.StreamReader]:
    """Follow the stream by HTTP/1.0, which sends it without chunks, and skip the head of the answer."""
    async with raw(port) as (reader, writer), asyncio.timeout(DEADLINE_S):
        writer.write(f"GET {ROUTE} HTTP/1.0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 "))
        yield reader


async def next_event(reader: asyncio.StreamReader) -> dict[str, str]:
    """Return the fields of the next event, read as the HTML Standard says."""
    fields: dict[str, str] = {}
    block = await reader.readuntil(b"\n\n")
    for line in block.decode().removesuffix("\n\n").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields


async def test_the_newest_head_comes_at_once_and_then_each_new_one_byte_for_byte(api: Api) -> None:
    async with following(api.port) as reader:
        assert await next_event(reader) == {
            "event": "checkpoint",
            "id": "700",
            "data": api.log.head.note.decode(),
        }
        for size in (701, 702):
            await api.post("/add", b"entry %d" % size)
            event = await next_event(reader)
            assert (event["id"], event["data"]) == (str(size), api.log.head.note.decode())


async def test_a_client_of_http_1_1_follows_too_and_scripts_of_other_origins_may(api: Api) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{api.port}{ROUTE}") as response,
        asyncio.timeout(DEADLINE_S),
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert await response.content.readuntil(b"\n") == b"event: checkpoint\n"


async def test_there_are_ten_events_a_second_at_most(api: Api) -> None:
    async with following(api.port) as reader:
        await next_event(reader)
        began = time.monotonic()

        async def add() -> None:
            for number in range(40):
                await api.log.add(b"fast %d" % number)

        task = asyncio.create_task(add())
        events = 0
        while (await next_event(reader))["id"] != "740":
            events += 1
        await task
        assert events <= (time.monotonic() - began) / stream.INTERVAL_S + 1


async def test_a_comment_shows_that_a_silent_stream_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.01)
    async with following(api.port) as reader:
        await next_event(reader)
        assert [await reader.readuntil(b"\n\n") for _ in range(3)] == [b":\n\n"] * 3


async def test_a_head_request_gets_headers_alone_and_ends(api: Api) -> None:
    response = await api.request("HEAD", ROUTE)
    assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
    assert (await api.get("/livez")).status == 200


async def test_beyond_the_limit_of_streams_a_client_is_asked_to_come_back(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHECK_S", 0.01)
    async with serving(copy, Limits(subscribers=2)) as api:
        async with following(api.port) as one, following(api.port) as two:
            await next_event(one)
            await next_event(two)
            response = await api.get(ROUTE)
            assert (response.status, problem(response), response.headers["retry-after"]) == (503, "busy", "30")
        async with asyncio.timeout(DEADLINE_S):
            while b"treehead_subscribers 0" not in (await api.get("/metrics")).body:
                pass
        async with following(api.port) as three:
            assert (await next_event(three))["id"] == "700"


async def test_no_streams_at_all_is_a_setting(copy: Path) -> None:
    async with serving(copy, Limits(subscribers=0)) as api:
        assert (await api.get(ROUTE)).status == 503


@asynccontextmanager
async def slow_client(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[socket.socket, Feed]]:
    """Follow the stream with a small buffer, and read nothing."""
    connected_to: asyncio.Queue[Feed] = asyncio.Queue()
    honest = Feed.writing

    def writing(feed: Feed, transport: asyncio.Transport) -> AbstractContextManager[None]:
        connected_to.put_nowait(feed)
        return honest(feed, transport)

    monkeypatch.setattr(Feed, "writing", writing)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", api.port))
        client.sendall(f"GET {ROUTE} HTTP/1.0\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            yield client, await connected_to.get()


async def publish(api: Api, feed: Feed, count: int) -> None:
    """Publish more heads than the buffers of a client hold, one after the other."""
    note = api.log.head.note + b"x" * 1000 + b"\n"
    for number in range(count):
        feed._publish(replace(api.log.head, note=note, size=701 + number))
        if number % 4 == 0:
            await asyncio.sleep(0)


async def test_who_is_slow_skips_to_the_newest_head(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async with slow_client(api, monkeypatch) as (client, feed):
        await publish(api, feed, 20_000)
        client.settimeout(0)
        reader, writer = await asyncio.open_connection(sock=client.dup(), limit=1 << 20)
        await reader.readuntil(b"\r\n\r\n")
        received = 0
        while (await next_event(reader))["id"] != "20700":
            received += 1
        writer.transport.abort()
        await asyncio.sleep(0)
        assert received < 10_000, "old heads were kept for it"


async def test_who_takes_nothing_does_not_hold_up_the_end(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(serving(copy))
        async with slow_client(api, monkeypatch) as (_, feed):
            await publish(api, feed, 20_000)
            assert feed._writing, "everything was taken"
            began = time.monotonic()
            await stack.aclose()
            assert time.monotonic() - began < 5


async def test_streams_end_at_once_when_the_server_stops(tmp_path: Path) -> None:
    data = tmp_path / "log"
    await asyncio.to_thread(init_log, data)
    server = Server(data)
    await asyncio.to_thread(server.start)
    try:
        async with following(server.port) as reader, connected(server.port) as idle:
            assert (await next_event(reader))["id"] == "1"
            assert (await idle.request("GET", "/checkpoint")).status == 200
            began = time.monotonic()
            server.terminate()
            assert await reader.read() == b""
            assert await asyncio.to_thread(server.wait) == 0
            assert time.monotonic() - began < 5
    except BaseException:
        server.kill()
        raise
