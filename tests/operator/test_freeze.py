"""The end of a log: its entry to the byte, what is never taken for one, and the command that writes it."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.grow import create, grow, stored
from tests.support.server import TLOGD, Server, run_tlogd
from tlog.checkpoint import Checkpoint, parse_checkpoint
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.freeze import Freeze, freeze_entry, is_freeze, open_freeze, parse_freeze
from tlog.note import Signer, parse_vkey, sign_note, split_note
from tlog.server.config import read_config

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operating import Tlogd

SIGNER = Signer("log.example/x", bytes(range(32)))
OTHER = Signer("log.example/x", bytes(32))
KEY = SIGNER.verifier

reasons = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=200)


# The entry.


@given(st.integers(0, 2**63 - 1), reasons)
def test_a_freeze_entry_says_what_it_was_made_of(index: int, reason: str) -> None:
    entry = freeze_entry(SIGNER, index, reason)
    assert open_freeze(entry, index, KEY) == Freeze("log.example/x", index, reason)
    assert is_freeze(entry, index, KEY)
    assert len(entry) < 1 << 16


def test_a_freeze_entry_is_a_note_whose_text_is_what_its_description_says() -> None:
    text, lines = split_note(freeze_entry(SIGNER, 12, "done"))
    assert text == b"treehead/freeze/v1\nlog.example/x\n12\ndone\n"
    assert [line.name for line in lines] == ["log.example/x"]


def test_it_counts_at_its_own_index_and_under_its_own_key_only() -> None:
    entry = freeze_entry(SIGNER, 12)
    assert not is_freeze(entry, 11, KEY)
    assert not is_freeze(entry, 13, KEY)
    assert not is_freeze(entry, 12, OTHER.verifier)
    assert not is_freeze(entry, 12, Signer("log.example/y", bytes(range(32))).verifier)
    assert not is_freeze(freeze_entry(OTHER, 12), 12, KEY)
    with pytest.raises(VerificationError, match="of another log, or of another index"):
        open_freeze(entry, 13, KEY)


def test_every_flipped_bit_is_refused() -> None:
    entry = freeze_entry(SIGNER, 12, "x")
    for at in range(8 * len(entry)):
        changed = bytearray(entry)
        changed[at // 8] ^= 1 << at % 8
        assert not is_freeze(bytes(changed), 12, KEY), at


@pytest.mark.parametrize(
    "text",
    [
        "treehead/freeze/v1\nlog.example/x\n12\n",
        "treehead/freeze/v1\nlog.example/x\n12\na\nb\n",
        "treehead/freeze/v1\nlog.example/x\n012\na\n",
        "treehead/freeze/v1\nlog.example/x\n-1\na\n",
        "treehead/freeze/v1\n\n12\na\n",
        "treehead/freeze/v2\nlog.example/x\n12\na\n",
        "treehead/freeze/v1\nlog.example/x\n12\n" + "a" * 1001 + "\n",
    ],
)
def test_what_format_does_not_write_is_refused_even_when_signed(text: str) -> None:
    with pytest.raises(FormatError):
        parse_freeze(text.encode())
    assert not is_freeze(sign_note(text.encode(), [SIGNER]), 12, KEY)


@pytest.mark.parametrize("reason", ["a\nb", "a\rb", "\x00", "x" * 1001, "ü" * 501, "\udcff"])
def test_a_reason_that_is_too_long_or_not_one_line_is_refused(reason: str) -> None:
    with pytest.raises(FormatError):
        freeze_entry(SIGNER, 1, reason)


@given(st.integers(0, 2**63 - 1), reasons, st.sampled_from(["log.example/x", "treehead/freeze/v1", "12"]))
def test_no_freeze_is_a_checkpoint_and_no_checkpoint_is_a_freeze(index: int, reason: str, origin: str) -> None:
    with pytest.raises(TreeheadError):
        parse_checkpoint(Freeze(origin, index, reason).format(), extensions=True)
    for extension in ((), (reason or "x",)):
        with pytest.raises(TreeheadError):
            parse_freeze(Checkpoint(origin, index, bytes(32), extension).format())


# The command.


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
    assert again.returncode == 1
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
    with (data / "treehead.toml").open("a") as file:
        file.write(f"\n[limits]\ntree_size = 1\nfree_bytes = {1 << 60}\n")
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
