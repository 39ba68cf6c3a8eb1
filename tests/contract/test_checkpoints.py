"""What every `CheckpointStore` promises, in SQLite and in memory; and what the SQLite one promises besides."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.memory import MemoryCheckpointStore
from tlog.server.errors import CommitError, StartRefusedError
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SCHEMA, SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.database import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    Store = SqliteCheckpointStore | MemoryCheckpointStore
    Open = Callable[[], AbstractContextManager[Store]]

pytestmark = pytest.mark.invariant("I3", "I4", "I14")

FIRST = SignedHead("log.example/x", 0, 1, b"1" * 32, b"note of 1")
SECOND = SignedHead("log.example/x", 1, 5, b"5" * 32, b"note of 5")


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return a function that opens the same store again and again."""
    shared: dict[str, SignedHead] = {}

    @contextmanager
    def memory() -> Iterator[Store]:
        yield MemoryCheckpointStore(shared)

    @contextmanager
    def sqlite() -> Iterator[Store]:
        path = tmp_path / "checkpoints.db"
        with closing(open_checkpoints(path, create=not path.exists())) as connection:
            yield SqliteCheckpointStore(connection)

    return memory if request.param == "memory" else sqlite


def test_an_unknown_origin_has_no_head_and_gets_none(opened: Open) -> None:
    with opened() as store:
        store.create(FIRST)
        assert store.acquire("log.example/other") is None
        assert store.acquire("log.example/other") is None


def test_an_origin_has_one_head(opened: Open) -> None:
    with opened() as store:
        store.create(FIRST)
        with pytest.raises(CommitError):
            store.create(replace(FIRST, size=2))
        assert store.acquire(FIRST.origin) == replace(FIRST, epoch=1)


def test_each_take_over_raises_the_epoch_durably(opened: Open) -> None:
    with opened() as store:
        store.create(FIRST)
    for epoch in range(1, 5):
        with opened() as store:
            assert store.acquire(FIRST.origin) == replace(FIRST, epoch=epoch)


def test_a_swap_is_there_after_opening_again(opened: Open) -> None:
    with opened() as store:
        store.create(FIRST)
        head = store.acquire(FIRST.origin)
        assert head is not None
        store.swap(head, SECOND)
    with opened() as store:
        assert store.acquire(FIRST.origin) == replace(SECOND, epoch=2)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "log.example/y"},
        {"epoch": 0},
        {"epoch": 2},
        {"size": 0},
        {"size": 2},
        {"root": bytes(32)},
    ],
    ids=str,
)
def test_a_swap_from_anything_but_the_head_changes_nothing(opened: Open, change: dict[str, str | int | bytes]) -> None:
    with opened() as store:
        store.create(FIRST)
        head = store.acquire(FIRST.origin)
        assert head is not None
        with pytest.raises(CommitError, match="lost the checkpoint store"):
            store.swap(replace(head, **change), SECOND)  # type: ignore[arg-type]  # one of its fields
        assert store.acquire(FIRST.origin) == replace(FIRST, epoch=2)


def test_a_server_that_was_taken_over_from_cannot_swap(opened: Open) -> None:
    with opened() as store:
        store.create(FIRST)
        old = store.acquire(FIRST.origin)
        new = store.acquire(FIRST.origin)
        assert old is not None
        assert new is not None
        with pytest.raises(CommitError):
            store.swap(old, SECOND)
        store.swap(new, SECOND)
        with pytest.raises(CommitError):
            store.swap(new, SECOND)


def test_heads_of_several_logs_do_not_touch_each_other(opened: Open) -> None:
    other = replace(FIRST, origin="log.example/y")
    with opened() as store:
        store.create(FIRST)
        store.create(other)
        head = store.acquire(FIRST.origin)
        assert head is not None
        store.swap(head, SECOND)
        assert store.acquire(other.origin) == replace(other, epoch=1)


# SQLite.


def test_two_processes_cannot_have_one_store_open(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    with closing(open_checkpoints(path, create=True)) as connection:
        SqliteCheckpointStore(connection).create(FIRST)
        with pytest.raises(StartRefusedError, match="database is locked"):
            open_checkpoints(path)
        with (
            closing(sqlite3.connect(path, timeout=0)) as reader,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            reader.execute("SELECT * FROM head")
    with closing(open_checkpoints(path)) as connection:
        assert SqliteCheckpointStore(connection).acquire(FIRST.origin) == replace(FIRST, epoch=1)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("journal_mode", "wal"), ("synchronous", 2), ("locking_mode", "exclusive"), ("wal_autocheckpoint", 0)],
)
def test_settings_are_really_set(tmp_path: Path, name: str, wanted: str | int) -> None:
    with closing(open_checkpoints(tmp_path / "checkpoints.db", create=True)) as connection:
        assert connection.execute(f"PRAGMA {name}").fetchone() == (wanted,)


def test_a_setting_that_sqlite_does_not_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="keeps journal_mode at delete instead of mapped"):
        connect(tmp_path / "x.db", SCHEMA, {"journal_mode": "mapped"}, create=True)


def test_the_wal_stays_short_over_many_swaps(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    with closing(open_checkpoints(path, create=True)) as connection:
        store = SqliteCheckpointStore(connection)
        store.create(FIRST)
        head = store.acquire(FIRST.origin)
        assert head is not None
        for size in range(2, 1000):
            store.swap(head, replace(head, size=size))
            head = replace(head, size=size)
        assert path.with_name("checkpoints.db-wal").stat().st_size < 3 << 20
