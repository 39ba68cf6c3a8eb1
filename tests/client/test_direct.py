"""Connections of our own: what is asked over them, what is left to aiohttp, and that no answer is taken for another."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tlog.errors import UnavailableError
from tlog.fetch import Fetching, Request, Response
from tlog_client import direct
from tlog_client.direct import DirectRunner, OddError, parse_head
from tlog_client.run import AsyncRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GET = [Request("GET", f"tile/0/{number:03}", max_size=1000) for number in range(40)]


def ask(requests: list[Request]) -> Fetching[list[Response]]:
    return (yield requests)


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body])


class Listener:
    """A server that answers each head with bytes."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer
        self.connections = 0
        self.paths: list[bytes] = []
        self.url = ""
        self.talks: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def end(self) -> None:
        for writer in self.talks.values():
            writer.transport.abort()
        await asyncio.wait([task for task in self.talks if task] or [asyncio.create_task(asyncio.sleep(0))])

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.talks[asyncio.current_task()] = writer
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split()[1]
                self.paths.append(path)
                answer = self.answer(path)
                for at in range(0, len(answer), 700):
                    writer.write(answer[at : at + 700])
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(answer: Callable[[bytes], bytes]) -> AsyncIterator[Listener]:
    listener = Listener(answer)
    async with await asyncio.start_server(listener.talk, "127.0.0.1", 0) as server:
        listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/log/"
        yield listener
        await listener.end()


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths that are left to aiohttp, which answers all with 299."""
    paths: list[str] = []

    async def fetch(_: AsyncRunner, request: Request, __: asyncio.Semaphore) -> Response:
        paths.append(request.path)
        return Response(299, {}, b"")

    monkeypatch.setattr(AsyncRunner, "_fetch", fetch)
    return paths


async def test_connections_are_used_again_and_answers_are_of_their_requests(asked_again: list[str]) -> None:
    async with listening(lambda path: whole(path * 30)) as listener, DirectRunner(listener.url) as runner:
        for _ in range(3):
            responses = await runner.run(ask(GET))
            assert [response.body for response in responses] == [(b"/log/%s" % each.path.encode()) * 30 for each in GET]
        assert listener.connections <= 16
        assert len(listener.paths) == 120
    assert asked_again == []


async def test_errors_are_answers_too(asked_again: list[str]) -> None:
    busy = whole(b"busy", b"Retry-After: 7", b"Set-Cookie: a", b"Set-Cookie: b", status=b"503 Service Unavailable")
    async with listening(lambda _: busy) as listener, DirectRunner(listener.url) as runner:
        (response,) = await runner.run(ask(GET[:1]))
    assert (response.status, response.headers["retry-after"], response.body) == (503, "7", b"busy")
    assert asked_again == []


ODD = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both": whole(b"", b"Transfer-Encoding: chunked"),
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "two lengths": whole(b"", b"Content-Length: 0"),
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
    "long": whole(bytes(100_000)),
    "more": whole(b"x") + b"y",
    "next": whole(b"x") + whole(b"y"),
    "old": whole(b"x").replace(b"1.1", b"1.0"),
    "interim": whole(b"", status=b"103 Early Hints") + whole(b"x"),
    "none": whole(b"", status=b"204 No Content"),
    "folded": whole(b"x", b"A: b\r\n c"),
    "space": whole(b"x", b"A : b"),
    "bare": whole(b"x", b"A: b\nC: d"),
    "garbage": b"garbage\r\n\r\n",
    "long head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * (1 << 14),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
async def test_what_is_odd_is_asked_once_more_elsewhere(answer: bytes, asked_again: list[str]) -> None:
    async with listening(lambda _: answer) as listener, DirectRunner(listener.url) as runner:
        (response,) = await runner.run(ask(GET[:1]))
        assert response.status == 299
    assert asked_again == [GET[0].path]


async def test_after_a_few_odd_answers_nothing_is_asked_twice(asked_again: list[str]) -> None:
    async with listening(lambda _: ODD["chunked"]) as listener, DirectRunner(listener.url) as runner:
        for request in GET:
            await runner.run(ask([request]))
        assert len(listener.paths) == direct.MAX_ODD
    assert len(asked_again) == len(GET)


async def test_a_connection_that_was_closed_meanwhile_is_not_used_again(asked_again: list[str]) -> None:
    close = whole(b"x", b"Connection: close")
    async with listening(lambda _: close) as listener, DirectRunner(listener.url) as runner:
        for _ in range(5):
            await runner.run(ask(GET[:1]))
        assert listener.connections == 5
    assert asked_again == []


async def test_other_requests_are_left_to_aiohttp(asked_again: list[str]) -> None:
    others = [Request("POST", "add", (), b"x"), Request("GET", "a", (("Accept", "text/plain"),))]
    async with listening(lambda _: whole(b"x")) as listener, DirectRunner(listener.url) as runner:
        await runner.run(ask(others))
        assert listener.paths == []
    async with DirectRunner("https://127.0.0.1:1") as runner:
        await runner.run(ask(GET[:1]))
    assert asked_again == ["add", "a", GET[0].path]


async def test_the_connection_of_a_request_that_was_given_up_is_not_used_again(asked_again: list[str]) -> None:
    late = whole(b"late")[:-1]
    async with (
        listening(lambda path: late if b"/000" in path else whole(path)) as listener,
        DirectRunner(listener.url) as runner,
    ):
        given_up = asyncio.create_task(runner.run(ask(GET[:1])))
        while not listener.paths:  # noqa: ASYNC110  # one step
            await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        (response,) = await runner.run(ask(GET[1:2]))
        assert listener.connections == 2
    assert response.body == b"/log/tile/0/001"
    assert asked_again == []


async def test_nobody_there_is_told_as_ever() -> None:
    async with DirectRunner("http://127.0.0.1:1") as runner:
        with pytest.raises(UnavailableError, match="nothing listens"):
            await runner.run(ask(GET[:1]))


def test_a_head_is_read_as_it_is_written() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length:12\r\nA:\t b c \r\nVary: a\r\nVary: b\r\nEmpty:"
    found = parse_head(head)
    assert found == (200, {"content-length": "12", "a": "b c", "vary": "b", "empty": ""}, 12)
    for change in (b"Content-Length:1 2", b"Content-Length:", b"Content-Length:\xb2", b"Content-Length:-1"):
        with pytest.raises(OddError):
            parse_head(head.replace(b"Content-Length:12", change))
