"""What clients and damage can make a server write: bounded, one event a line, and nothing is left out unsaid."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
import threading
from contextlib import closing
from itertools import cycle, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.support.grow import create, edit, grow
from tests.support.server import Server
from tests.support.wire import connected, raw
from tlog.server.api import journal
from tlog.server.api.journal import EVENTS, LINES, LONGEST, Journal, clean, configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from structlog.typing import EventDict

    from tests.support.serving import Serve

pytestmark = pytest.mark.invariant("I19")


class Desk:
    """A journal whose minutes a test counts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.journal = Journal(lambda: self.now)

    def say(self, event: str, level: str = "error", **fields: object) -> EventDict | None:
        """Say something; return what is written, or None where it is left out."""
        try:
            return self.journal(None, level, {"event": event, **fields})
        except structlog.DropEvent:
            return None


@pytest.mark.parametrize("level", ["warning", "error"])
def test_ten_lines_a_minute_are_written_and_the_next_one_tells_how_many_were_not(level: str) -> None:
    desk = Desk()
    for minute in range(3):
        desk.now = minute * 60.0
        written = [line for _ in range(1000) if (line := desk.say("answer.refused", level)) is not None]
        assert len(written) == LINES
        assert [line.get("left_out", 0) for line in written] == [0 if minute == 0 else 990, *[0] * 9]


def test_every_event_and_every_kind_of_error_has_lines_of_its_own() -> None:
    desk = Desk()
    for _ in range(100):
        desk.say("request.failed", error="KeyError")
    assert desk.say("request.failed", error="KeyError") is None
    assert desk.say("request.failed", error="ValueError") is not None
    assert desk.say("library.failed", error="KeyError") is not None


@pytest.mark.parametrize("level", ["critical", "info"])
def test_what_ends_the_log_and_what_is_normal_is_always_written(level: str) -> None:
    desk = Desk()
    assert all(desk.say("log.stopped", level) for _ in range(1000))


def test_kinds_without_end_share_their_lines() -> None:
    desk = Desk()
    written = sum(desk.say("request.failed", error=f"E{number}") is not None for number in range(10 * EVENTS))
    assert written == EVENTS + LINES
    assert sum(number for _, _, number in desk.journal.take()) == 10 * EVENTS - written


def test_what_was_left_out_and_not_said_again_is_told_once() -> None:
    desk = Desk()
    for _ in range(25):
        desk.say("answer.refused", error="DamageError")
    assert desk.journal.take(60.0) == []
    desk.now = 61.0
    assert desk.journal.take(60.0) == [("answer.refused", "DamageError", 15)]
    assert desk.journal.take() == []


@pytest.mark.parametrize("rounds", [1, 7])
def test_lines_of_several_threads_are_all_counted(rounds: int) -> None:
    desk, written = Desk(), []

    def work() -> None:
        written.extend([desk.say("answer.refused") for _ in range(1000 * rounds)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for line in written if line is not None]
    assert len(lines) == LINES
    assert desk.journal.take() == [("answer.refused", "", 4000 * rounds - LINES)]


@given(text=st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\r\n\x1b\x00\x7f\x9b\u2028\t")), max_size=60))
def test_no_text_ends_a_line_or_commands_a_terminal(text: str) -> None:
    found = clean(None, "error", {"event": "x", "reason": text, "exception": f"Traceback\n{text}"})
    control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
    assert control.search(found["reason"]) is None
    assert control.search(found["exception"].replace("\n", "")) is None


def test_long_texts_are_cut() -> None:
    found = clean(None, "error", {"event": "x", "reason": "y" * 10**6, "exception": "a" * 10**6 + "\nKeyError"})
    assert len(found["reason"]) == LONGEST + 1
    assert len(found["exception"]) <= 4 * LONGEST
    assert found["exception"].endswith("\nKeyError")


class Terminal(io.StringIO):
    """Stands for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [io.StringIO, Terminal])
def test_a_client_cannot_forge_a_line(monkeypatch: pytest.MonkeyPatch, terminal: type[io.StringIO]) -> None:
    out = terminal()
    monkeypatch.setattr("sys.stderr", out)
    configure_logging()
    forged = '\r\n{"event": "log.closed"}\x1b[2J\x1b]0;owned\x07'
    structlog.get_logger().error("request.failed", method=forged, reason=forged)
    lines = out.getvalue().split("\n")
    assert len(lines) == 2
    assert "\x1b[2J" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\r" not in out.getvalue()


async def test_a_report_is_given_each_minute_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    minutes: asyncio.Queue[float] = asyncio.Queue()
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        assert seconds == journal.WINDOW_S
        now = await minutes.get()

    monkeypatch.setattr(journal, "asyncio", SimpleNamespace(sleep=sleep))
    kept = configure_logging()
    kept._clock = lambda: now
    task = asyncio.create_task(kept.report())
    for _ in range(LINES + 5):
        structlog.get_logger().error("answer.refused", error="DamageError")
    minutes.put_nowait(journal.WINDOW_S)
    for _ in range(10):  # turns of the loop
        await asyncio.sleep(0)
    assert "journal.left_out" in out.getvalue()
    for _ in range(LINES + 7):
        structlog.get_logger().error("leaves.damaged")
    task.cancel()
    await asyncio.wait([task])
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [line for line in told if line["event"] == "journal.left_out"]
    assert [(line["of"], line["error"], line["lines"]) for line in told] == [
        ("answer.refused", "DamageError", 5),
        ("leaves.damaged", "", 7),
    ]


# ------------------------------------------------------------------------------------------------------ real servers


ESCAPES = b"\x1b[31m\x9b2J\x00%0d%0a%1b[2J\xff"

BAD_REQUESTS = (
    b"\r\n\r\n\x1b[2J\r\n\r\n",
    b"GET /" + ESCAPES.replace(b"\x00", b"") + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /%0d%0aevent%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"G\x1bT / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"BREW /add HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
    b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /add HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nZZ\r\n",
    b"POST /add HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n\x1b[2J",
    b"POST /v1/entries HTTP/1.1\r\nHost: x\r\nIdempotency-Key: " + ESCAPES[:5] + b"\r\n\r\n",
    (
        b"POST /v1/entries/batch HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/cbor\r\n"
        b"Content-Length: 5\r\n\r\n\xff\x1b[2J"
    ),
    (
        b"POST /v1/proofs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\n\r\n{\x1b[2J"
    ),
    b"GET /v1/leaves/\x1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/entries/99999999999999999999999 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nAccept: \x1b\x1b\x1b\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: \x1b[2J\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhung up in the middle",
    b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nExpect: \x1b[2J\r\nConnection: close\r\n\r\n",
)


async def send(port: int, requests: Iterator[bytes]) -> int:
    """Send requests one after the other, each on a connection of its own that ends behind it; return how many."""
    number = 0
    for number, data in enumerate(requests, 1):  # noqa: B007 — the last one is returned
        async with asyncio.timeout(30), raw(port) as (reader, writer):
            try:
                writer.write(data)
                writer.write_eof()
                await reader.read(-1)
            except OSError:
                pass
    return number


async def bad_requests(server: Server, count: int) -> None:
    """Send bad requests of every kind, and check what was written because of them."""
    before = len(server.stderr)
    requests = islice(cycle(BAD_REQUESTS), count)
    assert sum(await asyncio.gather(*(send(server.port, requests) for _ in range(16)))) == count
    async with connected(server.port) as connection:
        assert (await connection.request("GET", "/readyz")).status == 200
    assert server.stop() == 0
    written = server.stderr[before:]
    assert len(written) < 20_000
    lines = written.split("\n")
    assert all(line.startswith("{") and json.loads(line)["event"] for line in lines[:-2])
    assert re.search(r"[^\n\x20-\x7e]", written) is None
    assert server.events("request.failed") == []


async def test_bad_requests_of_every_kind_leave_a_bounded_journal(serve: Serve) -> None:
    await bad_requests(serve(header_seconds=0.5, body_seconds=0.5), 50 * len(BAD_REQUESTS))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_very_many_bad_requests_leave_a_bounded_journal(serve: Serve) -> None:
    await bad_requests(serve(header_seconds=0.5, body_seconds=0.5), 100_000)


async def test_damage_that_is_asked_for_again_and_again_leaves_a_bounded_journal(tmp_path: Path) -> None:
    data = tmp_path / "log"
    await asyncio.to_thread(grow, create(data), [[b"%d" % number for number in range(600)]])
    with Server(data) as server:
        with closing(sqlite3.connect(data / "tiles.db")) as connection:
            (hashes,) = connection.execute("SELECT hashes FROM tile WHERE id = 0").fetchone()
        edit(data / "tiles.db", ("UPDATE tile SET hashes = ? WHERE id = 0", (bytes([hashes[0] ^ 1]) + hashes[1:],)))
        before = len(server.stderr)
        async with connected(server.port) as connection:
            for _ in range(2000):
                assert (await connection.request("GET", "/tile/0/000")).status == 500
        assert server.stop() in {0, 5}
        assert len(server.stderr) - before < 20_000
        refused = server.events("answer.refused")
        assert len(refused) <= 2 * LINES
        left_out = [line["lines"] for line in server.events("journal.left_out") if line["of"] == "answer.refused"]
        counted = [*left_out, *(line.get("left_out", 0) for line in refused)]
        assert len(refused) + sum(map(int, map(str, counted))) == 2000
