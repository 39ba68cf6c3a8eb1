"""The end of a log: the command that writes its last entry."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow, stored
from tests.support.server import TLOGD, Server, run_tlogd
from tests.support.serving import limit
from tlog.freeze import open_freeze
from tlog.note import parse_vkey
from tlog.server.config import read_config

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operating import Tlogd


def freeze(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_tlogd("freeze", "--config", data / "treehead.toml", *options)


def test_a_log_ends_with_its_own_entry_and_is_only_read_from_then_on(tmp_path: Path) -> None:
    data = tmp_path / "log"
    config = create(data)
    grow(config, [[b"one", b"two"]])
    done = freeze(data, "--yes", "localhost/x", "--reason", "moved on", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"origin": "localhost/x", "index": 3, "size": 4, "reason": "moved on"}
    entries = stored(data)
    assert open_freeze(entries[3], 3, parse_vkey(config.vkey)).reason == "moved on"
    with Server(data) as server:
        refused = post(server.port, b"more")
        assert b" 403 " in refused.split(b"\r\n")[0]
        assert server.stop() == 0
    assert stored(data) == entries
    again = freeze(data, "--yes", "localhost/x")
    assert again.returncode == 3
    assert "ended" in again.stderr
    assert stored(data) == entries


def post(port: int, entry: bytes) -> bytes:
    head = b"POST /add HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(entry)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head + entry)
        received = b""
        while part := connection.recv(4096):
            received += part
    return received


def test_a_full_log_and_a_full_disk_can_be_ended_too(tmp_path: Path) -> None:
    data = tmp_path / "log"
    create(data)
    limit(data, tree_size=1, free_bytes=1 << 60)
    assert freeze(data, "--yes", "localhost/x").returncode == 0
    assert len(stored(data)) == 2


def test_without_the_origin_nothing_ends(data: Path, tlogd: Tlogd) -> None:
    file = data / "treehead.toml"
    for options, message in (
        ((), "this ends the log for ever; if that is meant, say: --yes localhost/x"),
        (("--yes", "localhost/y"), "'localhost/y' is not the origin of this log; nothing was changed"),
        (("--yes", "localhost/x", "--reason", "a\nb"), "on one line"),
    ):
        done = tlogd("freeze", "--config", file, *options)
        assert (done.code, message in done.err) == (2, True), done
    assert len(stored(data)) == 701


@pytest.mark.parametrize("typed", ["localhost/x", "localhost/y"])
def test_on_a_terminal_the_origin_is_asked_for(tmp_path: Path, typed: str) -> None:
    data = tmp_path / "log"
    create(data)
    master, terminal = pty.openpty()
    command = [*TLOGD, "freeze", "--config", str(data / "treehead.toml")]
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(terminal)
        os.write(master, f"{typed}\n".encode())
        _, said = process.communicate(timeout=30)
        os.close(master)
    assert b"Type its origin to go on" in said
    assert (process.returncode, len(stored(data))) == ((0, 2) if typed == "localhost/x" else (2, 1))


def test_a_log_that_is_served_does_not_end(data: Path) -> None:
    with Server(data) as server:
        done = freeze(data, "--yes", "localhost/x")
        assert done.returncode == 3
        assert "stop that process" in done.stderr
        assert server.stop() == 0
    assert len(stored(data)) == 701


def test_without_its_key_no_log_ends(data: Path) -> None:
    (data / "key").unlink()
    done = freeze(data, "--yes", "localhost/x", "--json")
    assert done.returncode == 3
    assert "is missing" in json.loads(done.stdout)["message"]
    assert read_config(data / "treehead.toml").origin == "localhost/x"
    assert len(stored(data)) == 701


def test_a_log_without_its_key_is_served_read_only(data: Path) -> None:
    (data / "key").unlink()
    entries = stored(data)
    with Server(data, ("sh", "-c", 'exec "$0" "$@" --read-only', *TLOGD)) as server:
        assert b" 403 " in post(server.port, b"more").split(b"\r\n")[0]
        assert server.stop() == 0
    assert stored(data) == entries
