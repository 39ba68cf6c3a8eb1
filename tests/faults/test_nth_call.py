"""Every call of a commit and of a start fails once, in four ways, singly and in pairs; then a checker reads history.

The checker knows every acknowledgement, every head that left the commit, and every signature that was ever made, shown
to somebody or not. They are of one chain; nothing acknowledged is lost; a process in which something failed signs
nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import structlog

from tests.support.checker import REFUSALS, Count, History, attempt, plans
from tests.support.grow import create, grow, stored
from tests.support.memory import MemoryCheckpointStore, MemoryStorage
from tests.support.nth_call import (
    Crash,
    Faults,
    FaultyCheckpointStore,
    FaultySigner,
    FaultyStorage,
    Kind,
    copy_as_left,
    faulty_sqlite,
)
from tests.support.writing import ORIGIN, SIGNER, begin, leaves
from tests.support.wrong_commit import Hurries, SwapsFirst, TriesAgain
from tlog.checkpoint import Checkpoint
from tlog.edge import Edge, extend
from tlog.server import startup
from tlog.server.commit import Commit
from tlog.server.config import read_config
from tlog.server.errors import SigningError
from tlog.server.key import read_log_key
from tlog.server.log import open_log
from tlog.server.overlay import Overlay
from tlog.server.signer import LocalSigner
from tlog.server.storage import Segment, database
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlog.server.config import Config
    from tlog.server.derived import Derived
    from tlog.server.storage import SignedHead

pytestmark = pytest.mark.invariant("I2", "I4", "I6", "I7", "I8", "I9")

FIRST, WELL, BATCH = [b"first"], [b"acknowledged"], [b"under", b"", b"faults"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Log nothing: thousands of starts would."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


# The protocols, in memory: what is "on disk" is the list, the dictionary and what a signer outside remembers.


@dataclass
class Disk:
    """What outlives a process.

    Attributes:
        signer: A signer of another process, which remembers what it signed; None for one that begins at the store.
    """

    segments: list[Segment]
    heads: dict[str, SignedHead]
    signer: LocalSigner | None

    def fork(self) -> Disk:
        """Return a copy."""
        newest = None if self.signer is None else LocalSigner(SIGNER, self.signer.newest())
        return Disk(list(self.segments), dict(self.heads), newest)


MakeCommit = type[Commit]


def new_disk(*, outside: bool) -> Disk:
    """Return a log with one entry."""
    disk = Disk([], {}, None)
    commit, _ = begin(MemoryStorage(disk.segments), MemoryCheckpointStore(disk.heads))
    committed = commit.run(FIRST, leaves(FIRST), 1)
    if outside:
        disk.signer = LocalSigner(SIGNER, _checkpoint(committed.head))
    return disk


def _checkpoint(head: SignedHead) -> Checkpoint:
    return Checkpoint(head.origin, head.size, head.root)


def open_in_memory(disk: Disk, faults: Faults, make: MakeCommit = Commit) -> Commit:
    """Start as a log does: with the checks of the start, and a commit that was stored and not signed finished."""
    storage = FaultyStorage(MemoryStorage(disk.segments), faults)
    store = FaultyCheckpointStore(MemoryCheckpointStore(disk.heads), faults)
    head = store.latest(ORIGIN)
    assert head is not None
    inner = disk.signer or LocalSigner(SIGNER, _checkpoint(head))
    signer = FaultySigner(inner, faults, lambda: SigningError("no answer"))
    startup._check_head(head, SIGNER.verifier.vkey)
    tail = startup._check_data(cast("SqliteStorage", storage), head)
    signer.newest()
    growth = extend(Edge(), leaves(storage.entries(0, head.size)))
    derived = SimpleNamespace(edge=growth.new, overlay=Overlay(0, {}), leaves=SimpleNamespace(extend=lambda *_: None))
    derived.overlay.extend(growth, storage.entries(0, head.size))
    truth = startup._Truth(
        cast("SqliteStorage", storage),
        cast("SqliteCheckpointStore", store),
        signer,
        head,
        tail,
        disk.segments[-1].time_ms,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "Commit", make)
        commit, _ = startup._resume(truth, cast("Derived", derived))
    assert commit is not None
    return commit


def commit_in_memory(disk: Disk, faults: Faults, history: History, make: MakeCommit = Commit) -> None:
    """Open the log, then commit under faults."""
    faults.armed = False
    history.offered |= set(FIRST)
    with history.watching(faults):
        commit = open_in_memory(disk, faults, make)
        faults.armed = True
        attempt(commit, BATCH, history, faults, lambda: disk.heads[ORIGIN])
    history.head(disk.heads[ORIGIN].note)


def recover_in_memory(disk: Disk, faults: Faults, history: History) -> bool:
    """Start the log under faults, and commit once more where it does; return whether it did."""
    with history.watching(faults):
        try:
            commit = open_in_memory(disk, faults)
        except (Crash, *REFUSALS):
            return False
        finally:
            history.head(disk.heads[ORIGIN].note)
        faults.armed = False
        if not faults.fired:
            again = [b"again %d" % len(disk.segments)]
            attempt(commit, again, history, faults, lambda: disk.heads[ORIGIN])
            assert disk.heads[ORIGIN].size == len(_entries(disk))
    return True


def _entries(disk: Disk) -> list[bytes]:
    return MemoryStorage(disk.segments).entries(0, MemoryStorage(disk.segments).size())


def _memory_history() -> History:
    return History(SIGNER.verifier.vkey)


def _calls_in_memory(run: Callable[[Disk, Faults, History], object], disk: Disk) -> list[str]:
    faults = Faults()
    run(disk.fork(), faults, _memory_history())
    return faults.calls


@pytest.mark.parametrize("outside", [False, True], ids=["signer inside", "signer outside"])
def test_no_call_of_a_commit_or_of_the_start_after_it_makes_the_log_fork_or_forget(*, outside: bool) -> None:
    singles, pairs = Count(), Count()
    calls = _calls_in_memory(commit_in_memory, new_disk(outside=outside))
    assert calls == ["append", "segment_at", "sign", "swap"]
    for plan in plans(len(calls)):
        disk, history, faults = new_disk(outside=outside), _memory_history(), Faults(plan)
        commit_in_memory(disk, faults, history)
        assert len(faults.fired) == 1
        assert len(faults.calls) == faults.fired[0][0], "something was called after a failure"
        follow = _calls_in_memory(recover_in_memory, disk)
        for second in ({}, *plans(len(follow))):
            left, story, count_ = disk.fork(), history.fork(), pairs if second else singles
            later = Faults(second)
            recover_in_memory(left, later, story)
            assert len(later.fired) == len(second)
            count_.tried += 1
            count_.refused += bool(second)
            assert not second or recover_in_memory(left, Faults(), story)
            count_.recovered += 1
            count_.resumed += "sign" in follow
            story.verdict(_entries(left))
    print(f"{len(calls)} calls a commit: singles {singles}; pairs {pairs}")  # noqa: T201


# SQLite.


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log with two entries."""
    data = tmp_path_factory.mktemp("nth") / "log"
    grow(create(data), [FIRST])
    return data


@dataclass
class Bench:
    """Numbered copies of a log, in one folder."""

    folder: Path
    numbers: count[int]

    def copy(self, data: Path) -> Path:
        """Copy a log that no process has open."""
        return copy_as_left(data, self.next())

    def next(self) -> Path:
        """Return a free name."""
        return self.folder / f"{next(self.numbers)}"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Work in memory where there is such a folder: thousands of starts wait for no disk, and none of them needs one."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Bench(tmp_path, count())
        return
    with tempfile.TemporaryDirectory(prefix="treehead-", dir=folder) as name:
        yield Bench(Path(name), count())


def head_in_store(data: Path, bench: Bench) -> bytes:
    """Return the note in a checkpoint store, and leave the store as it is."""
    look = bench.next()
    look.mkdir()
    for file in data.glob("checkpoints.db*"):
        shutil.copy(file, look)
    with closing(sqlite3.connect(look / "checkpoints.db")) as connection:
        ((note,),) = connection.execute("SELECT note FROM head").fetchall()
    shutil.rmtree(look)
    return bytes(note)


def commit_to_files(data: Path, faults: Faults, history: History, bench: Bench, make: MakeCommit = Commit) -> Path:
    """Open both stores, commit once well and once under faults, and return the files as the process leaves them."""
    config, left = read_config(data / "treehead.toml"), bench.next()
    faults.armed, faults.on_crash = False, lambda: copy_as_left(data, left)
    with faulty_sqlite(faults), history.watching(faults):
        storage = SqliteStorage(open_segments(config.path("log.db")))
        store = SqliteCheckpointStore(open_checkpoints(config.path(config.checkpoints)))
        head = store.acquire(config.origin)
        assert head is not None
        edge = extend(Edge(), leaves(storage.entries(0, head.size))).new
        signer = LocalSigner(read_log_key(config), _checkpoint(head))
        commit = make(storage, store, signer, head, edge, 0)
        history.offered |= set(FIRST)
        attempt(commit, WELL, history, faults, lambda: store.latest(config.origin))
        faults.armed = True
        attempt(commit, BATCH, history, faults, lambda: store.latest(config.origin))
        if not left.exists():
            copy_as_left(data, left)
    history.head(head_in_store(left, bench))
    return left


def quiet_config(data: Path) -> Config:
    """Return the configuration of a log, without a scrub: what that reads meanwhile would be counted."""
    config = read_config(data / "treehead.toml")
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, scrub_bytes=0))


def recover_files(data: Path, faults: Faults, history: History, bench: Bench) -> tuple[Path, bool]:
    """Open the log under faults and add to it where that does; return the files as left, and whether it opened."""
    config, left, fatal = quiet_config(data), bench.next(), list[BaseException]()
    opened, refusal = False, ""
    faults.on_crash = lambda: copy_as_left(data, left)

    async def run() -> None:
        nonlocal opened
        async with open_log(config, fatal.append) as log:
            faults.armed, opened = False, True
            history.head(log.head.note)
            if not faults.fired:
                entry = b"again %d" % log.head.size
                history.offered.add(entry)
                placed = await log.add(entry)
                history.head(placed.head.note)
                history.acknowledgement(placed.index, entry)

    with faulty_sqlite(faults), history.watching(faults):
        try:
            asyncio.run(run())
        except (Crash, *REFUSALS) as error:
            refusal = str(error)
    assert opened or refusal, "refused without a word"
    assert not fatal
    left = left if left.exists() else data
    history.head(head_in_store(left, bench))
    return left, opened


def judge(data: Path, history: History, bench: Bench, faults: Faults) -> None:
    """Start the log as it is, add to it, and check everything; faults count the calls."""
    data, opened = recover_files(data, faults, history, bench)
    entries = stored(data)
    history.verdict(entries)
    assert opened, "nothing is damaged, and the log refuses"
    assert max(history.heads) == len(entries)


@dataclass
class Matrix:
    """All that can fail in a commit to files, and in the start after it.

    Attributes:
        template: The log that it begins with.
        bench: Where its copies are.
        singles: What became of one fault.
        pairs: What became of two.
    """

    template: Path
    bench: Bench
    singles: Count = field(default_factory=Count)
    pairs: Count = field(default_factory=Count)

    def run(self, stride: int) -> str:
        """Try every single fault of a commit, and every so many-th pair; return the counts."""
        ticks = count()
        calls = self._calls_of_commit()
        for plan in plans(len(calls)):
            self.after(plan, lambda: next(ticks) % stride == 0)
        assert self.pairs.recovered == self.pairs.tried == -(-next(ticks) // stride)
        return f"{len(calls)} statements a commit: singles {self.singles}; pairs {self.pairs}"

    def after(self, plan: dict[int, Kind], is_tried: Callable[[], bool] = lambda: True) -> list[str]:
        """Let a commit fail, and then the start after it in every way that is tried; return the calls of the start."""
        history, faults = History((self.template / "vkey").read_text().strip()), Faults(plan)
        left = commit_to_files(self.bench.copy(self.template), faults, history, self.bench)
        assert [number for number, _ in faults.fired] == list(plan) == [len(faults.calls)], "called after a failure"
        follow = Faults()
        judge(self.bench.copy(left), history.fork(), self.bench, follow)
        resumes = any(call.startswith("UPDATE head SET size") for call in follow.calls)
        self.singles.tried += 1
        self.singles.recovered += 1
        self.singles.resumed += resumes
        for second in plans(len(follow.calls)):
            if is_tried():
                self._pair(left, second, history.fork())
                self.pairs.resumed += resumes
        self._sweep(left)
        return follow.calls

    def _pair(self, left: Path, second: dict[int, Kind], history: History) -> None:
        faults = Faults(second)
        after, opened = recover_files(self.bench.copy(left), faults, history, self.bench)
        assert len(faults.fired) == 1
        judge(after, history, self.bench, Faults())
        self.pairs.tried += 1
        self.pairs.recovered += 1
        self.pairs.refused += not opened
        self._sweep(left)

    def _calls_of_commit(self) -> list[str]:
        faults, history = Faults(), History((self.template / "vkey").read_text().strip())
        commit_to_files(self.bench.copy(self.template), faults, history, self.bench)
        return faults.calls

    def _sweep(self, keep: Path) -> None:
        """Remove every copy but one."""
        for path in self.bench.folder.iterdir():
            if path != keep:
                shutil.rmtree(path)


APPENDED = {1: Kind.DONE_AND_CRASH}
"""The fault that leaves a segment stored and not signed."""


def test_a_start_that_finishes_a_commit_can_fail_at_every_statement_and_is_tried_again(
    template: Path, bench: Bench
) -> None:
    matrix = Matrix(template, bench)
    calls = matrix.after(APPENDED)
    assert matrix.pairs.tried == matrix.pairs.resumed == 4 * len(calls)
    print(f"{len(calls)} statements a start: {matrix.pairs}")  # noqa: T201


@pytest.mark.parametrize("crosses", [False, True], ids=["alone", "with WAL checkpoints"])
@pytest.mark.parametrize("stride", [97, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_no_statements_of_a_commit_and_of_the_start_after_it_make_the_log_fork_or_forget(
    template: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, stride: int, *, crosses: bool
) -> None:
    if crosses:
        monkeypatch.setattr(database, "WAL_PAGES", 1)
    print(Matrix(template, bench).run(stride))  # noqa: T201


# The checker sees what is wrong: commits that are.


@pytest.mark.parametrize("make", [Commit, SwapsFirst, TriesAgain, Hurries])
def test_the_checker_finds_every_commit_that_is_wrong_and_none_that_is_right(make: MakeCommit) -> None:
    found = 0
    for plan in plans(4):
        disk, history = new_disk(outside=False), _memory_history()
        try:
            commit_in_memory(disk, Faults(plan), history, make)
            recover_in_memory(disk, Faults(), history)
            history.verdict(_entries(disk))
        except AssertionError:
            found += 1
    assert (found > 0) == (make is not Commit)


def test_the_checker_finds_a_commit_to_files_that_swaps_first(template: Path, bench: Bench) -> None:
    history = History((template / "vkey").read_text().strip())
    left = commit_to_files(bench.copy(template), Faults(APPENDED), history, bench, SwapsFirst)
    with pytest.raises(AssertionError, match="a head was signed over entries that are not there"):
        judge(left, history, bench, Faults())
