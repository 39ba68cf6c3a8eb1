"""A `-journal`, or a `-wal` of another moment, beside an intact log.db: no command lets SQLite apply it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow, replace, stored
from tlog.server import recover as module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.operating import Done, Tlogd

pytestmark = pytest.mark.invariant("I7", "I10")

REFUSED, DAMAGED = 3, 5
PAGE = 4096


def note_of(data: Path) -> bytes:
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db?mode=ro&immutable=1", uri=True)) as connection:
        return bytes(connection.execute("SELECT note FROM head").fetchone()[0])


def journal(old: bytes) -> bytes:
    """Return a rollback journal that gives a database back all pages that it had (sqlite.org/fileformat, §3)."""
    count = len(old) // PAGE
    made = struct.pack(">8s5I", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", count, 0, count, 512, PAGE).ljust(512, b"\0")
    for number in range(count):
        page = old[number * PAGE : (number + 1) * PAGE]
        checksum = sum(page[at] for at in range(PAGE - 200, 0, -200))
        made += struct.pack(">I", number + 1) + page + struct.pack(">I", checksum)
    return made


def wal(old: Path, newer: Path, first: int, folder: Path) -> bytes:
    """Return the write-ahead log with which an old log.db has the commit of a newer one, too."""
    shutil.copyfile(old, folder / "copy.db")
    with closing(sqlite3.connect(folder / "copy.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("ATTACH ? AS newer", (f"file:{newer}?immutable=1",))
        connection.execute("INSERT INTO main.segment SELECT * FROM newer.segment WHERE first = ?", (first,))
        return (folder / "copy.db-wal").read_bytes()


class Log:
    """A log of 7 entries, and what it was at 4: its log.db, its store, its head, and a backup."""

    def __init__(self, folder: Path, tlogd: Tlogd) -> None:
        self.data, self.then, self.backup, self.note = (folder / name for name in ("log", "then", "backup", "note"))
        config = create(self.data)
        grow(config, [[b"one"], [b"two"], [b"three"]])
        shutil.copytree(self.data, self.then)
        self.note.write_bytes(note_of(self.data))
        assert tlogd("backup", self.backup, "--config", self.data / "treehead.toml").code == 0
        grow(config, [[b"%d %d" % (size, at) for at in range(size)] for size in (9, 9, 9)])
        self.strays = {
            "journal": journal((self.then / "log.db").read_bytes()),
            "wal": wal(self.then / "log.db", self.data / "log.db", 4, folder),
        }

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.data.iterdir() if path.name not in ("lock", "log.db-shm")}


@pytest.fixture
def log(tmp_path: Path, tlogd: Tlogd) -> Log:
    return Log(tmp_path, tlogd)


def lose_store(log: Log) -> None:
    (log.data / "checkpoints.db").unlink()


def take_store_back(log: Log) -> None:
    replace(log.then / "checkpoints.db", log.data / "checkpoints.db")


def nothing(_: Log) -> None:
    pass


COMMANDS: dict[str, tuple[Callable[[Log], None], Callable[[Log], tuple[str | Path, ...]]]] = {
    "recover": (lose_store, lambda log: ("recover-checkpoints", "--from", log.note, "--yes", "localhost/x")),
    "repair": (take_store_back, lambda log: ("repair", "--from", log.then)),
    "repair and discard": (take_store_back, lambda log: ("repair", "--from", log.then, "--discard-unsigned")),
    "discard": (take_store_back, lambda _: ("repair", "--discard-unsigned")),
    "restore": (take_store_back, lambda log: ("restore", log.backup)),
    "restore elsewhere": (take_store_back, lambda log: ("restore", log.backup, "--data", log.data.parent / "new")),
    "back up": (nothing, lambda log: ("backup", log.data.parent / "another")),
}


def run(tlogd: Tlogd, log: Log, name: str) -> Done:
    return tlogd(*COMMANDS[name][1](log), "--config", log.data / "treehead.toml")


@pytest.mark.parametrize("kind", ["journal", "wal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_lets_sqlite_apply_what_lies_beside_log_db(log: Log, tlogd: Tlogd, name: str, kind: str) -> None:
    entries = stored(log.data)
    COMMANDS[name][0](log)
    (log.data / f"log.db-{kind}").write_bytes(log.strays[kind])
    before = log.files()
    done = run(tlogd, log, name)
    assert (done.code, f"log.db-{kind}" in done.err) == (REFUSED, True), done
    assert log.files() == before
    assert not any((log.data.parent / made).exists() for made in ("new", "another"))
    (log.data / f"log.db-{kind}").unlink()
    assert stored(log.data) == entries


@pytest.mark.parametrize("kind", ["journal", "wal"])
@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_a_check_finds_it_and_reads_nothing_through_it(log: Log, tlogd: Tlogd, kind: str, deep: tuple[str]) -> None:
    (log.data / f"log.db-{kind}").write_bytes(log.strays[kind])
    before = log.files()
    done = tlogd("fsck", *deep, "--config", log.data / "treehead.toml")
    assert done.code == DAMAGED, done
    assert f"log.db-{kind}" in done.out
    assert "a file beside them: nothing else was looked at" in done.out
    assert "verified" not in done.out
    said = json.loads(tlogd("fsck", *deep, "--json", "--config", log.data / "treehead.toml").out)
    assert (said["ok"], said["damages"][0]["file"]) == (False, "a file beside them")
    assert log.files() == before


@pytest.mark.invariant("I2", "I12")
def test_a_recovery_that_ends_before_what_was_checked_makes_no_store(
    log: Log, tlogd: Tlogd, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = module._check_seen

    def roll_back(*arguments: object) -> None:
        honest(*arguments)  # type: ignore[arg-type]  # as they came
        replace(log.then / "log.db", log.data / "log.db")

    monkeypatch.setattr(module, "_check_seen", roll_back)
    lose_store(log)
    done = run(tlogd, log, "recover")
    assert (done.code, "log.db changed meanwhile: the new store would end at 4" in done.err) == (REFUSED, True), done
    assert not (log.data / "checkpoints.db").exists()
    assert not list(log.data.glob(".*.part*"))


def test_the_strays_of_this_test_do_harm_where_sqlite_meets_them(log: Log) -> None:
    for kind, left in (("journal", 4), ("wal", 13)):
        copy = log.data.parent / f"copy-{kind}"
        shutil.copytree(log.data, copy)
        (copy / f"log.db-{kind}").write_bytes(log.strays[kind])
        with closing(sqlite3.connect(copy / "log.db")) as connection:
            assert connection.execute("SELECT max(first + count) FROM segment").fetchone() == (left,)
