"""Lives of a log, of many processes each, in which anything happens; a history of what clients saw judges them."""

from __future__ import annotations

import io
import os
import sqlite3
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, redirect_stdout, suppress
from itertools import count
from multiprocessing import get_context
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import Clients
from tests.support.grow import edit
from tests.support.history import Request
from tests.support.life import Life
from tests.support.lives import live, prepared
from tests.support.nth_call import Kind
from tests.support.simulation import Simulation
from tests.support.tally import Tally
from tests.support.tapped import Plan
from tests.support.wire import head_of
from tlog.server import commit as module
from tlog.server import startup
from tlog.server.clock import Clock
from tlog.server.commit import Commit, Committed
from tlog.server.duplicates import Duplicates
from tlog.server.errors import CommitError
from tlog.server.follower import Follower, derive
from tlog.server.metrics import Steps
from tlog.server.storage.checkpoints import SqliteCheckpointStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.template import Template
    from tlog.edge import Growth
    from tlog.server.storage import Segment, SignedHead
    from tlog.server.storage.segments import SqliteStorage

pytestmark = pytest.mark.invariant(
    "I2", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I15", "I16", "I17", "I18", "I20"
)

STEPS = int(os.environ.get("TREEHEAD_MODEL_STEPS", "1000000"))
"""Steps of the long run."""

SEED = int(os.environ.get("TREEHEAD_MODEL_SEED", "0"))
"""Where its seeds begin."""

LIVES, LENGTH = 40, 300
"""Lives of one seed of the long run, and the most steps of each."""

SEEDS = 16
"""Seeds whose lives one pool of processes lives."""


@pytest.fixture(scope="module")
def life() -> Iterator[type[Life]]:
    with prepared(Life) as ready:
        yield ready


@pytest.mark.timeout(300)
def test_clients_see_one_history_whatever_happens_to_the_log(life: type[Life]) -> None:
    life.tally = Tally()
    live(life, seed=1, lives=9, steps=LENGTH)
    print(life.tally)  # noqa: T201
    assert life.tally.steps > 2000


# The long run.


def live_some(seed: int) -> tuple[int, Tally, str]:
    """Live the lives of a seed in a process of their own; return what was done, and what went wrong."""
    said = io.StringIO()
    with prepared(Life), redirect_stdout(said):
        try:
            live(Life, seed, LIVES, LENGTH)
        except Exception as error:  # noqa: BLE001  # whatever it is, the steps that led to it are wanted
            told = "".join(traceback.format_exception(error))
            return seed, Life.tally, f"seed {seed}: {told}\n{said.getvalue()}"
    return seed, Life.tally, ""


@pytest.mark.slow
@pytest.mark.timeout(12 * 3600)
def test_clients_see_one_history_in_a_million_steps(capsys: pytest.CaptureFixture[str]) -> None:
    total, began, seeds = Tally(), time.monotonic(), count(SEED)
    while total.steps < STEPS:
        # a pool for some seeds each: its processes grow, and one that replaces them may hang (python/cpython#115634)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            for done in as_completed([pool.submit(live_some, next(seeds)) for _ in range(SEEDS)]):
                seed, tally, failure = done.result()
                total.add(tally)
                assert not failure, failure
                speed = total.steps / (time.monotonic() - began)
                with capsys.disabled():
                    print(f"{speed:,.0f} steps/s, seed {seed}: {total}", file=sys.stderr, flush=True)  # noqa: T201


# What long runs have found.


@pytest.mark.parametrize("begins", ["tiles.db SELECT hashes FROM tile", "tiles.db SELECT id, level FROM leaf_run"])
def test_a_duplicate_whose_tile_cannot_be_read_is_refused_and_does_not_stop_the_log(
    life: type[Life], tmp_path: Path, begins: str
) -> None:
    sim = Simulation(tmp_path, next(template for template in life.templates if len(template.entries) == 2030))
    clients = Clients(sim)
    try:
        sim.must_start()
        duplicate = Request(tuple(sim.history.entries[515:516]))
        sim.tap.plan = Plan(begins, 1, Kind.FAILS)
        sim.run(clients.send([duplicate]))
        assert sim.tap.fired
        assert sim.is_alive
        assert sim.tally.refusals == 1
        sim.run(clients.send([duplicate, Request((b"new",))]))
        assert (sim.tally.answers, sim.size) == (2, 2031)
    finally:
        sim.close()


# The history is no rubber stamp: logs that are wrong.


class Forgetful(Simulation):
    """Its disk loses the newest commit, of both stores, when a process ends."""

    def start(self, **options: object) -> str:
        before = [size for size in self.history.sizes if size < self.size]
        if before and self.tap.count:
            note = self.history.note_of(before[-1])
            with closing(sqlite3.connect(self._folder / "log.db")) as connection:
                ((first,),) = connection.execute("SELECT max(first) FROM segment").fetchall()
            if first == before[-1]:
                edit(self._folder / "log.db", ("DELETE FROM segment WHERE first = ?", (first,)))
                row = (*head_of(note), note)
                edit(self._folder / "checkpoints.db", ("UPDATE head SET size = ?, root = ?, note = ?", row))
        return super().start(**options)  # type: ignore[arg-type]  # as they came


class ForgetfulLife(Life):
    def simulate(self, template: Template, *, dedup: bool) -> Simulation:
        return Forgetful(self.folder, template, dedup=dedup)


def test_an_entry_that_is_lost_at_a_restart_is_missed(life: type[Life]) -> None:
    assert issubclass(ForgetfulLife, life)
    with pytest.raises(AssertionError, match="the log went back from"):
        live(ForgetfulLife, seed=1, lives=10, steps=LENGTH)


def goes_on_after_a_swap_that_failed(patch: pytest.MonkeyPatch) -> None:
    honest = SqliteCheckpointStore.swap

    def swap(store: SqliteCheckpointStore, old: SignedHead, new: SignedHead) -> None:
        with suppress(CommitError):
            honest(store, old, new)

    patch.setattr(SqliteCheckpointStore, "swap", swap)


def answers_before_the_swap(patch: pytest.MonkeyPatch) -> None:
    def sign(commit: Commit, growth: Growth, digest: bytes | None, _: float) -> Committed:
        recount = commit._recounted(growth, digest)
        head = commit._signed(growth.new, module._consistency(growth))
        pending, commit._unswapped = getattr(commit, "_unswapped", None), (commit._head, head)  # type: ignore[attr-defined]  # a defect of this test's
        if pending is not None:
            commit._checkpoints.swap(*pending)
        commit._head, commit._edge, commit._recount = head, growth.new, recount
        return Committed(head, growth, Steps(0, 0, 0, 0), commit._last_ms)

    patch.setattr(Commit, "_sign", sign)


def places_a_duplicate_elsewhere(patch: pytest.MonkeyPatch) -> None:
    honest = Duplicates.in_memory

    def in_memory(duplicates: Duplicates, leaf_hash: bytes) -> int | None:
        index = honest(duplicates, leaf_hash)
        return index and index - 1

    patch.setattr(Duplicates, "in_memory", in_memory)


def lets_duplicates_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Duplicates, "may_be_stored", lambda *_: False)


def believes_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clock, "read", lambda clock, _: clock._wall_ms())


def believes_the_newest_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clock, "read", lambda clock, last_ms: max(last_ms, clock.steady_ms()))


def starts_with_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    def check(storage: SqliteStorage, head: SignedHead) -> Segment | None:
        return storage.segment_at(head.size)

    patch.setattr(startup, "_check_data", check)


def trims_what_is_not_written(patch: pytest.MonkeyPatch) -> None:
    async def catch_up(follower: Follower) -> None:
        while (derived := derive(follower._overlay)) is not None:
            follower._overlay.trim(derived.size)

    patch.setattr(Follower, "catch_up", catch_up)


WRONG = [
    (goes_on_after_a_swap_that_failed, "failed, and the log goes on"),
    (answers_before_the_swap, "went back from|the log refuses|was taken back"),
    (places_a_duplicate_elsewhere, "is not the one acknowledged there|is said to be new"),
    (lets_duplicates_in, "is in the log again"),
    (believes_any_time, "at a time that is not to be believed"),
    (believes_the_newest_time, "at a time that is not to be believed"),
    (starts_with_whatever_is_there, "went back from"),
    (trims_what_is_not_written, "lacks a|do not reach|do not have the root"),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("make_wrong", "message"), WRONG, ids=[wrong.__name__ for wrong, _ in WRONG])
def test_a_log_that_is_wrong_is_found_out(
    life: type[Life], monkeypatch: pytest.MonkeyPatch, make_wrong: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    make_wrong(monkeypatch)
    with pytest.raises(Exception, match=message):
        live(life, seed=1, lives=20, steps=LENGTH)
