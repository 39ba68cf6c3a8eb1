"""Bad requests on every route: an answer or a closed connection in time, no defect, and documented problems only."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.routes import BODIES, EXAMPLES
from tests.support.server import Server, init_log
from tests.support.serving import limit
from tests.support.wire import raw
from tlog.server.api.openapi import OF_A_LOG, OF_THE_SERVER
from tlog.server.api.problems import METHOD, NOT_FOUND, PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog.server.api.operation import Operation

DEADLINE_S = 5.0
"""Seconds after which a request counts as hanging; the deadlines of the server are shorter."""

OPERATIONS = (*OF_A_LOG, *OF_THE_SERVER)

_STATUS_OF = {each.type: each.status for each in PROBLEMS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a real server with short deadlines."""
    data = tmp_path_factory.mktemp("bad") / "log"
    init_log(data)
    limit(data, header_seconds=0.3, body_seconds=0.3, keepalive_seconds=0.3)
    with Server(data) as running:
        yield running
        assert running.events("request.failed") == []
        assert "Traceback" not in running.stderr


async def exchange(port: int, data: bytes, *, ends: bool = False) -> tuple[int, dict[str, str], bytes] | None:
    """Send bytes, hang up if they are all, and return the answer; None where the connection was closed without one."""
    async with asyncio.timeout(DEADLINE_S), raw(port) as (reader, writer):
        try:
            writer.write(data)
            if ends and writer.can_write_eof():
                writer.write_eof()
            answers = await _read(reader)
        except ConnectionError:
            return None
    while answers.startswith(b"HTTP/1.1 100 "):
        answers = answers.partition(b"\r\n\r\n")[2]
    return _parse(answers) if answers else None


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, or to the end of one event of a stream, which has no end."""
    data = b""
    while chunk := await reader.read(1 << 16):
        data += chunk
        if b"text/event-stream" in data and b"\n\n" in data.partition(b"\r\n\r\n")[2]:
            break
    return data


def _parse(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    assert line.startswith("HTTP/"), line
    return int(line.split(" ")[1]), headers, body[: int(headers.get("content-length", len(body)))]


def check(operation: Operation | None, answer: tuple[int, dict[str, str], bytes] | None) -> None:
    """Check that an answer is a success, or a problem that the operation documents."""
    if answer is None:
        return
    status, headers, body = answer
    if status < 400:
        return
    assert headers["cache-control"] == "no-store"
    assert b"Traceback" not in body
    assert b"b'" not in body
    if headers["content-type"] == "application/problem+json":
        kind = json.loads(body)["type"] if body else None
    else:
        assert headers["content-type"] == "application/concise-problem-details+cbor"
        kind = cbor2.loads(body)[7807][0] if body else None
    assert kind is None or _STATUS_OF[kind] == status
    assert status < 500, body
    problems = (*operation.problems, METHOD, NOT_FOUND) if operation else PROBLEMS
    assert kind is None or kind in {each.type for each in problems}, kind


async def try_all(server: Server, operation: Operation | None, requests: list[bytes], *, ends: bool = False) -> None:
    """Send requests, each over a connection of its own, and check the answers."""
    answers = await asyncio.gather(
        *(exchange(server.port, data, ends=ends) for data in requests), return_exceptions=True
    )
    for data, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, BaseException), f"{data[:300]!r}: {answer!r}"
        try:
            check(operation, answer)
        except (AssertionError, KeyError, ValueError) as error:
            raise AssertionError(f"{data[:300]!r} was answered {answer!r}") from error


def request(
    operation: Operation,
    *,
    method: str = "",
    path: str | bytes = "",
    version: bytes = b"HTTP/1.1",
    more: bytes = b"",
    closes: bool = True,
) -> bytes:
    """Return a good request, or one with a part replaced or more headers."""
    target = path or EXAMPLES[operation.path]
    content_type, body = BODIES.get(operation.path, ("", b""))
    lines = [b"Host: localhost", *([b"Connection: close"] if closes else [])]
    if operation.body:
        lines += [b"Content-Type: " + content_type.encode()]
        if b"transfer-encoding" not in more.lower() and b"content-length" not in more.lower():
            lines += [b"Content-Length: %d" % len(body)]
    raw_target = target if isinstance(target, bytes) else target.encode()
    head = b" ".join([(method or operation.method).encode(), raw_target, version])
    return head + b"\r\n" + b"\r\n".join(lines) + b"\r\n" + more + b"\r\n" + body


def bad_heads() -> Iterator[bytes]:
    """Yield headers that should not be."""
    for name in (b"Accept", b"Treehead-Have", b"Idempotency-Key", b"Content-Type", b"Content-Encoding", b"Expect"):
        for value in (b"", b"\xff\xfe", b"\xc3\xa9", b"a" * 5000, b"1" * 5000, b",;=\"'", b"*", b"\t", b"-1", b"0x1"):
            yield name + b": " + value + b"\r\n"
        yield (name + b": a\r\n") + (name + b": b\r\n")
    for value in (b"*/*;q=", b";q=1", b"/", b"a/b/c", b"application/cbor;q=1e9", b"application/cbor", b"text/html;q=0"):
        yield b"Accept: " + value + b"\r\n"
    for value in (b"9223372036854775807", b"9223372036854775808", b"1_0", b"\xd9\xa1"):
        yield b"Treehead-Have: " + value + b"\r\n"
    yield b"Accept: " + b"a/b," * 1500 + b"\r\n"
    yield b"Expect: 100-continue\r\n"
    yield b"Expect: 100-continue\r\nExpect: miracles\r\n"
    yield b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    yield b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    yield b"Host: other\r\n"
    yield b"X: " + b"a" * 20_000 + b"\r\n"
    yield b"X: y\r\n" * 500
    yield b": nameless\r\n"
    yield b"Na me: x\r\n"
    yield b"Name : x\r\n"
    yield b" folded\r\n"
    yield b"X: a\r\n folded\r\n"
    yield b"X: \x00\r\n"
    yield b"X: a\nY: b\r\n"
    yield b"X: a\rY: b\r\n"
    yield b"no colon\r\n"
    yield b"Range: bytes=0-\r\nIf-None-Match: *\r\nIf-Modified-Since: junk\r\n"
    yield b'Cookie: a=b; $c\r\nForwarded: for="_x\r\nX-Forwarded-For: \xff\r\nX-HTTP-Method-Override: DELETE\r\n'


def bad_framings() -> Iterator[bytes]:
    """Yield headers, and what follows them, that frame a body wrongly."""
    chunked = b"Transfer-Encoding: chunked\r\n"
    yield from (
        b"Content-Length: -1\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5_0\r\n",
        b"Content-Length: \xd9\xa1\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 1e3\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\n" + chunked,
        chunked + b"Content-Length: 5\r\n",
        b"Content-Length: 1000\r\n",
        b"Content-Length: 99999999\r\n",
        b"Content-Length: 18446744073709551615\r\n",
        b"Content-Length: " + b"9" * 400 + b"\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        chunked * 2,
    )
    for body in (
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"5\r\nhel",
        b"zz\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"7fffffffffffffff\r\nx",
        b"5;" + b"x" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"5\r\nhello\r\n0\r\n" + b"T: x\r\n" * 5000 + b"\r\n",
        b"1\r\na\r\n" * 3000 + b"0\r\n\r\n",
        b"",
    ):
        yield chunked + b"\r\n" + body


BAD_TARGETS = [
    b"*",
    b"",
    b"/",
    b"//",
    b"?",
    b"/%",
    b"/%zz",
    b"/%00",
    b"/%ff",
    b"/\xff\xfe",
    b"/\xc3\xa9",
    b"/a b",
    b"/\x00",
    b"/..",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"/..%2f..%2fetc/passwd",
    b"http://",
    b"http://localhost/checkpoint",
    b"http://[::1/checkpoint",
    b"http://localhost:99999999/checkpoint",
    b"http://user:password@localhost/checkpoint",
    b"https://example.com/checkpoint",
    b"localhost:80",
    b"checkpoint",
    b"/checkpoint#fragment",
    b"/checkpoint?" + b"a=b&" * 1000,
    b"/checkpoint?%ff=%",
    b"/checkpoint;x=y",
    b"/" + b"a/" * 3000,
    b"/" + b"a" * 100_000,
    b"/v1/entries/3/",
    b"/v1//entries/3",
    b"/v1/entries/%33",
    b"/v1/entries/3%00",
    b"/v1/entries/3%2f4",
    b"/v1/entries/" + b"9" * 5000,
    b"/v1/entries/\xd9\xa3",
    b"/v1/proofs/inclusion/1/1/1",
    b"/v1/proofs/inclusion/" + b"9" * 19 + b"/" + b"9" * 19,
    b"/v1/leaves/" + b"0" * 64 + b"/",
    b"/tile/0/000.p/" + b"9" * 4000,
    b"/tile/" + b"x999/" * 1000 + b"999",
    b"/TILE/0/000",
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
async def test_absurd_headers_are_ignored_or_refused(server: Server, operation: Operation) -> None:
    await try_all(server, operation, [request(operation, more=more) for more in bad_heads()])


@pytest.mark.parametrize("operation", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
async def test_bodies_with_wrong_framing_are_refused_in_time(server: Server, operation: Operation) -> None:
    await try_all(server, operation, [request(operation, more=more) for more in bad_framings()])


@pytest.mark.parametrize("operation", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
async def test_absurd_methods_and_versions_are_refused(server: Server, operation: Operation) -> None:
    methods = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "get", "G T", "\u00e9", "")
    await try_all(server, operation, [request(operation, method=method) for method in methods])
    versions = (
        b"HTTP/1.0",
        b"HTTP/0.9",
        b"HTTP/2.0",
        b"HTTP/1.2",
        b"HTTP/11",
        b"http/1.1",
        b"HTTP/1.1 x",
        b"",
        b"X",
    )
    await try_all(server, operation, [request(operation, version=version) for version in versions])


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
async def test_absurd_targets_are_not_found_or_refused(server: Server, method: str) -> None:
    every = tuple(problem for each in OPERATIONS for problem in each.problems)
    for target in BAD_TARGETS:
        data = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (
            method.encode(),
            target,
        )
        answer = await exchange(server.port, data)
        if answer is not None and answer[0] >= 400 and answer[2]:
            assert json.loads(answer[2])["type"] in {each.type for each in (*every, METHOD, NOT_FOUND)}
            assert answer[0] < 500, target


@pytest.mark.parametrize("operation", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
async def test_a_request_that_is_cut_off_anywhere_is_no_defect(server: Server, operation: Operation) -> None:
    whole = request(operation)
    parts = [whole[:end] for end in range(0, len(whole), 7)]
    await try_all(server, operation, parts, ends=True)
    await try_all(server, operation, parts)


async def test_many_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    async with asyncio.timeout(DEADLINE_S), raw(server.port) as (reader, writer):
        writer.write(one * 200)
        data = await reader.read(-1)
    assert data.count(b"live\n") == 200


async def test_the_server_is_well_afterwards(server: Server) -> None:
    answer = await exchange(server.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer is not None
    assert answer[0] == 200


def mutations(*, closes: bool = True) -> st.SearchStrategy[bytes]:
    """Return good requests of which some bytes were replaced, removed or added."""

    def mutate(operation: Operation, edits: list[tuple[float, str, bytes]]) -> bytes:
        data = request(operation, closes=closes)
        for place, kind, junk in edits:
            at = int(place * len(data))
            data = data[:at] + (b"" if kind == "remove" else junk) + data[at + (0 if kind == "add" else len(junk)) :]
        return data

    junk = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\r\n", b"\x00", b"%", b"/", b": ", b"\xff"]))
    edits = st.tuples(st.floats(0, 1), st.sampled_from(["replace", "remove", "add"]), junk)
    return st.builds(mutate, st.sampled_from(OPERATIONS), st.lists(edits, min_size=1, max_size=4))


def fuzz(server: Server, requests: list[bytes]) -> None:
    """Send requests side by side; whatever they have become, the answer is no defect."""

    async def send() -> None:
        await try_all(server, None, requests)

    asyncio.run(send())


SOME = st.lists(mutations(), min_size=20, max_size=20)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(requests=SOME)
def test_a_request_with_some_bytes_changed_is_no_defect(server: Server, requests: list[bytes]) -> None:
    fuzz(server, requests)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1000, suppress_health_check=list(HealthCheck))
@given(requests=SOME)
def test_many_requests_with_some_bytes_changed_are_no_defect(server: Server, requests: list[bytes]) -> None:
    fuzz(server, requests)
