"""Work on the thread of a connection: whole functions, whose outcome nobody misses."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tlog.server.errors import CommitError, StartRefusedError
from tlog.server.storage.database import WAL_PAGES, Database, Upkeep
from tlog.server.storage.segments import open_segments

if TYPE_CHECKING:
    from pathlib import Path


async def test_work_runs_on_one_thread_in_its_order(tmp_path: Path) -> None:
    database = await Database.open(partial(open_segments, tmp_path / "log.db", create=True))
    order: list[int] = []

    def work(number: int, _: sqlite3.Connection) -> int:
        order.append(number)
        return threading.get_ident()

    threads = await asyncio.gather(*(database.run(partial(work, number)) for number in range(20)))
    assert order == list(range(20))
    assert set(threads).isdisjoint({threading.get_ident()})
    assert len(set(threads)) == 1
    await database.close()


async def test_what_work_raises_comes_out(tmp_path: Path) -> None:
    database = await Database.open(partial(open_segments, tmp_path / "log.db", create=True))
    with pytest.raises(sqlite3.OperationalError):
        await database.run(lambda connection: connection.execute("junk"))
    assert await database.run(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    await database.close()


async def test_a_caller_that_is_cancelled_still_waits_for_the_outcome(tmp_path: Path) -> None:
    database = await Database.open(partial(open_segments, tmp_path / "log.db", create=True))
    started, go, done = threading.Event(), threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        started.set()
        assert go.wait(10)
        done.set()

    task = asyncio.create_task(database.run(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
    await database.close()


async def test_a_failed_opening_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(StartRefusedError):
            await Database.open(partial(open_segments, tmp_path / "log.db"))
    assert threading.active_count() == before


def test_the_wal_is_moved_after_enough_pages_and_not_before() -> None:
    class Counts:
        def __init__(self) -> None:
            self.checkpoints = 0

        def execute(self, statement: str) -> Counts:
            assert statement == "PRAGMA wal_checkpoint(PASSIVE)"
            self.checkpoints += 1
            return self

        def fetchall(self) -> list[object]:
            return []

    counts = Counts()
    upkeep = Upkeep(counts)  # type: ignore[arg-type]  # all that it uses
    for _ in range(WAL_PAGES // 5):
        upkeep.wrote(4096)
    assert counts.checkpoints == 0
    upkeep.wrote(1)
    assert counts.checkpoints == 1
    upkeep.wrote(4096 * WAL_PAGES)
    assert counts.checkpoints == 2


def test_a_disk_error_of_the_wal_checkpoint_is_fatal() -> None:
    class Fails:
        def execute(self, _: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    upkeep = Upkeep(Fails())  # type: ignore[arg-type]  # all that it uses
    with pytest.raises(CommitError, match="WAL checkpoint failed: disk I/O error"):
        upkeep.wrote(4096 * WAL_PAGES)
