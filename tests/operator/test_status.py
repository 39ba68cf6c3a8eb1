"""`tlogd status`: what is true of a log, while it is served and while it is not, whatever is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow
from tests.support.server import Server, run_tlogd
from tlog.server.config import read_config
from tlog.server.errors import InUseError
from tlog.server.lock import LOCK_NAME, Glance, Lock

if TYPE_CHECKING:
    from tests.support.operating import Tlogd


def status(tlogd: Tlogd, data: Path) -> dict[str, object]:
    done = tlogd("status", "--config", data / "treehead.toml", "--json")
    assert done.code == 0, done
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_a_log_that_is_not_served_is_described_and_left_as_it_was(data: Path, tlogd: Tlogd) -> None:
    before = sorted(path.name for path in data.iterdir())
    found = status(tlogd, data)
    assert (found["running"], found["pid"], found["url"]) == (False, None, None)
    assert (found["signed"], found["stored"], found["derived"]) == (701, 701, 512)
    assert (found["frozen"], found["read_only"], found["problems"]) == (False, None, [])
    assert found["key"] == {"file": str(data / "key"), "state": "plain"}
    files = found["files"]
    assert isinstance(files, dict)
    assert files["log.db"]["bytes"] == (data / "log.db").stat().st_size
    assert files["log.db"]["free_bytes"] > 0
    assert sorted(path.name for path in data.iterdir()) == before


def test_a_log_that_is_served_is_described_by_its_server_and_its_files(data: Path) -> None:
    with Server(data) as server:
        done = run_tlogd("status", "--config", data / "treehead.toml", "--json")
        found = json.loads(done.stdout)
        assert found["running"] is True
        assert found["pid"] == server._process.pid if server._process else None
        assert found["url"] == f"http://127.0.0.1:{server.port}"
        assert (found["signed"], found["stored"], found["derived"], found["problems"]) == (701, 701, 512, [])
        text = run_tlogd("status", "--config", data / "treehead.toml").stdout
        assert f"which serves it at http://127.0.0.1:{server.port}" in text
        assert server.stop() == 0


def test_a_log_of_several_is_found_under_its_prefix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        create(tmp_path / name, origin=f"localhost/{name}")
    (tmp_path / "log.toml").write_text(
        "version = 1\n" + "".join(f'[[log]]\nprefix = "/{name}"\ndata = "{name}"\n' for name in ("one", "two"))
    )
    (tmp_path / "log.toml").rename(tmp_path / "treehead.toml")
    with Server(tmp_path) as server:
        found = json.loads(run_tlogd("status", "--json", "--config", tmp_path / "two" / "treehead.toml").stdout)
        assert (found["url"], found["signed"]) == (f"http://127.0.0.1:{server.port}/two", 1)
        assert run_tlogd("backup", tmp_path / "b", "--config", tmp_path / "two" / "treehead.toml").returncode == 0
        assert server.stop() == 0
    done = run_tlogd("status", "--config", tmp_path / "treehead.toml")
    assert done.returncode == 2
    assert "is of a server of several logs; name one of them" in done.stderr


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db", "key"])
def test_a_missing_file_is_a_problem_and_the_rest_is_told(data: Path, tlogd: Tlogd, name: str) -> None:
    (data / name).unlink()
    found = status(tlogd, data)
    assert any("is missing" in problem for problem in found["problems"])  # type: ignore[attr-defined]  # a list
    assert found["derived"] == 512
    assert (found["stored"] is None, found["signed"] is None) == (name == "log.db", name == "checkpoints.db")
    assert tlogd("status", "--config", data / "treehead.toml").code == 0


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db", "tiles.db", "key", "lock"])
def test_junk_in_any_file_is_a_problem_and_no_failure(data: Path, tlogd: Tlogd, name: str) -> None:
    (data / name).chmod(0o600)
    (data / name).write_bytes(b"\xff{junk" * 2000)
    (data / name).chmod(0o400)
    found = status(tlogd, data)
    assert bool(found["problems"]) == (name != "lock")


def test_reasons_to_take_no_entries_are_told(tmp_path: Path, tlogd: Tlogd) -> None:
    data = tmp_path / "log"
    create(data)
    file = data / "treehead.toml"
    usual = file.read_text()
    file.write_text(usual + "tree_size = 1\n")
    assert "limits.tree_size = 1" in str(status(tlogd, data)["read_only"])
    file.write_text(usual + f"free_bytes = {1 << 60}\n")
    assert "limits.free_bytes" in str(status(tlogd, data)["read_only"])
    file.write_text(usual)
    assert run_tlogd("freeze", "--config", file, "--yes", "localhost/x").returncode == 0
    found = status(tlogd, data)
    assert (found["frozen"], found["read_only"]) == (True, "it was ended by its last entry")


def test_the_age_is_that_of_the_newest_signed_entry(data: Path, tlogd: Tlogd) -> None:
    config = read_config(data / "treehead.toml")
    grow(config, [[b"now"]])
    age = status(tlogd, data)["newest_age_s"]
    assert isinstance(age, float)
    assert 0 <= age < 60


def test_a_log_that_is_being_looked_at_can_be_started(data: Path, tlogd: Tlogd) -> None:
    (data / LOCK_NAME).touch()
    with Glance(data / LOCK_NAME) as one, Glance(data / LOCK_NAME) as other:
        assert (one.holder, other.holder) == (None, None)
    with Lock(data / LOCK_NAME), Glance(data / LOCK_NAME) as glance:
        assert glance.holder is not None
        assert glance.holder.pid > 0
        assert tlogd("status", "--config", data / "treehead.toml").code == 0


def test_a_full_disk_keeps_nobody_from_using_a_log(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with Lock(data / LOCK_NAME), Glance(data / LOCK_NAME) as glance:
        assert glance.holder is not None


def test_a_lock_is_of_one_process_and_says_which(data: Path) -> None:
    with Lock(data / LOCK_NAME), pytest.raises(InUseError, match=r"the log is in use by process \d+: it holds "):
        Lock(data / LOCK_NAME).__enter__()
    with Lock(data / LOCK_NAME):
        pass
