"""Slow clients are cut off in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.server import Server, init_log
from tests.support.serving import dialled, limit
from tests.support.wire import connected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.serving import Serve

pytestmark = pytest.mark.invariant("I19")

SLOW = 300
"""Connections that mean ill: more than a server has threads, fewer than a test has descriptors."""

SECONDS = 0.5
"""Each deadline, in the tests that reach it."""

GRACE = 5.0
"""Seconds past a deadline after which it counts as missed, on a busy machine."""

SLOW_HEADS = {
    "nothing": b"",
    "half a request line": b"GET /check",
    "a request line": b"GET /checkpoint HTTP/1.1\r\n",
    "a head without its end": b"GET /checkpoint HTTP/1.1\r\nHost: localhost\r\nX: ",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for nobody."""
    data = tmp_path_factory.mktemp("deadlines") / "log"
    init_log(data)
    limit(data, header_seconds=SECONDS, body_seconds=SECONDS, write_seconds=SECONDS, keepalive_seconds=60)
    with Server(data) as running:
        asyncio.run(fill(running.port))
        yield running
        assert running.stop() == 0


async def fill(port: int) -> None:
    """Add entries that nothing compresses."""
    async with connected(port) as honest:
        for _ in range(40):
            assert (await honest.request("POST", "/add", os.urandom(60_000))).status in (200, 201)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """Return what still comes before the server closes."""
    received = b""
    async with asyncio.timeout(SECONDS + GRACE):
        try:
            while chunk := await reader.read(1 << 16):
                received += chunk
        except ConnectionResetError:
            return received
    return received


def problem_of(answer: bytes) -> tuple[int, str]:
    """Return status and type of an answer that must be a problem that nobody caches."""
    head, _, body = answer.partition(b"\r\n\r\n")
    text = head.decode().lower()
    assert "content-type: application/problem+json" in text
    assert "cache-control: no-store" in text
    assert "connection: close" in text or text.startswith("http/1.0")
    assert f"content-length: {len(body)}" in text
    document = json.loads(body)
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["type"].rpartition(":")[2]


async def trickle(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Send the same few bytes again and again, until the other side has had enough."""
    while not writer.is_closing():
        writer.write(piece)
        await asyncio.sleep(SECONDS / 10)


async def counted(server: Server, name: str, *labels: str) -> float:
    """Return one number of a server's metrics."""
    return (await scrape(server.port))[name, labels]


def no_traceback(server: Server) -> bool:
    """Return whether the server's log holds events only, and none of a failure."""
    return "Traceback" not in server.stderr and not server.events("request.failed")


# -------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("sent", SLOW_HEADS.values(), ids=SLOW_HEADS.keys())
async def test_a_head_that_does_not_end_is_given_up(server: Server, sent: bytes) -> None:
    async with dialled(server.port) as (reader, writer):
        began = time.monotonic()
        writer.write(sent)
        answer = await until_closed(reader)
        assert time.monotonic() - began > SECONDS * 0.9
    assert problem_of(answer) == (408, "timeout")
    assert no_traceback(server)


async def test_a_head_that_trickles_in_is_given_up(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(b"GET /checkpoint HTTP/1.1\r\n")
        trickling = asyncio.create_task(trickle(writer, b"X: y\r\n"))
        answer = await until_closed(reader)
        trickling.cancel()
    assert answer == b"" or problem_of(answer) == (408, "timeout")


async def test_the_next_head_of_a_connection_has_its_own_deadline(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"live\n")
        await asyncio.sleep(2 * SECONDS)  # idle for longer than a head may take
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"live\n")
        writer.write(b"GET /li")
        assert problem_of(await until_closed(reader)) == (408, "timeout")


async def test_an_idle_connection_is_closed_silently(serve: Serve) -> None:
    server = serve(header_seconds=60, keepalive_seconds=SECONDS)
    async with dialled(server.port) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"live\n")
        assert await until_closed(reader) == b""


async def test_hundreds_of_slow_heads_disturb_nobody(server: Server) -> None:
    before = await counted(server, "treehead_connections_late_total", "deadline", "head")
    async with AsyncExitStack() as stack, connected(server.port) as honest:
        slow = [await stack.enter_async_context(dialled(server.port)) for _ in range(SLOW)]
        trickles = [asyncio.create_task(trickle(writer, b"X")) for _, writer in slow]
        for _, writer in slow:
            writer.write(b"POST /add HTTP/1.1\r\nX: ")
        ends = [asyncio.create_task(until_closed(reader)) for reader, _ in slow]
        answered = 0
        while not all(end.done() for end in ends):
            response = await honest.request("POST", "/add", b"honest %d" % answered)
            assert response.status == 200
            answered += 1
        await asyncio.gather(*ends)
        for task in trickles:
            task.cancel()
    assert answered > 0
    assert await counted(server, "treehead_connections_late_total", "deadline", "head") == before + SLOW
    assert no_traceback(server)


# ------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("path", ["/add", "/v1/entries"])
@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_end_is_408(server: Server, path: str, framing: str) -> None:
    late = await counted(server, "treehead_connections_late_total", "deadline", "body")
    size = await counted(server, "treehead_tree_size", "log", "localhost/x")
    async with dialled(server.port) as (reader, writer):
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode())
        assert problem_of(await until_closed(reader)) == (408, "timeout")
    assert await counted(server, "treehead_connections_late_total", "deadline", "body") == late + 1
    assert await counted(server, "treehead_tree_size", "log", "localhost/x") == size
    assert no_traceback(server)


async def test_a_body_that_trickles_in_is_408(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
        trickling = asyncio.create_task(trickle(writer, b"x"))
        answer = await until_closed(reader)
        trickling.cancel()
    assert answer == b"" or problem_of(answer) == (408, "timeout")
    assert no_traceback(server)


async def test_a_body_that_comes_late_but_in_time_is_taken(serve: Serve) -> None:
    server = serve(body_seconds=30, header_seconds=SECONDS)
    async with dialled(server.port) as (reader, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
        await asyncio.sleep(2 * SECONDS)  # longer than a head may take
        writer.write(b"cd")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_the_body_behind_a_pipelined_request_has_a_deadline(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
            b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab"
        )
        answer = await until_closed(reader)
    first, second = re.split(rb"(?<=live\n)", answer, maxsplit=1)
    assert first.startswith(b"HTTP/1.1 200")
    assert problem_of(second) == (408, "timeout")


async def test_what_asks_for_an_upgrade_is_answered_and_closed(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab"
        )
        answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


# ------------------------------------------------------------------------------------------------------------ answers


BUNDLE = b"GET /tile/entries/000.p/40 HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request whose answer is larger than what the kernel takes from a server at once."""

BUNDLE_SIZE = 39 * 60_000
"""Less than the body of its answer: 39 entries, after the first of the log."""


async def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    before = await counted(server, "treehead_connections_late_total", "deadline", "write")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(BUNDLE * 5)

        async def is_cut() -> bool:
            return await counted(server, "treehead_connections_late_total", "deadline", "write") > before

        await reached(is_cut)
    assert no_traceback(server)


async def test_an_answer_that_is_closed_unread_is_cut_off(server: Server) -> None:
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(BUNDLE.replace(b"Host", b"Connection: close\r\nHost"))

        async def is_gone() -> bool:
            return await counted(server, "treehead_connections") == 1  # the one that asks

        await reached(is_gone)


async def test_a_client_that_reads_slowly_but_steadily_gets_everything(server: Server) -> None:
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        slow.connect(("127.0.0.1", server.port))
        slow.setblocking(False)  # noqa: FBT003 — the name of the call says it
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(slow, BUNDLE)
        received, began = 0, time.monotonic()
        async with asyncio.timeout(30):
            while received < BUNDLE_SIZE:
                chunk = await loop.sock_recv(slow, 1 << 17)
                assert chunk, f"cut off after {received} bytes"
                received += len(chunk)
                await asyncio.sleep(SECONDS / 20)
    assert time.monotonic() - began > 2 * SECONDS


async def reached(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(SECONDS + GRACE):
        while not await condition():
            pass  # it asks the server, which takes its time


# -------------------------------------------------------------------------------------------------- what is not HTTP

NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "words": b"hello there\r\n\r\n",
    "a long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(5000)) + b"\r\n",
    "two lengths": b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST /add HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_what_is_not_http_is_a_problem_and_no_traceback(server: Server, sent: bytes) -> None:
    unparsed = await counted(server, "treehead_requests_unparsed_total")
    refused = await counted(server, "treehead_problems_total", "type", "bad-request")
    async with dialled(server.port) as (reader, writer):
        writer.write(sent)
        assert problem_of(await until_closed(reader)) == (400, "bad-request")
    assert await counted(server, "treehead_requests_unparsed_total") == unparsed + 1
    assert await counted(server, "treehead_problems_total", "type", "bad-request") == refused + 1
    assert no_traceback(server)


async def test_a_broken_chunk_is_the_clients_fault(server: Server) -> None:
    async with dialled(server.port) as (reader, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert problem_of(await until_closed(reader)) == (400, "bad-request")
    async with dialled(server.port) as (_, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        await writer.drain()
    async with connected(server.port) as honest:
        assert (await honest.request("GET", "/livez")).status == 200
    assert no_traceback(server)
