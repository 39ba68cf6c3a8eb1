"""Creating a log: all of it or nothing, never over anything, and with a key that only its owner can read."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import cbor2
import pytest

from tests.support.grow import CREATED_MS, create, grow, stored
from tests.support.rfc6962 import Tree
from tests.support.server import run_tlogd
from tests.support.wire import head_of
from tlog.note import parse_skey
from tlog.policy import Policy
from tlog.server import create as module
from tlog.server.commit import Commit
from tlog.server.create import create_log
from tlog.server.errors import CommitError, CreateError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.invariant("I12", "I13")

ORIGIN = "log.example/new"


def names(folder: Path) -> set[str]:
    """Return everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_new_log_holds_its_genesis_entry_under_a_signed_head(tmp_path: Path) -> None:
    config = create_log(ORIGIN, tmp_path / "deep" / "log", CREATED_MS)
    data = tmp_path / "deep" / "log"
    assert names(data) == {"key", "key.used", "vkey", "treehead.toml", "log.db", "checkpoints.db"}
    entries = stored(data)
    assert [cbor2.loads(entry) for entry in entries] == [
        {"format": "treehead/genesis/v1", "origin": ORIGIN, "vkey": config.vkey, "createdMs": CREATED_MS}
    ]
    with closing(sqlite3.connect(data / "checkpoints.db")) as connection:
        ((origin, size, root, note),) = connection.execute("SELECT origin, size, root, note FROM head")
    assert (origin, size, root) == (ORIGIN, *head_of(note)) == (ORIGIN, 1, Tree(entries).mth(0, 1))
    assert Policy.of_log(config.vkey).open_checkpoint(note).root == root


def test_the_key_is_of_mode_0400_under_any_umask_and_belongs_to_the_vkey(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        config = create_log(ORIGIN, tmp_path / "log", CREATED_MS)
    finally:
        os.umask(before)
    file = tmp_path / "log" / "key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert parse_skey(file.read_text().removesuffix("\n")).verifier.vkey == config.vkey
    assert (tmp_path / "log" / "vkey").read_text() == f"{config.vkey}\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700


def test_each_log_has_a_key_of_its_own(tmp_path: Path) -> None:
    assert len({create_log(ORIGIN, tmp_path / name, CREATED_MS).vkey for name in "abc"}) == 3


@pytest.mark.parametrize("taken", ["folder", "empty folder", "file", "dangling link"])
def test_a_taken_name_is_refused_and_left_alone(tmp_path: Path, taken: str) -> None:
    data = tmp_path / "log"
    if taken == "file":
        data.write_text("mine")
    elif taken == "dangling link":
        data.symlink_to(tmp_path / "nowhere")
    else:
        data.mkdir()
        if taken == "folder":
            (data / "mine").write_text("mine")
    before = names(tmp_path)
    with pytest.raises(CreateError, match="exists; a log is never created over anything"):
        create_log(ORIGIN, data, CREATED_MS)
    assert names(tmp_path) == before


def test_a_taken_name_of_the_checkpoint_store_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("mine")
    with pytest.raises(CreateError, match=r"store\.db exists"):
        create_log(ORIGIN, tmp_path / "log", CREATED_MS, tmp_path / "store.db")
    assert names(tmp_path) == {"store.db"}
    assert (tmp_path / "store.db").read_text() == "mine"


def test_a_checkpoint_store_elsewhere_is_used_and_not_made_in_the_folder(tmp_path: Path) -> None:
    store = tmp_path / "other volume" / "deep" / "x.db"
    config = create(tmp_path / "log", store)
    assert config.checkpoints == str(store)
    assert names(tmp_path / "log") == {"key", "key.used", "vkey", "treehead.toml", "log.db"}
    assert names(tmp_path / "other volume") == {"deep", "deep/x.db"}
    grow(config, [[b"one", b"two"]])
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("SELECT size FROM head").fetchone() == (3,)


@pytest.mark.parametrize(
    "origin", ["", "a b", "a+b", "a\nb", "x" * 256, "\udcff", "a\u2028b", "a\tb", "\u00a0"], ids=ascii
)
def test_a_name_that_cannot_be_an_origin_is_refused_and_leaves_nothing(tmp_path: Path, origin: str) -> None:
    with pytest.raises(CreateError, match="cannot be an origin"):
        create_log(origin, tmp_path / "log", CREATED_MS)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("origin", ["ü.example/log", "例.example", "x" * 255, 'quote".example', "back\\slash"])
def test_unusual_origins_survive_the_configuration_file(tmp_path: Path, origin: str) -> None:
    config = create(tmp_path / "log", origin=origin)
    assert config.origin == origin
    grow(config, [[b"x"]])


@pytest.mark.parametrize("step", ["write_key", "open_segments", "open_checkpoints", "format_config", "_sync"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(CreateError, match="the log could not be created: No space left"):
        create_log(ORIGIN, tmp_path / "log", CREATED_MS, tmp_path / "store.db")
    assert names(tmp_path) == set()


def test_a_failing_first_commit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CommitError("disk I/O error")

    monkeypatch.setattr(Commit, "run", fail)
    with pytest.raises(CommitError):
        create_log(ORIGIN, tmp_path / "log", CREATED_MS, tmp_path / "store.db")
    assert names(tmp_path) == set()


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module._move_store

    def take(source: Path, target: Path) -> None:
        honest(source, target)
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "mine").write_text("mine")

    monkeypatch.setattr(module, "_move_store", take)
    with pytest.raises(CreateError, match="could not be created"):
        create_log(ORIGIN, tmp_path / "log", CREATED_MS, tmp_path / "store.db")
    assert names(tmp_path) == {"log", "log/mine"}


def test_a_store_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module._move_store

    def take(source: Path, target: Path) -> None:
        target.write_text("mine")
        honest(source, target)

    monkeypatch.setattr(module, "_move_store", take)
    with pytest.raises(CreateError, match="could not be created"):
        create_log(ORIGIN, tmp_path / "log", CREATED_MS, tmp_path / "store.db")
    assert names(tmp_path) == {"store.db"}
    assert (tmp_path / "store.db").read_text() == "mine"


def test_the_command_prints_what_is_needed_and_refuses_a_taken_name_in_one_line(tmp_path: Path) -> None:
    done = run_tlogd("init", "--origin", ORIGIN, "--data", tmp_path / "log", "--json")
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    assert printed["origin"] == ORIGIN
    assert printed["vkey"] == (tmp_path / "log" / "vkey").read_text().strip()
    assert printed["config"] == str(tmp_path / "log" / "treehead.toml")
    again = run_tlogd("init", "--origin", ORIGIN, "--data", tmp_path / "log")
    assert again.returncode == 2
    assert again.stderr == (
        f"tlogd: {tmp_path / 'log'} exists; a log is never created over anything; choose another name\n"
    )
    assert "PRIVATE" not in done.stdout + done.stderr
