"""The hot lane answers as the other lane does: two servers of equal logs, one of them without, get the same bytes."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.api.conftest import serving
from tests.api.routes import EXAMPLES
from tests.api.test_bad_requests import OPERATIONS, bad_framings, bad_heads, mutations, request
from tests.support.wire import raw
from tlog.server.api import lane as module
from tlog.server.api.head import Fields, parse_fields
from tlog.server.clock import ClockError
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.api.conftest import Api
    from tlog.server.api.adding import Link
    from tlog.server.api.operation import Operation
    from tlog.server.sequencer import Sequencer

LIMITS = Limits(header_seconds=20, body_seconds=20, keepalive_seconds=20, free_bytes=0)

SHORT = Limits(header_seconds=0.5, body_seconds=0.5, keepalive_seconds=0.5, free_bytes=0)
"""Where requests are sent that are never whole."""

LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""What is sent behind a request, to see where the server takes its end to be."""

HOT = ("/add", "/v1/entries", "/checkpoint", "/tile/", "/v1/proofs")

# What is true of this moment alone, or counts connections.
_DATE = re.compile(rb"Date: [^\r]+")
_HEAD = re.compile(rb"HTTP/1\.1 .*?\r\n\r\n", re.DOTALL)
_COUNTED = re.compile(rb"^(?!treehead_http_(requests|problems)_total|treehead_problems).*\n", re.MULTILINE)


@dataclass
class Lanes:
    """Two servers of equal logs.

    Attributes:
        hot: The one with a hot lane.
        other: The one without.
    """

    hot: Api
    other: Api

    async def agree(self, packets: Sequence[bytes]) -> bytes:
        """Send packets to both, and return what both answer."""
        hot, other = await self.send(packets)
        assert hot == other, packets
        return hot

    async def send(self, packets: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Send packets to both, and return what each answers."""
        return await asyncio.gather(_exchange(self.hot.port, packets), _exchange(self.other.port, packets))

    async def agree_on_all(self, requests: Sequence[bytes]) -> None:
        """Send each request, and one behind it, over a connection of its own; side by side where nothing is added."""
        for start in range(0, len(requests), 16):
            some = requests[start : start + 16]
            if any(b"POST /add" in each or b"POST /v1/entries" in each for each in some):
                for each in some:
                    await self.agree([each + LAST])
            else:
                await asyncio.gather(*(self.agree([each + LAST]) for each in some))


async def _exchange(port: int, packets: Sequence[bytes]) -> bytes:
    """Send packets one after the other, and return what comes back, without dates and with its headers in one order.

    A server that closes with something unread resets the connection, and what it has sent may be lost.
    """
    data = b""
    async with asyncio.timeout(20), raw(port) as (reader, writer):
        try:
            for packet in packets:
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(0.001 if len(packets) > 1 else 0)
            while chunk := await reader.read(1 << 16):
                data += chunk
                if b"text/event-stream" in data:
                    break
        except ConnectionError:
            pass  # it was closed before all was sent
    return _HEAD.sub(_ordered, _DATE.sub(b"Date", data))


def _ordered(head: re.Match[bytes]) -> bytes:
    line, *fields = head[0].removesuffix(b"\r\n\r\n").split(b"\r\n")
    return b"\r\n".join([line, *sorted(fields), b"", b""])


@asynccontextmanager
async def lanes_of(template: Path, folder: Path, limits: Limits = LIMITS) -> AsyncIterator[Lanes]:
    """Serve two copies of a log."""
    hot, other = (shutil.copytree(template, folder / name) for name in ("hot", "other"))
    async with serving(hot, limits) as one, serving(other, limits, hot_lane=False) as two:
        yield Lanes(one, two)


@pytest.fixture
async def lanes(template: Path, tmp_path: Path) -> AsyncIterator[Lanes]:
    async with lanes_of(template, tmp_path) as both:
        yield both


@pytest.fixture
async def short(template: Path, tmp_path: Path) -> AsyncIterator[Lanes]:
    async with lanes_of(template, tmp_path, SHORT) as both:
        yield both


def get(path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


def post(path: str, body: bytes, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


# ---------------------------------------------------------------------------------------------- equal answers


EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])


@EACH
async def test_both_lanes_answer_good_requests_alike(lanes: Lanes, operation: Operation) -> None:
    if operation.path in ("/metrics", "/v1/checkpoints/stream"):
        return
    for accept in ("", "*/*", "application/cbor", "application/json", "text/x.tlog.proof", "text/html", "a/b;q=2"):
        more = f"Accept: {accept}\r\n".encode() if accept else b""
        answer = await lanes.agree([request(operation, more=more, closes=False), LAST])
        assert answer.count(b"HTTP/1.1 ") == 2


@EACH
@pytest.mark.timeout(120)
async def test_both_lanes_answer_absurd_headers_alike(short: Lanes, operation: Operation) -> None:
    if operation.path not in ("/metrics", "/v1/checkpoints/stream"):
        await short.agree_on_all([request(operation, more=more, closes=False) for more in bad_heads()])


@pytest.mark.parametrize("path", ["/add", "/v1/entries", "/v1/proofs", "/checkpoint", "/tile/{level}/{number}"])
@pytest.mark.timeout(120)
async def test_both_lanes_answer_wrong_framings_alike(short: Lanes, path: str) -> None:
    operation = next(each for each in OPERATIONS if each.path == path)
    await short.agree_on_all([request(operation, more=more, closes=False) for more in bad_framings()])


PATHS = [
    *("/tile/0/000", "/tile/0/001", "/tile/0/002.p/188", "/tile/0/002.p/1", "/tile/0/002.p/189", "/tile/0/002"),
    *("/tile/1/000.p/2", "/tile/1/000.p/1", "/tile/1/000", "/tile/2/000.p/1", "/tile/64/000", "/tile/0/x000/000"),
    *(
        "/tile/entries/000",
        "/tile/entries/001",
        "/tile/entries/002.p/188",
        "/tile/entries/002.p/3",
        "/tile/entries/003",
    ),
    *(
        "/tile/0/000.p/17",
        "/tile/entries/000.p/17",
        "/tile/0/000/",
        "/tile//000",
        "/tile/0/%30%30%30",
        "/tile",
        "/tile/",
    ),
    *(
        "/tile/0/0\u0663",
        "/tile/+0/000",
        "/tile/0/000?x",
        "/tile/0/000#x",
        "//tile/0/000",
        "/checkpoint/",
        "/checkpoint?",
    ),
    *(f"/v1/proofs/inclusion/{index}/{size}" for index, size in ((0, 1), (3, 700), (699, 700), (700, 700), (5, 600))),
    *(f"/v1/proofs/inclusion/{index}/{size}" for index, size in (("03", 700), ("-1", 3), ("", 3), (3, 701), (1, 0))),
    *(
        f"/v1/proofs/consistency/{old}/{new}"
        for old, new in ((0, 0), (0, 700), (1, 700), (512, 700), (3, 5), (700, 700))
    ),
    *(f"/v1/proofs/consistency/{old}/{new}" for old, new in ((700, 699), (1, 701), ("1_0", 700), (9**30, 9**30))),
]


async def test_both_lanes_read_alike_what_is_there_and_what_is_not(lanes: Lanes) -> None:
    for _ in range(2):  # what the first has read, memory has for the second
        await lanes.agree_on_all([get(path) for path in PATHS])
        await lanes.agree_on_all([get(path, "Accept: application/cbor\r\n") for path in PATHS])


@pytest.mark.parametrize("path", ["/add", "/v1/entries"])
async def test_both_lanes_add_alike(lanes: Lanes, path: str) -> None:
    for body in (b"", b"new", b"new", b"entry 1 1", bytes(65_535), bytes(65_536), bytes(range(256)) * 9):
        for accept in ("", "Accept: application/cbor\r\n", "Accept: text/x.tlog.proof\r\n", "Accept: text/html\r\n"):
            await lanes.agree([post(path, body, accept), LAST])
        for have in (0, 1, 512, 700, 701, 9**20):
            await lanes.agree([post(path, body + b"%d" % have, f"Treehead-Have: {have}\r\n"), LAST])


async def test_both_lanes_answer_in_order_whatever_comes_in_one_packet(lanes: Lanes) -> None:
    one = [get("/checkpoint"), post("/add", b"a"), get("/livez"), post("/v1/entries", b"b"), get("/v1/entries/1")]
    two = [get("/tile/0/000"), get("/nothing"), post("/add", b"a"), get("/v1/entries/700"), post("/add", b"c" * 9999)]
    for order in (one, one[::-1], two, two[::-1], [*one, *two] * 3):
        answer = await lanes.agree([b"".join([*order, LAST])])
        assert answer.count(b"HTTP/1.1 ") == len(order) + 1
        await lanes.agree([*order, LAST])


@pytest.mark.parametrize("data", [post("/add", b"12345"), get("/tile/0/000"), get("/livez"), post("/v1/entries", b"x")])
async def test_both_lanes_take_a_request_that_comes_in_parts(lanes: Lanes, data: bytes) -> None:
    whole = await lanes.agree([data, LAST])
    assert whole.count(b"HTTP/1.1 200 OK") >= 1
    for at in range(1, len(data), 3):
        parts = [data[:at], data[at : at + 2], data[at + 2 :] + data + LAST]
        answer = await lanes.agree([part for part in parts if part])
        assert answer.count(b"HTTP/1.1 2") == 3


async def test_a_body_that_does_not_come_is_late_in_both_lanes(short: Lanes) -> None:
    for path in ("/add", "/v1/entries"):
        for body in (b"", b"12"):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n".encode()
            answer = await short.agree([head + body])
            assert answer.startswith(b"HTTP/1.1 408 ")
    assert short.hot.log.head == short.other.log.head
    assert short.hot.log.head.size == 700


async def test_both_lanes_count_alike(lanes: Lanes) -> None:
    for data in (
        get("/checkpoint"),
        post("/add", b"1"),
        post("/add", b"1"),
        post("/v1/entries", b"2"),
        get("/tile/0/000"),
    ):
        await lanes.agree([data, LAST])
        await lanes.agree([data, LAST])
    counted = [await _exchange(api.port, [request(_metrics())]) for api in (lanes.hot, lanes.other)]
    hot, other = (sorted(_COUNTED.sub(b"", each.partition(b"\r\n\r\n")[2]).splitlines()) for each in counted)
    assert hot == other
    assert any(b'route="/add"' in line for line in hot)


def _metrics() -> Operation:
    return next(each for each in OPERATIONS if each.path == "/metrics")


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(requests=st.lists(mutations(closes=False), min_size=24, max_size=24))
def test_both_lanes_answer_alike_whatever_bytes_are_changed(
    template: Path, tmp_path_factory: pytest.TempPathFactory, requests: list[bytes]
) -> None:
    compare(template, tmp_path_factory.mktemp("lanes"), requests)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(requests=st.lists(mutations(closes=False), min_size=50, max_size=50))
def test_both_lanes_answer_alike_whatever_bytes_of_many_requests_are_changed(
    template: Path, tmp_path_factory: pytest.TempPathFactory, requests: list[bytes]
) -> None:
    compare(template, tmp_path_factory.mktemp("lanes"), requests)


def compare(template: Path, folder: Path, requests: list[bytes]) -> None:
    """Send changed requests to both lanes of logs of their own.

    aiohttp drops a request that came in one packet with what is none; the hot lane has answered it by then. After that
    the logs may differ.
    """

    async def run() -> None:
        async with lanes_of(template, folder, SHORT) as lanes:
            for each in requests:
                if b"/metrics" not in each and b"/stream" not in each:
                    hot, other = await lanes.send([each + LAST])
                    if hot != other:
                        assert hot.endswith(other), each
                        assert other.startswith(b"HTTP/1.0 400 "), each
                        break

    uvloop.run(run())
    shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- which lane it was


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note for each request that the hot lane saw whether it took it."""
    honest, seen = module.Lane.take, []

    def take(lane: module.Lane, link: Link, data: bytes) -> int:
        size = honest(lane, link, data)
        seen.append(size > 0)
        return size

    monkeypatch.setattr(module.Lane, "take", take)
    return seen


@EACH
async def test_the_hot_lane_takes_what_it_is_for(lanes: Lanes, operation: Operation, taken: list[bool]) -> None:
    if operation.path in ("/metrics", "/v1/checkpoints/stream"):
        return
    data = request(operation, closes=False)
    for _ in range(2):  # a tile is read from the disk first
        await _exchange(lanes.hot.port, [data, LAST])
    is_hot = EXAMPLES[operation.path].startswith(HOT) and operation.path not in (
        "/v1/entries/batch",
        "/v1/entries/{index}",
    )
    assert taken[-2] == is_hot
    assert not taken[-1]


FIELDS = "Host: x\r\nUser-Agent: u\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\n"


@pytest.mark.parametrize(
    "more",
    [
        *("Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", "Idempotency-Key: k\r\n", "Prefer: wait=1\r\n"),
        *("Range: bytes=0-1\r\n", 'If-None-Match: "x"\r\n', "Connection: close\r\n", "Upgrade: h2c\r\n"),
        *("Content-Encoding: gzip\r\n", "Origin: http://x\r\n", "Host: y\r\n", "Cookie: a=b\r\n", "X: y\r\n"),
    ],
)
async def test_the_hot_lane_takes_no_request_with_another_field(lanes: Lanes, more: str, taken: list[bool]) -> None:
    for data in (get("/checkpoint", more), post("/add", b"1", more)):
        await _exchange(lanes.hot.port, [data, LAST])
        assert not taken[0]
        taken.clear()


async def test_a_rate_is_the_other_lanes_work(template: Path, tmp_path: Path, taken: list[bool]) -> None:
    async with serving(shutil.copytree(template, tmp_path / "log"), Limits(rate=1000)) as api:
        response = await api.post("/add", b"1")
        assert "ratelimit" in response.headers
        assert taken == [False]


# --------------------------------------------------------------------------------------------- heads, by hand


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        (b"\r\nHost: x", Fields(None, "", "", None)),
        (b"\r\nhOST: x:80\r\nCONTENT-LENGTH: 0", Fields(0, "", "", None)),
        (b"\r\nHost: [::1]:80\r\nAccept: a/b, c/d", Fields(None, "a/b, c/d", "", None)),
        (b"\r\nHost: x\r\nContent-Type: Text/Plain ; charset=x\r\nTreehead-Have: 7", Fields(None, "", "text/plain", 7)),
    ],
)
def test_fields_that_the_hot_lane_reads(lines: bytes, fields: Fields) -> None:
    assert parse_fields(lines) == fields


@pytest.mark.parametrize(
    "lines",
    [
        *(b"", b"x\r\nHost: x", b"\r\n", b"\r\nAccept: */*", b"\r\nHost: x\r\nHost: x", b"\r\nHost:x", b"\r\nHost:  x"),
        *(b"\r\nHost: x ", b"\r\nHost : x", b"\r\nHost: ", b"\r\nHost: a b", b"\r\nHost: x/y", b"\r\nHost: \xff"),
        *(
            b"\r\nHost: x\r\n Accept: y",
            b"\r\nHost: x\nAccept: y",
            b"\r\nHost: x\rAccept: y",
            b"\r\nHost: x\r\n\r\nA: b",
        ),
        *(
            b"\r\nHost: x\r\nContent-Length: " + each
            for each in (b"-1", b"+1", b"01", b"1_0", b"1, 1", b"0x1", b"99999999")
        ),
        *(b"\r\nHost: x\r\nTreehead-Have: " + each for each in (b"-1", b"01", b"1 ", b"x", b"9" * 30)),
        *(b"\r\nHost: x\r\nConnection: " + each for each in (b"close", b"upgrade", b"keep-alive, x")),
        *(b"\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1", b"\r\nHost: x\r\nAccept: a\tb", b"\r\nHost: x\x00"),
        *(
            b"\r\nHost: x\r\nTransfer-Encoding: chunked",
            b"\r\nHost: x\r\nX: y",
            "\r\nHost: x\r\nAccept: \u0663".encode(),
        ),
    ],
)
def test_fields_that_it_leaves_to_the_other_lane(lines: bytes) -> None:
    assert parse_fields(lines) is None


# ------------------------------------------------------------------------------------------------ answers late


async def test_a_client_that_leaves_before_its_answer_is_counted_and_its_entry_is_there(lanes: Lanes) -> None:
    api = lanes.hot
    async with raw(api.port) as (_, writer):
        writer.write(post("/add", b"left"))
        await writer.drain()
    await _until(lambda: api.log.head.size == 701)
    response = await api.get("/metrics")
    assert b'treehead_http_requests_total{code="2xx",method="POST",route="/add"} 1.0' in response.body


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 — the server is what is waited for
            await asyncio.sleep(0.01)


async def test_an_entry_that_the_log_gives_up_is_answered_with_the_problem(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bytes] = []
    for api in (lanes.hot, lanes.other):
        writer = api.log._writer
        assert writer is not None
        monkeypatch.setattr(writer, "read_clock", partial(_halt_with_an_entry, writer, writer.read_clock))
        answers.append(await _exchange(api.port, [post("/v1/entries", b"x"), LAST]))
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 503 ")


def _halt_with_an_entry(writer: Sequencer, honest: Callable[[], int]) -> int:
    """Read the clock, which is not believed once an entry waits, because the log has halted."""
    if writer.pool.has_entered():
        writer.halt("it found damage")
        raise ClockError("as said")
    return honest()


@pytest.mark.parametrize("first", [get("/livez"), get("/nothing"), post("/v1/entries", b"x", "Idempotency-Key: k\r\n")])
async def test_a_connection_comes_back_to_the_hot_lane_as_soon_as_it_is_answered(
    lanes: Lanes, first: bytes, taken: list[bool]
) -> None:
    loop = asyncio.get_running_loop()
    async with raw(lanes.hot.port) as (reader, writer):
        for _ in range(20):
            writer.write(first)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: ([0-9]+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            writer.write(post("/add", b"%f" % loop.time()))
            assert await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(3)
    assert taken == [False, True] * 20
