"""Restored files: a log is never signed on from an older state, and derived data never changes what is served.

One log is recorded after each of its commits, and every test puts it together from files of different moments. What
must be refused is refused before anything is signed; what starts has the newest head, byte for byte, and serves every
tile and bundle as the RFC and the entries define them.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from contextlib import closing
from itertools import product
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from tests.operator.test_anchor import giving, web
from tests.support.grow import stored
from tests.support.recording import DATABASES, put, put_closed, record
from tests.support.rfc6962 import Tree
from tests.support.server import TLOGD, run_tlogd
from tests.support.static import addresses, content
from tests.support.wire import connected, head_of
from tlog.errors import TreeheadError
from tlog.server.config import read_config
from tlog.server.follower import gunzip
from tlog.server.log import open_log
from tlog.server.storage.tiles import Derived as Written
from tlog.server.storage.tiles import TileStore, create_tiles, open_tiles
from tlog.server.storage.wal import check_tiles
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.recording import Moment, Recording

pytestmark = [pytest.mark.invariant("I3", "I10"), pytest.mark.timeout(120)]

REFUSED = 3
STOPPED = 4
TRIES = 1200
PAUSE_S = 0.025
SIZES = 20
SMALL = [2, 3, 20, 255, 256, 257, 300, 301, 302, 511, 512, 513, 600, 700, 1000, 1023, 1024, 1025]
SMALL += [1026, 1027, 1500, 1501, 1502, 1790, 1792, 1793, 2100, 2101, 2102, 2303, 2304, 2305, 2600]
LARGE = [*SMALL, *range(6_000, 62_001, 4_000), 65_535, 65_536, 65_537, 65_793, 69_000, 69_001, 69_002]

Outcome = str
"""The message of a refusal; empty for a log that started as it should."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Record a log of 34 commits."""
    return record(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Record another log with the same sizes, of other entries."""
    return record(tmp_path_factory.mktemp("stranger"), SMALL[:14:2], seed=2)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Record a log beyond 65,536 entries."""
    return record(tmp_path_factory.mktemp("large"), LARGE, seed=3)


@pytest.fixture(params=["small", pytest.param("large", marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def recording(request: pytest.FixtureRequest) -> Recording:
    """Return a recorded log."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]  # pytest cannot tell


class Bench:
    """A folder in which logs are put together, opened, and compared with what they must be."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self.data = folder / "bench"
        self.counts: Counter[str] = Counter()
        self._trees: dict[int, Tree] = {}

    def set_up(self, moment: Moment, **restored: Moment) -> None:
        """Put a log of one moment together, but for the databases of others: `log`, `checkpoints`, `tiles`."""
        if self.data.exists():
            shutil.rmtree(self.data)
        self.data.mkdir()
        for name in ("treehead.toml", "key", "vkey"):
            shutil.copy(self.recording.data / name, self.data / name)
        for name in DATABASES:
            put_closed(restored.get(name.removesuffix(".db"), moment), name, self.data)

    def open(self, moment: Moment, anchors: Sequence[str] = (), file: str = "") -> Outcome:
        """Open the log; where it starts, it must have the head of a moment, its entries, its tiles and its bundles."""
        config = msgspec.structs.replace(
            read_config(self.data / "treehead.toml"), anchors=(*anchors,), anchor_file=file
        )
        before = {name: (self.data / name).read_bytes() for name in DATABASES[:2]}
        is_crashed = any((self.data / f"{name}-wal").exists() for name in before)

        async def run() -> None:
            async with open_log(config, _ignore) as log:
                assert log.head.note == moment.note
                for level, index, width in addresses(moment.size):
                    is_tile = level is not None
                    served = (
                        await log.tree.tile(Tile(level or 0, index, width))
                        if is_tile
                        else gunzip(await log.tree.bundle(Bundle(index, width)))
                    )
                    assert served == self._content(moment, (level, index, width))

        try:
            asyncio.run(run())
        except TreeheadError as error:
            self.counts["refused"] += 1
            if not is_crashed:
                assert {name: (self.data / name).read_bytes() for name in before} == before, "a refusal wrote something"
            return str(error)
        self.counts["started"] += 1
        assert stored(self.data) == self.recording.entries[: moment.size]
        return ""

    def _content(self, moment: Moment, address: tuple[int | None, int, int]) -> bytes:
        tree = self._trees.setdefault(moment.size, Tree(self.recording.entries[: moment.size]))
        return content(tree, address)

    def report(self, what: str) -> None:
        """Print the counts."""
        print(f"{what}: {dict(self.counts)}")  # noqa: T201


def _ignore(_: BaseException) -> None:
    raise AssertionError("the log stopped")


@pytest.fixture
def bench(recording: Recording, tmp_path: Path) -> Bench:
    """Return a bench."""
    return Bench(recording, tmp_path)


def pairs(recording: Recording, age: int, seed: int = 1) -> list[tuple[Moment, Moment]]:
    """Return moments at 20 sizes, each with one that is at least so many commits older; exactly one for age 1."""
    dice, moments = random.Random(seed), recording.moments
    chosen = sorted(dice.sample(range(age, len(moments)), SIZES))
    return [(moments[at], moments[at - 1 if age == 1 else dice.randrange(at - age + 1)]) for at in chosen]


# One file of several.


def test_a_log_db_of_an_older_moment_is_refused_at_20_sizes(bench: Bench) -> None:
    for newest, then in [*pairs(bench.recording, 2), *pairs(bench.recording, 1)]:
        bench.set_up(newest, log=then)
        assert f"log.db holds {then.size} entries, but {newest.size} are signed" in bench.open(newest)
    assert bench.counts == {"refused": 2 * SIZES}
    bench.report("restored log.db")


def test_a_checkpoint_store_two_or_more_commits_old_is_refused_at_20_sizes(bench: Bench) -> None:
    for newest, then in pairs(bench.recording, 2):
        bench.set_up(newest, checkpoints=then)
        message = bench.open(newest)
        assert f"log.db is ahead of the signed head {then.size} by more than one commit" in message
        assert "checkpoints.db restored?" in message
    assert bench.counts == {"refused": SIZES}
    bench.report("restored checkpoints.db")


def test_a_checkpoint_store_one_commit_old_is_brought_to_the_very_same_head_at_20_sizes(bench: Bench) -> None:
    for newest, then in pairs(bench.recording, 1):
        bench.set_up(newest, checkpoints=then)
        assert bench.open(newest) == ""
    assert bench.counts == {"started": SIZES}
    bench.report("checkpoints.db of one commit before")


def test_tiles_of_any_moment_serve_the_very_same_bytes_at_20_sizes(bench: Bench) -> None:
    dice = random.Random(3)
    for newest, _ in pairs(bench.recording, 2, seed=4):
        bench.set_up(newest, tiles=dice.choice(bench.recording.moments))
        assert bench.open(newest) == ""
    bench.report("restored tiles.db")


def test_tiles_of_another_log_serve_the_very_same_bytes_at_20_sizes(bench: Bench, stranger: Recording) -> None:
    dice = random.Random(5)
    for newest, _ in pairs(bench.recording, 2, seed=6):
        bench.set_up(newest, tiles=dice.choice(stranger.moments))
        assert bench.open(newest) == ""
    bench.report("tiles.db of another log")


# Data and checkpoint store together: what an anchor is for.


@pytest.mark.invariant("I11")
def test_without_an_anchor_data_and_checkpoint_store_restored_together_start_which_is_what_an_anchor_is_for(
    bench: Bench,
) -> None:
    for newest, then in pairs(bench.recording, 2):
        bench.set_up(newest, log=then, checkpoints=then)
        assert bench.open(then) == ""
    bench.report("both restored, no anchor")


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("whole", [False, True], ids=["both databases", "the whole folder"])
def test_data_and_checkpoint_store_restored_together_are_refused_with_an_anchor_at_20_sizes(
    bench: Bench, tmp_path: Path, *, whole: bool
) -> None:
    outside = tmp_path / "outside"
    for newest, then in pairs(bench.recording, 2):
        if whole:
            bench.set_up(then)
        else:
            bench.set_up(newest, log=then, checkpoints=then)
        outside.write_bytes(newest.note)
        with web(giving(newest.note)) as url:
            for message in (
                bench.open(then, [str(outside)]),
                bench.open(then, [url]),
                bench.open(then, file=str(outside)),
            ):
                assert "the log was taken back" in message
                assert f"at size {newest.size}, and here it is signed up to {then.size}" in message
        assert outside.read_bytes() == newest.note
    assert bench.counts == {"refused": 3 * SIZES}
    bench.report("both restored, with an anchor")


@pytest.mark.invariant("I11")
def test_the_program_refuses_a_restored_folder_beside_the_head_that_it_wrote(
    recording: Recording, tmp_path: Path
) -> None:
    newest, then = recording.moments[-1], recording.moments[-9]
    data, outside = recording.copy(tmp_path / "log", newest), tmp_path / "outside"
    outside.write_bytes(newest.note)
    for name in DATABASES:
        put(then, name, data)
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0", "--write-anchor", outside)
    assert done.returncode == REFUSED
    assert "tlogd: the log was taken back" in done.stderr
    assert outside.read_bytes() == newest.note


# Write-ahead logs that a crash left.


def mixtures(recording: Recording, name: str, most: int) -> list[tuple[Moment, Moment]]:
    """Return moments of a database and of a WAL to put beside it."""
    with_wal = [moment for moment in recording.moments if (moment.folder / f"{name}-wal").exists()]
    found = list(product(recording.moments, with_wal))
    return found if len(found) <= most else random.Random(7).sample(found, most)


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db", "tiles.db"])
@pytest.mark.parametrize("most", [20, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_database_with_the_wal_of_another_moment_is_refused_or_gives_what_was_signed(
    small: Recording, tmp_path: Path, name: str, most: int
) -> None:
    bench, newest = Bench(small, tmp_path), small.moments[-1]
    reasons: Counter[str] = Counter()
    moments = [(moment, newest) for moment in small.moments[-6:]]
    for database, wal in [*moments, *mixtures(small, name, most)]:
        bench.set_up(newest)
        put(database, name, bench.data, wal)
        before = [(bench.data / f"{name}{ending}").read_bytes() for ending in ("", "-wal")]
        message = bench.open(newest)
        assert not message or name != "tiles.db", message
        if "do not belong together" in message:
            assert [(bench.data / f"{name}{ending}").read_bytes() for ending in ("", "-wal")] == before
        reasons[message.partition(": ")[2][:40] if "belong" in message else message[:40]] += 1
    assert bench.counts["started"] >= 1
    bench.report(f"{name} with the WAL of another moment")
    print(dict(reasons))  # noqa: T201


def test_each_moment_as_a_crash_leaves_it_starts(small: Recording, tmp_path: Path) -> None:
    bench = Bench(small, tmp_path)
    for moment in small.moments:
        bench.set_up(moment)
        for name in DATABASES:
            put(moment, name, bench.data)
        assert bench.open(moment) == ""
    bench.report("as a crash leaves it")


def test_tiles_whose_wal_is_of_another_moment_are_told_although_sqlite_reads_them_without_an_error(
    tmp_path: Path,
) -> None:
    """Many small transactions, a copy behind each: what content alone cannot tell, the numbers do."""
    copies = tile_copies(tmp_path, 32)
    told, silent = 0, 0
    for (old, _), (_, beside) in product(copies, copies):
        path = tmp_path / "mixed.db"
        for ending in ("", "-wal", "-shm"):
            (tmp_path / f"mixed.db{ending}").unlink(missing_ok=True)
        path.write_bytes(old)
        path.with_name("mixed.db-wal").write_bytes(beside)
        try:
            check_tiles(path)
            is_told = False
        except TreeheadError:
            is_told = True
        is_wrong = bundles_in(path) not in range(1, 33)
        told += is_told
        silent += is_wrong and is_told
        assert is_told or not is_wrong
        assert not is_told or (old, beside) not in copies, "a pair that belongs together was refused"
    assert silent, "no mixture was wrong without an error of SQLite: this test shows nothing"
    print(f"{len(copies) ** 2} mixtures: {told} told, {silent} of them wrong without an error of SQLite")  # noqa: T201


def tile_copies(folder: Path, number: int) -> list[tuple[bytes, bytes]]:
    """Write bundles, one a transaction, and return copies of tiles.db and its WAL behind each."""
    path, found = folder / "tiles.db", []
    create_tiles(path).close()
    with closing(open_tiles(path)) as connection:
        store = TileStore(connection)
        for index in range(number):
            bundle = (Bundle(index, 256), b"%d " % index * 100)
            store.write(Written([], [bundle], 256 * (index + 1)))
            found.append((path.read_bytes(), path.with_name("tiles.db-wal").read_bytes()))
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()  # the next one begins a WAL
    return found


def bundles_in(path: Path) -> int:
    """Return how many bundles a tile store has, as far as its position says; -1 where some are missing."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            (size,) = connection.execute("SELECT size FROM position").fetchone()
            rows = connection.execute("SELECT id, gzip FROM bundle ORDER BY id").fetchall()
    except sqlite3.Error:
        return 1  # SQLite tells it, so the start does
    whole = rows == [(index, b"%d " % index * 100) for index in range(size // 256)]
    return size // 256 if whole else -1


# What lies beside a database and conflicts with it.


@pytest.mark.parametrize("name", DATABASES)
def test_a_journal_beside_a_database_is_refused_before_sqlite_takes_it_back_in_time(
    small: Recording, tmp_path: Path, name: str
) -> None:
    bench, newest = Bench(small, tmp_path), small.moments[-1]
    bench.set_up(newest)
    (bench.data / f"{name}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    message = bench.open(newest)
    assert f"{bench.data / name}-journal is not of this program" in message
    assert "move it away" in message
    (bench.data / f"{name}-journal").unlink()
    assert bench.open(newest) == ""


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
def test_a_wal_whose_database_is_missing_is_refused_and_kept(small: Recording, tmp_path: Path, name: str) -> None:
    bench, newest = Bench(small, tmp_path), small.moments[-1]
    bench.set_up(newest)
    put(newest, name, bench.data)
    (bench.data / name).rename(bench.data / "away")
    wal = (bench.data / f"{name}-wal").read_bytes()
    done = run_tlogd("serve", "--config", bench.data / "treehead.toml", "--port", "0")
    assert done.returncode == REFUSED
    assert f"{bench.data / name} is missing, and its write-ahead log {name}-wal is there" in done.stderr
    assert (bench.data / f"{name}-wal").read_bytes() == wal
    assert not (bench.data / name).exists()


def test_drafts_copies_and_what_was_set_aside_are_nobodys_business(small: Recording, tmp_path: Path) -> None:
    bench, newest = Bench(small, tmp_path), small.moments[-1]
    bench.set_up(newest)
    for name in ("log.db.bak", "log.db.damaged-1", "log.db.damaged-1-wal", ".log.db.0badcafe.part", "tiles.db.new"):
        (bench.data / name).write_bytes(b"what a crash left")
    for name in ("tiles.db.new-wal", "tiles.db.new-journal", ".log.db.0badcafe.part-journal", "log.db.601-journal"):
        (bench.data / name).write_bytes(b"what a crash left")
    (bench.data / "tiles.db").unlink()
    assert bench.open(newest) == ""


# Two writers.


class Rivals:
    """Two folders of one log with one checkpoint store."""

    def __init__(self, recording: Recording, moment: Moment, folder: Path) -> None:
        self.folder = folder
        self.neither = 0
        self.data = [recording.copy(folder / "one", moment)]
        for ending in ("", "-wal"):
            (self.data[0] / f"checkpoints.db{ending}").rename(folder / f"store.db{ending}")
        file = self.data[0] / "treehead.toml"
        store = f'checkpoints = "{folder / "store.db"}"'
        file.write_text(file.read_text().replace('checkpoints = "checkpoints.db"', store))
        self.data.append(shutil.copytree(self.data[0], folder / "other"))

    def start(self) -> list[subprocess.Popen[bytes]]:
        """Start both at once, and return when each listens or has ended."""
        processes = []
        for data in self.data:
            with (self.folder / f"{data.name}.err").open("wb") as errors:
                command = [*TLOGD, "serve", "--config", str(data / "treehead.toml"), "--port", "0"]
                processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors))
        for process, data in zip(processes, self.data, strict=True):
            for _ in range(TRIES):
                if process.poll() is not None or "server.listening" in self.said(data):
                    break
                threading.Event().wait(PAUSE_S)
        return processes

    def start_one(self) -> tuple[list[subprocess.Popen[bytes]], int]:
        """Start both at once until one of them serves, and return which.

        Each may keep the other out of the checkpoint store in the same instant; then both refuse, and nothing is lost.
        """
        for _ in range(10):
            processes = self.start()
            alive = [at for at in (0, 1) if processes[at].poll() is None]
            if len(alive) == 1:
                return processes, alive[0]
            for at in alive:
                processes[at].kill()
            assert not alive, "both serve the log"
            for process, data in zip(processes, self.data, strict=True):
                assert process.wait() == REFUSED
                assert "store.db is in use by another process" in self.said(data)
            self.neither += 1
        raise AssertionError("none of them ever starts")

    def said(self, data: Path) -> str:
        """Return what the process of a folder wrote to standard error."""
        return (self.folder / f"{data.name}.err").read_text()

    def port(self, data: Path) -> int:
        """Return where it listens."""
        lines = [json.loads(line) for line in self.said(data).splitlines() if "server.listening" in line]
        return int(lines[0]["port"])


def two_writers(recording: Recording, folder: Path, rounds: int) -> None:
    """Serve a log and a copy of its folder with one checkpoint store, at once: one goes on, and no head forks."""
    codes, neither = Counter[int](), 0
    for number, moment in enumerate(random.Random(rounds).choices(recording.moments[:20], k=rounds)):
        (folder / str(number)).mkdir()
        rivals = Rivals(recording, moment, folder / str(number))
        processes, winner = rivals.start_one()
        neither += rivals.neither
        try:
            codes[processes[1 - winner].wait()] += 1
            entries = uvloop.run(_add_two(rivals.port(rivals.data[winner])))
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)
        assert processes[winner].returncode == 0
        assert stored(rivals.data[winner]) == [*recording.entries[: moment.size], *entries]
        done = run_tlogd("serve", "--config", rivals.data[1 - winner] / "treehead.toml", "--port", "0")
        assert done.returncode == REFUSED
        assert "entries are missing" in done.stderr
        assert stored(rivals.data[1 - winner]) == recording.entries[: moment.size]
    assert set(codes) <= {REFUSED, STOPPED}
    print(  # noqa: T201
        f"{rounds} rounds of two writers: one went on each time, the other ended with {dict(codes)}; "
        f"{neither} times both kept each other out, and started again"
    )


async def _add_two(port: int) -> list[bytes]:
    entries = [b"one more", b"and another"]
    async with connected(port) as connection:
        size, _ = head_of((await connection.request("GET", "/checkpoint")).body)
        for index, entry in enumerate(entries, size):
            answer = await connection.request("POST", "/add", entry)
            assert (answer.status, int(answer.body)) == (200, index)
    return entries


@pytest.mark.invariant("I14")
def test_of_a_log_and_a_copy_with_one_checkpoint_store_that_start_at_once_one_goes_on_over_2_rounds(
    small: Recording, tmp_path: Path
) -> None:
    two_writers(small, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.invariant("I14")
def test_of_a_log_and_a_copy_with_one_checkpoint_store_that_start_at_once_one_goes_on_over_50_rounds(
    small: Recording, tmp_path: Path
) -> None:
    two_writers(small, tmp_path, 50)
