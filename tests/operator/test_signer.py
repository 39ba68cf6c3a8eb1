"""A log whose key is in another process: from nothing to a served log, and what becomes of it when either is killed."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.grow import stored
from tests.support.server import Server, init_log, run_tlogd
from tests.support.signing import SignerProcess
from tests.support.wire import connected
from tests.support.witness import Seen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.invariant("I2", "I4", "I8", "I11", "I13")


def move_key(data: Path, home: Path) -> None:
    """Give the key of a log to a signer, as the guide says."""
    home.mkdir()
    done = run_tlogd("signer", "init", "--config", data / "treehead.toml", "--state", home / "state.db", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == str(home / "state.db")
    (data / "key").rename(home / "key")
    file = data / "treehead.toml"
    file.write_text(f'signer = "unix:{home}/socket"\n{file.read_text()}')


async def add(port: int, entries: list[bytes], seen: Seen) -> None:
    """Add entries one after the other until the server is gone."""
    with suppress(ConnectionError):
        async with connected(port) as connection:
            for entry in entries:
                response = await connection.request("POST", "/add", entry)
                assert response.status == 200
                seen.acknowledgement(int(response.body), entry)
            seen.head((await connection.request("GET", "/checkpoint")).body)


def test_a_log_signs_through_its_signer_over_every_kill_of_either(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    seen = Seen(init_log(data))
    move_key(data, home)
    with SignerProcess(home, "--allow-freeze") as signer, Server(data) as server:
        for number in range(2):
            entries = [b"%d of round %d" % (at, number) for at in range(400)]

            async def load(entries: list[bytes] = entries, number: int = number) -> None:
                work = asyncio.gather(*(add(server.port, entries[at::4], seen) for at in range(4)))
                while len(seen.acknowledged) < 100 * (number + 1):  # noqa: ASYNC110  # of many tasks
                    await asyncio.sleep(0)
                (signer if number % 2 else server).kill()
                await work

            uvloop.run(load())
            if number % 2:
                assert server.wait() == 4
                assert "the signer" in str(server.events("log.stopped")[-1]["reason"])
                away = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
                assert away.returncode == 1, "a supervisor starts it again"
                assert "start it with: tlogd signer serve" in away.stderr
                signer.start()
            server.start()
            kept = stored(data)
            assert all(kept[index] == entry for index, entry in seen.acknowledged.items())
        uvloop.run(add(server.port, [b"the last"], seen))
        status = run_tlogd("status", "--json", "--config", data / "treehead.toml")
        assert json.loads(status.stdout)["problems"] == []
        assert f"has signed up to size {len(stored(data))}" in json.loads(status.stdout)["key"]["state"]
        assert server.stop() == 0
        seen.check(stored(data))
        done = run_tlogd("freeze", "--yes", "localhost/x", "--config", data / "treehead.toml")
        assert done.returncode == 0, done.stderr
        assert signer.stop() == 0
    assert run_tlogd("fsck", "--deep", "--config", data / "treehead.toml").returncode == 0


def test_a_signer_that_is_stopped_hangs_up_and_says_nothing_else(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    init_log(data)
    move_key(data, home)
    with SignerProcess(home) as signer, signer.raw() as client:
        signer.connect().newest()
        assert signer.stop() == 0
        assert client.recv(1) == b""
    assert [json.loads(line)["event"] for line in signer.stderr.splitlines()] == ["signer.stopped"]


def test_a_log_that_was_taken_back_is_refused_by_its_signer(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    seen = Seen(init_log(data))
    move_key(data, home)
    with SignerProcess(home) as signer:
        shutil.copytree(data, tmp_path / "older")
        with Server(data) as server:
            uvloop.run(add(server.port, [b"one", b"two"], seen))
            server.stop()
        shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("socket*"))
        shutil.rmtree(data)
        (tmp_path / "older").rename(data)
        done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
        assert done.returncode == 3
        assert "the log was taken back, or has forked" in done.stderr
        done = run_tlogd("freeze", "--yes", "localhost/x", "--config", data / "treehead.toml")
        assert done.returncode == 3
        assert signer.stop() == 0


def test_an_older_state_of_the_signer_is_brought_up_by_the_tree(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    seen = Seen(init_log(data))
    move_key(data, home)
    shutil.copyfile(home / "state.db", tmp_path / "older")
    with SignerProcess(home) as signer, Server(data) as server:
        uvloop.run(add(server.port, [b"%d" % number for number in range(9)], seen))
        assert server.stop() == 0
        assert signer.stop() == 0
        shutil.copyfile(tmp_path / "older", home / "state.db")
        signer.start()
        server.start()
        assert server.events("signer.behind")[0]["size"] == 10
        uvloop.run(add(server.port, [b"ten"], seen))
        assert server.stop() == 0
    assert len(stored(data)) == 11
    seen.check(stored(data))


def test_a_key_has_one_state(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    init_log(data)
    home.mkdir()
    command = ("signer", "init", "--config", data / "treehead.toml", "--state")
    assert run_tlogd(*command, home / "a.db").returncode == 0
    done = run_tlogd(*command, home / "b.db")
    assert done.returncode == 2
    assert "it has one only" in done.stderr
    assert not (home / "b.db").exists()


def test_a_log_that_has_a_signer_gets_no_second_state(tmp_path: Path) -> None:
    data, home = tmp_path / "log", tmp_path / "home"
    init_log(data)
    move_key(data, home)
    (data / "key.state").unlink()  # it moved with the key
    command = ("signer", "init", "--config", data / "treehead.toml", "--state", home / "second.db")
    file = data / "treehead.toml"
    with_signer, without = file.read_text(), file.read_text().partition("\n")[2]
    done = run_tlogd(*command)
    assert (done.returncode, "the log is signed by unix:" in done.stderr) == (2, True), done.stderr
    file.write_text(without)
    done = run_tlogd(*command)
    assert (done.returncode, f"the key {data / 'key'} is missing" in done.stderr) == (3, True), done.stderr
    init_log(tmp_path / "other")
    file.write_text(without.replace('key = "key"', f'key = "{tmp_path / "other" / "key"}"'))
    done = run_tlogd(*command)
    assert (done.returncode, "is not that of the vkey" in done.stderr) == (3, True), done.stderr
    file.write_text(with_signer)
    assert not (home / "second.db").exists()
    assert not list(tmp_path.glob("*/key.state"))


def test_a_key_at_another_path_has_one_state(tmp_path: Path) -> None:
    data = tmp_path / "log"
    made = run_tlogd("keygen", "--origin", "localhost/x", "-o", tmp_path / "k")
    assert made.returncode == 0
    init_log(data, "--key", tmp_path / "k")
    command = ("signer", "init", "--config", data / "treehead.toml", "--state")
    assert run_tlogd(*command, tmp_path / "one.db").returncode == 0
    file = data / "treehead.toml"
    (data / "link").symlink_to(tmp_path / "k")
    file.write_text(file.read_text().replace(f'key = "{tmp_path / "k"}"', 'key = "link"'))
    assert run_tlogd(*command, tmp_path / "two.db").returncode == 2
    assert not (tmp_path / "two.db").exists()


def test_the_signer_of_another_log_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        init_log(tmp_path / name, origin=f"localhost/{name}")
        move_key(tmp_path / name, tmp_path / f"home-{name}")
    file = tmp_path / "a" / "treehead.toml"
    file.write_text(file.read_text().replace("home-a/", "home-b/"))
    with SignerProcess(tmp_path / "home-b"):
        done = run_tlogd("serve", "--config", file, "--port", "0")
    assert done.returncode == 3
    assert "is the one of 'localhost/b'" in done.stderr
