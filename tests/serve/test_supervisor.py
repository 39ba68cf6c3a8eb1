"""What systemd is told, read from a socket of our own."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.notified import Notified
from tests.support.server import Server, init_log
from tlog.server.api.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """Stand for systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("\0" + address[1:] if address.startswith("@") else address)
        inbox.settimeout(10)
        yield inbox


def test_a_server_says_that_it_is_ready_healthy_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init_log(tmp_path / "log")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    with Notified(tmp_path / "notify") as told, Server(tmp_path / "log") as server:
        told.wait_for(lambda lines: b"READY=1" in lines and lines.count(b"WATCHDOG=1") >= 3)
        assert b"STOPPING=1" not in told.lines
        server.terminate()
        told.wait_for(lambda lines: b"STOPPING=1" in lines)
        assert server.wait() == 0
    assert sorted(line for line in told.lines if line != b"WATCHDOG=1") == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_address_begins_with_a_zero_byte() -> None:
    address = f"@treehead-{os.getpid()}"
    with listening(address) as inbox:
        Supervisor({"NOTIFY_SOCKET": address}).tell("READY=1", "STATUS=one")
        assert inbox.recv(100) == b"READY=1\nSTATUS=one"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_nobody_is_told_where_nobody_listens(environment: dict[str, str]) -> None:
    Supervisor(environment).tell("READY=1")


def test_a_supervisor_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")):
        supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(5000):
            supervisor.tell("WATCHDOG=1")


@pytest.mark.parametrize(
    ("environment", "beat_s"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "60000000"}, 20),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 20),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_the_watchdog_is_fed_three_times_within_its_period(environment: dict[str, str], beat_s: float) -> None:
    assert Supervisor(environment).beat_s == beat_s


async def test_the_watchdog_is_not_fed_while_the_log_is_not_healthy(tmp_path: Path) -> None:
    answers = iter([True, False, False, True])
    with listening(str(tmp_path / "notify")) as inbox:
        supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000"})
        await beat_until_exhausted(supervisor, answers)
        inbox.setblocking(False)  # noqa: FBT003 — the name of the call says it
        assert [inbox.recv(100), inbox.recv(100)] == [b"WATCHDOG=1"] * 2
        with pytest.raises(BlockingIOError):
            inbox.recv(100)


async def beat_until_exhausted(supervisor: Supervisor, answers: Iterator[bool]) -> None:
    """Feed the watchdog until there is no more to say about the health of the log."""
    exhausted = asyncio.Event()

    def is_healthy() -> bool:
        answer = next(answers, None)
        if answer is None:
            exhausted.set()
        return bool(answer)

    beats = asyncio.create_task(supervisor.beat(is_healthy))
    await asyncio.wait_for(exhausted.wait(), 10)
    beats.cancel()
