"""What every `Storage` promises, in SQLite and in memory; and what the SQLite one promises besides."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory import MemoryStorage
from tests.support.static import framed
from tlog.errors import TreeheadError
from tlog.server.errors import CommitError, StartRefusedError
from tlog.server.storage import Segment
from tlog.server.storage.segments import SCHEMA, SqliteStorage, open_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tlog.server.storage import Storage

    Open = Callable[[], AbstractContextManager[Storage]]

pytestmark = pytest.mark.invariant("I7", "I9")

ENTRIES = [[b"first"], [b"second", b"", b"x" * 65_535], [b"third"], [b"\x00\x01" * 9] * 5]


def segment(first: int, entries: list[bytes], time_ms: int = 1) -> Segment:
    data = framed(entries)
    digests = sha256(b"root" + data).digest(), sha256(data).digest()
    return Segment(first, len(entries), data, *digests, time_ms, b"keys").sealed()


def segments() -> list[Segment]:
    firsts = [0, 1, 4, 5]
    return [segment(first, entries, first) for first, entries in zip(firsts, ENTRIES, strict=True)]


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return a function that opens the same log again and again."""
    shared: list[Segment] = []

    @contextmanager
    def memory() -> Iterator[Storage]:
        yield MemoryStorage(shared)

    @contextmanager
    def sqlite() -> Iterator[Storage]:
        path = tmp_path / "log.db"
        with closing(open_segments(path, create=not path.exists())) as connection:
            yield SqliteStorage(connection)

    return memory if request.param == "memory" else sqlite


def test_a_new_log_is_empty(opened: Open) -> None:
    with opened() as storage:
        assert storage.size() == 0
        assert storage.segment_at(0) is None
        assert storage.segment_at(-1) is None
        assert storage.entries(0, 0) == []


def test_what_was_appended_is_read_back_as_it_was(opened: Open) -> None:
    flat = [entry for entries in ENTRIES for entry in entries]
    with opened() as storage:
        for each in segments():
            storage.append(each)
            assert storage.size() == each.end
        for each in segments():
            for index in range(each.first, each.end):
                assert storage.segment_at(index) == each
        assert storage.segment_at(10) is None
        for start in range(11):
            for end in range(start, 11):
                assert storage.entries(start, end) == flat[start:end]


def test_segments_are_read_a_few_at_a_time_and_never_with_a_gap(opened: Open) -> None:
    whole = segments()
    with opened() as storage:
        for each in whole:
            storage.append(each)
        assert storage.segments_from(0, 10, 100, 1 << 30) == whole
        assert storage.segments_from(1, 10, 100, 1 << 30) == whole[1:]
        assert storage.segments_from(0, 4, 100, 1 << 30) == whole[:2]
        assert storage.segments_from(0, 10, 3, 1 << 30) == whole[:3]
        assert storage.segments_from(0, 10, 100, 1) == whole[:1]
        assert storage.segments_from(0, 10, 100, len(whole[0].entries) + 1) == whole[:2]
        for start in (2, 10):
            with pytest.raises(StartRefusedError):
                storage.segments_from(start, 11, 100, 1 << 30)


def test_what_was_appended_is_there_after_opening_again(opened: Open) -> None:
    for each in segments():
        with opened() as storage:
            storage.append(each)
    with opened() as storage:
        assert [storage.segment_at(each.first) for each in segments()] == segments()
        assert storage.size() == 10


@pytest.mark.parametrize("first", [1, 2, 7])
def test_a_gap_is_refused_in_an_empty_log(opened: Open, first: int) -> None:
    with opened() as storage:
        with pytest.raises(CommitError):
            storage.append(segment(first, [b"x"]))
        assert storage.size() == 0


@pytest.mark.parametrize("first", [0, 1, 2, 3, 5, 6, 100, 2**62, -1])
def test_a_gap_and_an_overlap_are_refused_and_store_nothing(opened: Open, first: int) -> None:
    with opened() as storage:
        for each in segments()[:2]:
            storage.append(each)
        with pytest.raises(CommitError):
            storage.append(segment(first, [b"x", b"y"]))
        assert storage.size() == 4
        assert storage.segment_at(4) is None
        assert [storage.segment_at(each.first) for each in segments()[:2]] == segments()[:2]
        storage.append(segments()[2])
        assert storage.size() == 5


def test_an_empty_segment_is_refused(opened: Open) -> None:
    with opened() as storage:
        with pytest.raises(CommitError):
            storage.append(segment(0, []))
        assert storage.size() == 0


def test_missing_entries_are_refused(opened: Open) -> None:
    with opened() as storage:
        storage.append(segments()[0])
        with pytest.raises(StartRefusedError):
            storage.entries(0, 2)


# SQLite.


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "log.db"
    open_segments(path, create=True).close()
    return path


@pytest.fixture
def filled(empty: Path, tmp_path: Path) -> Path:
    path = shutil.copyfile(empty, tmp_path / "log.db")
    with closing(open_segments(path)) as connection:
        for each in segments():
            SqliteStorage(connection).append(each)
    return path


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segment SET entries = x'00'",
        "UPDATE segment SET time_ms = time_ms + 1 WHERE first = 5",
        "DELETE FROM segment",
        "DELETE FROM segment WHERE first = 5",
        "UPDATE segment SET first = 100 WHERE first = 5",
    ],
)
def test_triggers_refuse_every_change_and_removal(filled: Path, statement: str) -> None:
    with closing(sqlite3.connect(filled)) as connection, pytest.raises(sqlite3.IntegrityError, match="insert-only"):
        connection.execute(statement)
    with closing(open_segments(filled)) as connection:
        assert SqliteStorage(connection).segment_at(5) == segments()[3]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("wal_autocheckpoint", 0),
        ("busy_timeout", 0),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("encoding", "UTF-8"),
    ],
)
def test_settings_are_really_set(filled: Path, name: str, wanted: str | int) -> None:
    with closing(open_segments(filled)) as connection:
        assert connection.execute(f"PRAGMA {name}").fetchone() == (wanted,)


@pytest.mark.parametrize("column", ["entries", "root", "leaf_digest", "time_ms", "keys", "digest", "count", "first"])
def test_columns_keep_their_types(filled: Path, column: str) -> None:
    row = {"first": 10, "count": 1, "entries": b"\x00\x00", "root": bytes(32), "leaf_digest": bytes(32)}
    row |= {"time_ms": 1, "keys": b"", "digest": bytes(32), column: "text"}
    with closing(open_segments(filled)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(f"INSERT INTO segment ({', '.join(row)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [*row.values()])


@pytest.mark.parametrize("change", [{"root": bytes(31)}, {"leaf_digest": bytes(33)}, {"digest": b""}, {"root": b""}])
def test_hashes_of_another_length_are_refused(filled: Path, change: dict[str, bytes]) -> None:
    with closing(open_segments(filled)) as connection, pytest.raises(CommitError):
        SqliteStorage(connection).append(replace(segment(10, [b"x"]), **change))  # type: ignore[arg-type]  # bytes


def test_two_writers_cannot_both_append_at_one_place(filled: Path) -> None:
    with closing(open_segments(filled)) as first, closing(open_segments(filled)) as second:
        SqliteStorage(first).append(segment(10, [b"one"]))
        with pytest.raises(CommitError, match="does not end at 10"):
            SqliteStorage(second).append(segment(10, [b"two"]))
        assert SqliteStorage(second).entries(10, 11) == [b"one"]


def test_a_locked_log_fails_the_append_at_once(filled: Path) -> None:
    with closing(open_segments(filled)) as first, closing(open_segments(filled)) as second:
        first.execute("BEGIN IMMEDIATE")
        with pytest.raises(CommitError, match="database is locked"):
            SqliteStorage(second).append(segment(10, [b"x"]))


def test_opening_never_makes_a_database(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="is missing"):
        open_segments(tmp_path / "log.db")
    assert list(tmp_path.iterdir()) == []


def test_the_wal_stays_short_over_many_large_commits(filled: Path) -> None:
    with closing(open_segments(filled)) as connection:
        storage = SqliteStorage(connection)
        for index in range(10, 200):
            storage.append(segment(index, [b"x" * 60_000]))
        assert filled.with_name("log.db-wal").stat().st_size < 3 << 20


@given(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=9), max_size=12))
def test_both_stores_hold_the_same(batches: list[list[bytes]]) -> None:
    memory = MemoryStorage()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        storage = SqliteStorage(connection)
        for entries in batches:
            each = segment(memory.size(), entries)
            memory.append(each)
            storage.append(each)
        assert storage.size() == memory.size()
        assert storage.entries(0, memory.size()) == memory.entries(0, memory.size())


def test_broken_framing_is_an_error_of_ours(filled: Path) -> None:
    with closing(open_segments(filled)) as connection:
        storage = SqliteStorage(connection)
        storage.append(replace(segment(10, [b"x", b"y"]), entries=b"\x00\x05xx"))
        with pytest.raises(TreeheadError):
            storage.entries(10, 12)


def test_what_a_crash_left_in_the_wal_is_in_the_database_before_it_is_trusted(filled: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    with closing(open_segments(filled)) as connection:
        SqliteStorage(connection).append(segment(10, [b"in the WAL alone"]))
        for file in tmp_path.glob("log.db*"):
            shutil.copyfile(file, crashed / file.name)
    assert (crashed / "log.db-wal").stat().st_size > 0
    with closing(open_segments(crashed / "log.db")) as connection:
        assert (crashed / "log.db-wal").stat().st_size == 0
        assert SqliteStorage(connection).entries(10, 11) == [b"in the WAL alone"]


def test_a_wal_that_another_program_reads_cannot_be_made_durable_and_is_refused(filled: Path) -> None:
    with closing(open_segments(filled)) as writer, closing(sqlite3.connect(filled, isolation_level=None)) as reader:
        SqliteStorage(writer).append(segment(10, [b"in the WAL alone"]))
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM segment").fetchone()
        with pytest.raises(StartRefusedError, match="in use by another program"):
            open_segments(filled)
        reader.execute("COMMIT")
        open_segments(filled).close()


def test_key_records_are_found_by_time_and_only_where_there_are_some(opened: Open) -> None:
    with opened() as storage:
        for first, time_ms, keys in ((0, 5, b"a"), (1, 6, b""), (2, 7, b"b"), (3, 7, b"c"), (4, 9, b"d")):
            storage.append(replace(segment(first, [b"x"], time_ms), keys=keys).sealed())
        assert list(storage.keys(0, 5)) == [(5, b"a"), (7, b"b"), (7, b"c"), (9, b"d")]
        assert list(storage.keys(6, 4)) == [(7, b"b"), (7, b"c")]
        assert list(storage.keys(10, 5)) == []
