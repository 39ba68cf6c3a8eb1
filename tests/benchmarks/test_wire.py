"""Answers are read as http.client reads them, however they arrive in pieces; requests come out one by one."""

from __future__ import annotations

import asyncio
import io
import socket
from http.client import HTTPResponse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import driver
from benchmarks.load.driver import ClosedLoop, OpenLoop
from benchmarks.load.entry import ENTRY_SIZE, Source
from benchmarks.load.part import Address, Part, parse_address
from benchmarks.load.wire import Connection, WireError, parse_answer

NAMES = st.sampled_from(["Content-Type", "X-Content-Length", "Date", "x"])
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
LENGTHS = st.sampled_from(["Content-Length: %d", "content-length:%d", "CONTENT-LENGTH:  %d "])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=40) | st.just(b"a\r\n\r\nContent-Length: 3\r\n\r\nb"))
    others = [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=3))]
    lines = draw(st.permutations([*others, draw(LENGTHS) % len(body)]))
    status = draw(st.sampled_from(["200 OK", "201 Created", "503 Service Unavailable"]))
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


class Bytes(socket.socket):
    """A socket that has received this."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object, **__: object) -> io.BytesIO:  # type: ignore[override]  # all that is used of it
        return io.BytesIO(self._data)

    def close(self) -> None:
        pass


def by_http_client(data: bytes) -> tuple[int, bytes]:
    response = HTTPResponse(Bytes(data))
    response.begin()
    return response.status, response.read()


@given(answers())
def test_an_answer_is_what_http_client_reads(data: bytes) -> None:
    parsed = parse_answer(data)
    assert parsed is not None
    status, at, end = parsed
    assert (status, data[at:end]) == by_http_client(data)
    assert end == len(data)


@given(answers())
def test_no_beginning_of_an_answer_is_one(data: bytes) -> None:
    assert all(parse_answer(data[:end]) is None for end in range(len(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n0",
        b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n01",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 1\r\n\r\n0",
        b"garbage\r\n\r\n",
    ],
)
def test_what_cannot_be_counted_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_answer(data)


# The loops, on a clock that the test moves.


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Sent(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.requests.append(bytes(data))

    def abort(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(driver, "now", moved)
    return moved


def part(rate: float = 0.0, seconds: float = 1.0, warm_up: float = 0.0) -> Part:
    return Part(Address("localhost", 80), "add", Source(1, 2), 1, seconds, warm_up, rate)


def answer(index: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(str(index))}\r\n\r\n{index}".encode()


async def test_the_latency_of_the_open_loop_counts_from_when_a_request_was_due(clock: Clock) -> None:
    loop, sent = OpenLoop(part(rate=8.0)), Sent()
    connection = Connection(loop)
    connection.connection_made(sent)
    loop.begin()
    assert len(sent.requests) == 1  # due at 0
    clock.time = 0.5  # the server stood still, and four more are due meanwhile
    loop._tick()
    for index in range(5):
        connection.data_received(answer(index))
    assert list(loop.outcome.times) == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])


async def test_the_open_loop_ends_when_all_that_was_due_is_answered(clock: Clock) -> None:
    loop, sent = OpenLoop(part(rate=4.0)), Sent()
    connection = Connection(loop)
    connection.connection_made(sent)
    loop.begin()
    clock.time = 1.5
    loop._tick()
    for index in range(4):
        assert not loop.done.is_set()
        connection.data_received(answer(index))
    assert loop.done.is_set()
    loop.finish()
    assert (len(sent.requests), loop.outcome.unanswered, loop.outcome.errors) == (4, 0, [])


async def test_what_is_never_answered_is_an_error(clock: Clock) -> None:
    loop = OpenLoop(part(rate=4.0))
    connection = Connection(loop)
    connection.connection_made(Sent())
    loop.begin()
    clock.time = 1.5
    loop._tick()
    loop.finish()
    assert loop.outcome.unanswered == 4
    assert loop.outcome.errors


async def test_the_closed_loop_sends_the_next_when_the_last_is_answered(clock: Clock) -> None:
    loop, sent = ClosedLoop(part(warm_up=1.0)), Sent()
    connection = Connection(loop)
    connection.connection_made(sent)
    loop.begin()
    clock.time = 0.75
    connection.data_received(answer(7))  # of the warm-up: acknowledged, and not counted
    clock.time = 1.25
    data = answer(8)
    connection.data_received(data[:20])
    assert len(sent.requests) == 2
    connection.data_received(data[20:])
    clock.time = 2.0
    connection.data_received(answer(9))  # too late to count
    assert loop.done.is_set()
    assert list(loop.outcome.times) == [0.5]
    assert list(loop.outcome.acknowledged.numbers) == [0, 1, 2]
    assert list(loop.outcome.acknowledged.indexes) == [7, 8, 9]
    head, _, body = sent.requests[1].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /add HTTP/1.1\r\n")
    assert body == Source(1, 2).entry(1)


async def test_a_refusal_is_counted_apart(clock: Clock) -> None:
    loop = ClosedLoop(part())
    connection = Connection(loop)
    connection.connection_made(Sent())
    loop.begin()
    connection.data_received(answer(0, "503 Service Unavailable"))
    clock.time = 0.5
    connection.data_received(answer(0))
    assert loop.outcome.statuses == {503: 1}
    assert list(loop.outcome.acknowledged.numbers) == [1]


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"nonsense\r\n\r\n"])
async def test_an_answer_that_is_none_is_an_error(clock: Clock, data: bytes) -> None:
    loop = ClosedLoop(part())
    connection = Connection(loop)
    connection.connection_made(Sent())
    loop.begin()
    connection.data_received(data)
    assert loop.outcome.errors
    assert clock.time == 0.0


def test_entries_differ_between_numbers_processes_and_runs() -> None:
    sources = [Source(run, process) for run in (0, 1, 2**64 - 1) for process in (0, 1, 65_535)]
    entries = [source.entry(number) for source in sources for number in (0, 1, 255, 132_000, 10**7)]
    assert len(set(entries)) == len(entries)
    assert {len(entry) for entry in entries} == {ENTRY_SIZE}


def test_an_address_has_a_host_a_port_and_a_prefix() -> None:
    assert parse_address("http://127.0.0.1:8080") == Address("127.0.0.1", 8080)
    assert parse_address("http://log.example/2026/") == Address("log.example", 80, "/2026")
    for url in ("https://log.example", "log.example:80", "http://log.example?x=1"):
        with pytest.raises(ValueError, match="not an http URL"):
            parse_address(url)
