"""Runners over real sockets: what they send, what they refuse, and that nothing hangs."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from tlog.errors import UnavailableError
from tlog.fetch import Fetching, Request, Response
from tlog_client import run
from tlog_client.direct import DirectRunner
from tlog_client.run import AsyncRunner, OptionError, SyncRunner, parse_url


def ask(requests: list[Request]) -> Fetching[list[Response]]:
    return (yield requests)


async def fetch(kind: str, url: str, *requests: Request, token: str | None = None) -> list[Response]:
    if kind != "sync":
        async with (DirectRunner if kind == "direct" else AsyncRunner)(url, token=token) as runner:
            return await runner.run(ask(list(requests)))
    with SyncRunner(url, token=token) as sync:
        return await asyncio.to_thread(sync.run, ask(list(requests)))


EACH = pytest.mark.parametrize("kind", ["async", "direct", "sync"])


async def echo(request: web.Request) -> web.Response:
    said = [request.headers.get(name, "-") for name in ("X-Own", "Authorization", "Accept-Encoding", "Cookie")]
    return web.Response(body=await request.read() + "|".join(said).encode(), headers={"Set-Cookie": "a=b"})


async def slow(_: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(10):
        yield bytes(100)


def encoded(body: bytes, encoding: str = "gzip") -> web.Response:
    return web.Response(body=body, headers={"Content-Encoding": encoding})


ANSWERS: dict[str, Callable[[], web.Response]] = {
    "redirect": lambda: web.Response(status=302, headers={"Location": "/echo"}),
    "gzip": lambda: encoded(gzip.compress(bytes(1000))),
    "bomb": lambda: encoded(gzip.compress(bytes(1 << 24))),
    "half-gzip": lambda: encoded(gzip.compress(bytes(1000))[:-4]),
    "more-gzip": lambda: encoded(gzip.compress(bytes(9)) + b"more"),
    "no-gzip": lambda: encoded(b"plain"),
    "br": lambda: encoded(b"plain", "br"),
    "long": lambda: web.Response(body=bytes(1001)),
    "long-error": lambda: web.Response(status=404, body=bytes(1 << 20)),
    "chunked": lambda: web.Response(body=chunks()),
}


async def handle(request: web.Request) -> web.Response:
    return ANSWERS[request.match_info["name"]]()


@pytest.fixture
async def server() -> AsyncIterator[BaseTestServer]:
    app = web.Application()
    for prefix in ("", "/deep/er"):
        app.router.add_post(f"{prefix}/echo", echo)
    app.router.add_get("/slow", slow)
    app.router.add_get("/{name}", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield server


BROKEN = [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"garbage\r\n\r\n", b"HTTP/1.1 2"]


def url_of(server: BaseTestServer, path: str = "") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


@EACH
@pytest.mark.parametrize("prefix", ["", "/", "/deep/er", "/deep/er/"])
async def test_requests_go_out_as_they_are(kind: str, prefix: str, server: BaseTestServer) -> None:
    request = Request("POST", "echo", (("X-Own", "1"),), b"body ")
    (response,) = await fetch(kind, url_of(server, prefix), request, token="secret")
    assert response.body == b"body 1|Bearer secret|gzip|-"
    assert response.status == 200
    assert response.headers["set-cookie"] == "a=b"


@EACH
async def test_no_cookie_is_kept_and_no_token_sent_unasked(kind: str, server: BaseTestServer) -> None:
    responses = await fetch(kind, url_of(server), *[Request("POST", "echo", (), b"")] * 3)
    assert {response.body for response in responses} == {b"-|-|gzip|-"}


@EACH
async def test_no_redirect_is_followed(kind: str, server: BaseTestServer) -> None:
    (response,) = await fetch(kind, url_of(server), Request("GET", "redirect"))
    assert response.status == 302


@EACH
async def test_gzip_is_undone_and_chunks_are_joined(kind: str, server: BaseTestServer) -> None:
    requests = [Request("GET", path, max_size=1000) for path in ("gzip", "chunked")]
    assert [response.body for response in await fetch(kind, url_of(server), *requests)] == [bytes(1000)] * 2


@EACH
@pytest.mark.parametrize("path", ["long", "bomb", "half-gzip", "more-gzip", "no-gzip", "br", "chunked"])
async def test_a_body_that_is_too_long_or_broken_is_refused(kind: str, path: str, server: BaseTestServer) -> None:
    with pytest.raises(UnavailableError):
        await fetch(kind, url_of(server), Request("GET", path, max_size=999 if path == "chunked" else 1000))


@EACH
async def test_a_long_error_keeps_its_status(kind: str, server: BaseTestServer) -> None:
    (response,) = await fetch(kind, url_of(server), Request("GET", "long-error", max_size=10))
    assert response.status == 404
    assert len(response.body) == 1 << 16


@EACH
async def test_responses_come_in_the_order_of_their_requests(kind: str, server: BaseTestServer) -> None:
    requests = [Request("POST", "echo", (), b"%d " % number) for number in range(100)]
    responses = await fetch(kind, url_of(server), *requests)
    assert [int(response.body.split()[0]) for response in responses] == list(range(100))


@EACH
@pytest.mark.parametrize("answer", BROKEN)
async def test_a_connection_that_breaks_is_unavailable(kind: str, answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError):
            await fetch(kind, f"http://127.0.0.1:{port}", Request("GET", "x"))


@EACH
async def test_nobody_there_is_unavailable(kind: str) -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        await fetch(kind, "http://127.0.0.1:1", Request("GET", "x"), Request("GET", "y"))


@EACH
async def test_a_request_that_takes_too_long_is_unavailable(
    kind: str, server: BaseTestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TOTAL_TIMEOUT", 0.2)
    with pytest.raises(UnavailableError):
        await fetch(kind, url_of(server), Request("GET", "slow"))


async def test_the_first_failure_ends_the_others(server: BaseTestServer) -> None:
    start = time.monotonic()
    with pytest.raises(UnavailableError):
        await fetch("async", url_of(server), *[Request("GET", "slow")] * 5, Request("GET", "br"))
    assert time.monotonic() - start < 10


async def test_a_failure_is_thrown_into_the_flow_which_may_go_on(server: BaseTestServer) -> None:
    def flow() -> Fetching[int]:
        try:
            yield [Request("GET", "br")]
        except UnavailableError:
            (response,) = yield [Request("GET", "gzip")]
            return response.status
        return 0

    async with AsyncRunner(url_of(server)) as runner:
        assert await runner.run(flow()) == 200
    with SyncRunner(url_of(server)) as sync:
        assert await asyncio.to_thread(sync.run, flow()) == 200


@pytest.mark.parametrize(
    "url",
    [
        "",
        "log.example",
        "ftp://log.example",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://user@log.example",
        "http://user:secret@log.example",
        "http://log.example?x",
        "http://log.example/#x",
        "http://log.example/?",
        "http://log.example:99999",
        "http://log.example:x",
        "http://log.example/a b",
        "http://log.example/\n",
        "http://[::1",
    ],
)
def test_a_url_that_is_none_of_a_log_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("token", ["", "two words", "line\nfeed", "grüße"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    with pytest.raises(OptionError):
        AsyncRunner("http://log.example", token=token)
