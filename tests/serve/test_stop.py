"""How a server starts and ends: nothing that was accepted is lost, and nothing is waited for that was not promised."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow, stored
from tests.support.server import Server, init_log, run_tlogd
from tests.support.serving import dialled
from tests.support.wire import Connection

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve

PATIENT = (sys.executable, "-m", "tests.support.patient_tlogd")

# ---------------------------------------------------------------------------------------------------- under load


async def test_sigterm_under_load_answers_every_request_that_was_accepted(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    acknowledged: dict[int, bytes] = {}

    async def submit(number: int) -> None:
        connection = await Connection.open(server.port)
        count = 0
        try:
            while True:
                entry = b"%d of %d" % (count, number)
                response = await connection.request("POST", "/add", entry)
                assert response.status in (200, 201), response.body
                acknowledged[int(response.body)] = entry
                count += 1
        except ConnectionError:
            assert count > 0
        finally:
            await connection.close()

    load = [asyncio.create_task(submit(number)) for number in range(32)]
    while len(acknowledged) < 300:  # noqa: ASYNC110 — the load is what is waited for
        await asyncio.sleep(0.01)
    server.terminate()
    await asyncio.gather(*load)
    assert await asyncio.to_thread(server.wait) == 0
    entries = stored(tmp_path / "log")
    assert {index: entries[index] for index in acknowledged} == acknowledged
    # a submitter is cut off between its requests, so what is stored and not acknowledged is at most one of each
    assert len(entries) - 1 - len(acknowledged) == 0


async def test_a_request_under_way_is_answered_after_sigterm(serve: Serve) -> None:
    server = serve()
    async with dialled(server.port) as (reader, writer):
        writer.write(b"POST /add HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.terminate()
        await asyncio.to_thread(server.wait_for, "server.stopping")
        writer.write(b"late")
        assert (await reader.readline()).split()[1] in (b"200", b"201")
    assert await asyncio.to_thread(server.wait) == 0


async def test_idle_connections_and_streams_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    init_log(tmp_path / "log")
    with Server(tmp_path / "log", (*PATIENT, "stop")) as server:
        async with dialled(server.port), dialled(server.port) as (reader, writer):
            writer.write(b"GET /v1/checkpoints/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"event: checkpoint")
            assert await asyncio.to_thread(server.stop) == 0
    assert "Traceback" not in server.stderr


def test_a_second_signal_ends_the_process_at_once(serve: Serve) -> None:
    server = serve(body_seconds=60)
    with socket.create_connection(("127.0.0.1", server.port)) as stuck:
        stuck.sendall(b"POST /add HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert b"100" in stuck.recv(100)
        server.terminate()
        server.wait_for("server.stopping")
        server.terminate()
        assert server.wait() == 1


# ------------------------------------------------------------------------------------------------------ while starting


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_long_start_ends_it_and_damages_nothing(tmp_path: Path, number: int) -> None:
    data = tmp_path / "log"
    grow(create(data), [[b"%d" % number for number in range(1000)]])
    (data / "tiles.db").unlink()
    command = [*PATIENT, "build", "serve", "--config", str(data / "treehead.toml"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("tiles.rebuilding" in line for line in process.stderr)
        os.kill(process.pid, number)
        rest = list(process.stderr)
        assert process.wait(30) == 0
    assert not any("server.listening" in line or "Traceback" in line for line in rest)
    with Server(data) as server:
        assert server.events("server.listening")[0]["size"] == 1001
        assert server.stop() == 0


# ----------------------------------------------------------------------------------------------------- where it listens


def test_a_port_in_use_is_one_line_that_says_what_to_change(tmp_path: Path) -> None:
    init_log(tmp_path / "log")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_tlogd("serve", "--config", tmp_path / "log" / "treehead.toml", "--port", str(port))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith(f"tlogd: cannot listen on 127.0.0.1 port {port}: Address already in use; ")
    assert "--port" in line
    with Server(tmp_path / "log"):
        pass


def test_an_address_of_another_machine_is_one_line_too(tmp_path: Path) -> None:
    init_log(tmp_path / "log")
    done = run_tlogd("serve", "--config", tmp_path / "log" / "treehead.toml", "--host", "192.0.2.1", "--port", "0")
    assert done.returncode == 1
    assert "cannot listen on 192.0.2.1 port 0" in done.stderr
    assert "Traceback" not in done.stderr
