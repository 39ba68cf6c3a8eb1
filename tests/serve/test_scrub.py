"""The scrub: whatever is damaged while a log is served stops its signing within a pass, and is named."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import asynccontextmanager, closing, suppress
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from tests.support.bulk import fill
from tests.support.grow import change_entry, create, edit, grow, raise_fatal, reseal, stored
from tests.support.operating import Tlogd, flip
from tests.support.scrape import scrape
from tests.support.server import Server, run_tlogd
from tests.support.serving import limit
from tests.support.wire import connected
from tlog.merkle import leaf_hash
from tlog.server import scrub as module
from tlog.server import stretch
from tlog.server.config import read_config
from tlog.server.derived import RECENT
from tlog.server.errors import DamageFoundError, StoppedError
from tlog.server.log import open_log
from tlog.server.mark import MARK_NAME, MAX_SPOTS, Spot, add_to_mark, read_mark, remove_mark
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.tiles import SCHEMA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.wire import Connection
    from tlog.server.log import ServedLog

pytestmark = pytest.mark.invariant("I24")

DAMAGED = 5
REFUSED = 3
FAST = 1 << 30
DEADLINE_S = 15.0
RUN = 1 << 16


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log of 701 entries in commits of 100: two full tiles, and entries above them."""
    data = tmp_path_factory.mktemp("template") / "log"
    config = create(data)
    for end in range(101, 702, 100):
        grow(config, [[b"entry %d" % number for number in range(end - 100, end)]])
    limit(data, scrub_bytes=FAST)
    return data


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    """Copy the template."""
    return shutil.copytree(template, tmp_path / "log")


def filled(folder: Path, size: int) -> Path:
    data = folder / "log"
    create(data)
    limit(data, scrub_bytes=FAST)
    fill(data, size, lambda index: b"entry %d" % index)
    return data


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log whose leaf index has a run."""
    return filled(tmp_path_factory.mktemp("large"), RUN + 1000)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log that is longer than what every start re-hashes."""
    return filled(tmp_path_factory.mktemp("long"), RECENT + 1000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes follow each other at once: a log in this process is scrubbed as fast as it goes."""
    monkeypatch.setattr(module, "FIRST_S", 0.0)
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(module, "PASS_BYTES", 1 << 22)
    monkeypatch.setattr(module, "DUTY", 0.9)


@asynccontextmanager
async def opened(data: Path, *, read_only: bool = False) -> AsyncIterator[ServedLog]:
    async with open_log(read_config(data / "treehead.toml"), raise_fatal, read_only=read_only) as log:
        yield log


async def until(is_so: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """Wait for something that the scrub brings about."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 — what is waited for sets no event
            await asyncio.sleep(0.01)


async def found(data: Path, change: Callable[[Path], None]) -> list[Spot]:
    """Change a log while it is open, and return what its mark says after some more passes."""
    async with opened(data) as log:
        await until(lambda: log.meter.scrubs >= 1)
        assert not log.damage
        size = log.head.size
        change(data)
        await until(lambda: log.damage)
        passes = log.meter.scrubs
        with suppress(TimeoutError):  # a pass that is cut off does not count
            await until(lambda: log.meter.scrubs > passes + 1, 0.5)
        with pytest.raises(StoppedError, match="nothing is signed"):
            await log.add(b"more")
        assert log.head.size == size
        assert not log.is_ready()
        assert log.is_healthy()
    return read_mark(data / MARK_NAME)


def sql(name: str, *statements: str) -> Callable[[Path], None]:
    return lambda data: edit(data / name, *statements)


def flipped(name: str, table: str, column: str, where: str, at: int = 0) -> Callable[[Path], None]:
    return lambda data: flip(data / name, table, column, where, at)


def resealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Do what somebody does who knows the format: change something, and compute the digests anew."""

    def run(data: Path) -> None:
        change(data)
        rehash(data)
        reseal(data / "log.db")

    return run


def rehash(data: Path) -> None:
    """Compute the digest of the leaf hashes of every commit anew."""
    entries = stored(data)
    with closing(sqlite3.connect(data / "log.db")) as connection:
        rows = connection.execute("SELECT first, count FROM segment").fetchall()
    leaves = [sha256(b"\0" + entry).digest() for entry in entries]
    digests = [(sha256(b"".join(leaves[first : first + count])).digest(), first) for first, count in rows]
    edit(data / "log.db", *(("UPDATE segment SET leaf_digest = ? WHERE first = ?", row) for row in digests))


def swap(data: Path) -> None:
    """Exchange the entries of two commits."""
    with closing(sqlite3.connect(data / "log.db")) as connection:
        rows = connection.execute("SELECT first, entries FROM segment WHERE first IN (101, 201)").fetchall()
    (one, framed), (other, others) = rows
    statement = "UPDATE segment SET entries = ? WHERE first = ?"
    edit(data / "log.db", (statement, (others, one)), (statement, (framed, other)))


def flip_leaf_digest(data: Path) -> None:
    flip(data / "log.db", "segment", "leaf_digest", "first = 301", 0)
    reseal(data / "log.db")


def execute(data: Path, name: str, statement: str) -> None:
    with closing(sqlite3.connect(data / name)) as connection:
        connection.execute(statement)


SEGMENT = "count, root, leaf_digest, time_ms, keys, digest, entries"
LOG = {
    "an entry": (lambda data: change_entry(data, 350), "entry 350 is not the one in the signed tree"),
    "the genesis entry": (lambda data: change_entry(data, 0), "entry 0 is not the one"),
    "the newest entry": (lambda data: change_entry(data, 700), "entry 700 is not the one"),
    "an entry and its digests": (resealed(lambda data: change_entry(data, 255)), "entry 255 is not the one"),
    "the length of an entry": (flipped("log.db", "segment", "entries", "first = 301"), "framing is broken"),
    "the order of commits": (resealed(swap), "entries 101 to 200 are not the ones"),
    "a root": (flipped("log.db", "segment", "root", "first = 301"), "the root stored at size 401"),
    "a root and the digest": (
        resealed(flipped("log.db", "segment", "root", "first = 301")),
        "the root stored at size 401",
    ),
    "the digest of leaves": (
        flip_leaf_digest,
        "entries 301 to 400: they are not the ones that came in",
    ),
    "a digest": (flipped("log.db", "segment", "digest", "first = 301"), "entries 301 to 400: their root, time"),
    "a time": (
        sql("log.db", "UPDATE segment SET time_ms = time_ms + 1 WHERE first = 301"),
        "entries 301 to 400: their",
    ),
    "keys": (sql("log.db", "UPDATE segment SET keys = zeroblob(80) WHERE first = 301"), "entries 301 to 400: their"),
    "a commit": (sql("log.db", "DELETE FROM segment WHERE first = 301"), "entries 301 to 400 are missing"),
    "the first commit": (sql("log.db", "DELETE FROM segment WHERE first = 0"), "entries 0 to 0 are missing"),
    "the newest commit": (sql("log.db", "DELETE FROM segment WHERE first = 601"), "entries 601 to 700 are missing"),
    "a commit too much": (
        sql("log.db", f"INSERT INTO segment (first, {SEGMENT}) SELECT 350, {SEGMENT} FROM segment WHERE first = 301"),
        "entries 350 to 400 are there twice",
    ),
    "a count": (sql("log.db", "UPDATE segment SET count = 99 WHERE first = 301"), "entries 400 to 400 are missing"),
    "a first index": (sql("log.db", "UPDATE segment SET first = 302 WHERE first = 301"), "entries 301 to 301 are"),
    "a trigger": (lambda data: execute(data, "log.db", "DROP TRIGGER segment_stays"), "has another schema"),
}
TILES = {
    "a hash": (flipped("tiles.db", "tile", "hashes", "id = 64", 4000), "tile/0/001"),
    "a tile": (sql("tiles.db", "DELETE FROM tile WHERE id = 0"), "lacks a tile"),
    "a tile's length": (
        sql("tiles.db", "PRAGMA ignore_check_constraints = 1", "UPDATE tile SET hashes = x'00' WHERE id = 0"),
        "a tile in tiles.db is damaged",
    ),
    "a bundle": (flipped("tiles.db", "bundle", "gzip", "id = 1", -10), "tile/entries/001"),
    "a bundle that is missing": (sql("tiles.db", "DELETE FROM bundle WHERE id = 0"), "tile/entries/000: it is missing"),
    "another bundle": (
        sql("tiles.db", "UPDATE bundle SET gzip = (SELECT gzip FROM bundle WHERE id = 0) WHERE id = 1"),
        "tile/entries/001",
    ),
    "a position before": (sql("tiles.db", "UPDATE position SET size = 256"), "does not say how far it goes"),
    "a position behind": (sql("tiles.db", "UPDATE position SET size = 1024"), "does not say how far it goes"),
    "the position": (sql("tiles.db", "DELETE FROM position"), "does not say how far it goes"),
    "a table": (lambda data: execute(data, "tiles.db", "CREATE TABLE more (id INTEGER)"), "has another schema"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", LOG)
async def test_damage_of_log_db_stops_the_signing_and_is_named(data: Path, case: str) -> None:
    change, what = LOG[case]
    spots = await found(data, change)
    assert any(spot.file == "log.db" and what in spot.what for spot in spots), spots


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", TILES)
async def test_damage_of_tiles_db_stops_the_signing_and_is_named(data: Path, case: str) -> None:
    change, what = TILES[case]
    spots = await found(data, change)
    assert any(spot.file == "tiles.db" and what in spot.what for spot in spots), spots
    assert {spot.file for spot in spots} == {"tiles.db"}


LEAVES = {
    "a filter": flipped("tiles.db", "leaf_run", "filter", "1", 1000),
    "an item": flipped("tiles.db", "leaf_bucket", "items", "1", 3),
    "a bucket": sql("tiles.db", "DELETE FROM leaf_bucket WHERE rowid % 256 = 7"),
    "a run": sql("tiles.db", "UPDATE leaf_run SET first = 1"),
    "a tile of level 1": flipped("tiles.db", "tile", "hashes", "id = 1", 77),
    "a tile of level 0": flipped("tiles.db", "tile", "hashes", f"id = {77 << 6}", 77),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", LEAVES)
async def test_damage_of_the_leaf_index_and_of_upper_tiles_is_found(large: Path, tmp_path: Path, case: str) -> None:
    data = shutil.copytree(large, tmp_path / "log")
    async with opened(data) as log:
        LEAVES[case](data)
        await until(lambda: log.damage)
        assert "tiles.db" in log.damage
    assert {spot.file for spot in read_mark(data / MARK_NAME)} == {"tiles.db"}


# When it is looked for, and how often.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("start", [0, 50, 350, 700])
@pytest.mark.parametrize("index", [5, 399, 690])
async def test_a_pass_finds_damage_wherever_it_begins(
    data: Path, start: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlog.server.scrub.random.randrange", lambda size: min(start, size - 1))
    monkeypatch.setattr(stretch, "MAX_STRETCH", 1)  # each commit is a stretch
    async with opened(data) as log:
        await until(lambda: log.meter.scrubs)
        assert log.meter.scrubbed >= log.head.size
        change_entry(data, index)
        passes = log.meter.scrubs
        await until(lambda: log.damage)
        assert log.meter.scrubs <= passes + 2
        assert f"entry {index} is not" in log.damage


@pytest.mark.usefixtures("quick")
async def test_what_is_damaged_at_the_first_look_only_does_not_count(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn: list[bytes] = []

    def once(entry: bytes) -> bytes:
        if entry == b"entry 77" and not torn:
            torn.append(entry)
            return bytes(32)
        return leaf_hash(entry)

    monkeypatch.setattr(stretch, "leaf_hash", once)
    async with opened(data) as log:
        await until(lambda: log.meter.scrubs >= 3)
        assert torn
        assert not log.damage
        assert (await log.add(b"more")).index == 701
    assert not (data / MARK_NAME).exists()


@pytest.mark.usefixtures("quick")
async def test_a_scrub_that_fails_otherwise_stops_the_signing_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entry: bytes) -> bytes:
        raise RuntimeError(str(len(entry)))

    monkeypatch.setattr(stretch, "leaf_hash", fail)
    async with opened(data) as log:
        await until(lambda: log.damage)
        with pytest.raises(StoppedError, match="cannot read its files again"):
            await log.add(b"more")


@pytest.mark.usefixtures("quick")
async def test_a_log_that_grows_while_it_is_scrubbed_is_whole_and_its_wal_stays_small(tmp_path: Path) -> None:
    data = tmp_path / "log"
    create(data)
    limit(data, scrub_bytes=FAST)
    largest = 0
    async with opened(data) as log:
        for number in range(80):
            await log.add_many([b"%d %d " % (number, at) + bytes(100) for at in range(1000)])
            for name in ("log.db-wal", "tiles.db-wal"):
                largest = max(largest, (data / name).stat().st_size)
        passes = log.meter.scrubs
        await until(lambda: log.meter.scrubs > passes + 1)
        assert not log.damage
        assert log.meter.damages == 0
        assert log.meter.scrubbed >= log.head.size
    assert largest < 32 << 20
    assert not (data / MARK_NAME).exists()


def pace(data: Path, scrub_bytes: int) -> None:
    """Change how fast a copy of the template is read."""
    file = data / "treehead.toml"
    file.write_text(file.read_text().replace(f"scrub_bytes = {FAST}", f"scrub_bytes = {scrub_bytes}"))


@pytest.fixture
def slow(data: Path) -> Path:
    """Return a log that may be read with 20,000 bytes a second, and has 200,000."""
    pace(data, 20_000)
    grow(read_config(data / "treehead.toml"), [[b"%d" % at + bytes(1_000)] for at in range(200)])
    return data


@pytest.mark.usefixtures("quick")
async def test_it_reads_no_faster_than_it_may(slow: Path) -> None:
    async with opened(slow) as log:
        began = time.monotonic()
        await until(lambda: time.monotonic() > began + 2)
        read, seconds = log.meter.scrubbed, time.monotonic() - began
        assert not log.meter.scrubs
    assert 1_000 * max(0, read - 701) <= 20_000 * seconds + stretch.READ_SIZE


async def test_it_can_be_turned_off(data: Path) -> None:
    pace(data, 0)
    async with opened(data):
        assert "scrub" not in {task.get_name() for task in asyncio.all_tasks()}


def test_a_run_of_the_leaf_index_that_is_merged_away_meanwhile_is_no_damage() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        store = LeafStore(connection)
        store.add(0, {bytes(32): 0})
        assert sum(1 for _ in store.reread()) > 2
        pieces = store.reread()
        next(pieces)
        next(pieces)
        connection.execute("DELETE FROM leaf_run")
        connection.execute("DELETE FROM leaf_bucket")
        assert list(pieces) == []


# The mark.


def test_a_mark_says_what_was_put_into_it_and_never_more_than_a_hundred_spots(tmp_path: Path) -> None:
    path = tmp_path / MARK_NAME
    assert read_mark(path) == []
    spots = [Spot("log.db", at, at + 1, f"entry {at}", 1) for at in range(MAX_SPOTS)]
    add_to_mark(path, spots[:1])
    add_to_mark(path, spots[1:])
    assert read_mark(path) == spots
    add_to_mark(path, [Spot("tiles.db", 0, 0, "more")])
    assert read_mark(path) == spots
    remove_mark(path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "other", "spots": []}', b"\xff", b"[" * 1000])
def test_a_mark_that_cannot_be_read_is_damage(data: Path, content: bytes) -> None:
    (data / MARK_NAME).write_bytes(content)
    with pytest.raises(DamageFoundError, match=MARK_NAME):
        read_mark(data / MARK_NAME)
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0") if not content else None
    if done is not None:
        assert done.returncode == DAMAGED
        assert "tlogd fsck --deep" in done.stderr


@pytest.mark.usefixtures("quick")
async def test_a_read_only_log_is_scrubbed_and_marked_and_stays_ready(data: Path) -> None:
    async with opened(data, read_only=True) as log:
        change_entry(data, 350)
        await until(lambda: log.damage)
        assert log.is_ready()
    assert "entry 350" in read_mark(data / MARK_NAME)[0].what
    change_entry(data, 350)
    async with opened(data, read_only=True) as log:
        await until(lambda: log.meter.scrubs)
        assert not log.damage
    assert read_mark(data / MARK_NAME)


# The whole program.


async def status(connection: Connection, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    response = await connection.request(method, path, body)
    return response.status, response.body.decode("utf-8", "replace")


async def test_a_server_stops_signing_reads_on_and_ends_with_5(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(data) as server:
        change_entry(data, 345)
        server.wait_for("scrub.damaged")
        async with connected(server.port) as connection:
            code, said = await status(connection, "POST", "/v1/entries", b"more")
            assert (code, "entry 345 is not the one in the signed tree" in said) == (503, True)
            code, said = await status(connection, "GET", "/readyz")
            assert (code, "entry 345" in said) == (503, True)
            for path in ("/livez", "/checkpoint", "/v1/entries/345", "/tile/entries/001", "/tile/0/001"):
                assert (await status(connection, "GET", path))[0] == 200, path
        found = await scrape(server.port)
        assert found["treehead_scrub_damaged", ("log", "localhost/x")] >= 1
        assert server.stop() == DAMAGED
        critical = server.events("scrub.damaged")
    assert (critical[0]["level"], critical[0]["file"]) == ("critical", "log.db")
    assert "entry 345" in Tlogd(capsys)("status", "--config", data / "treehead.toml").out
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert done.returncode == REFUSED
    assert "entry 345 in log.db is not the one in the signed tree" in done.stderr


async def test_a_bit_that_flips_below_sqlite_is_found_though_it_was_read_before(data: Path) -> None:
    with Server(data) as server:
        name = "treehead_scrub_passes_total", ("log", "localhost/x")
        for _ in range(int(DEADLINE_S * 10)):
            if (await scrape(server.port))[name]:
                break
            await asyncio.sleep(0.1)
        raw = (data / "log.db").read_bytes()
        at = raw.index(b"entry 345") + 8
        with (data / "log.db").open("r+b") as file:
            file.seek(at)
            file.write(bytes([raw[at] ^ 4]))
        server.wait_for("scrub.damaged")
        assert server.stop() == DAMAGED
    assert any("entry 345 is not" in spot.what for spot in read_mark(data / MARK_NAME))


def test_tiles_that_were_found_damaged_are_built_anew_by_the_next_start(data: Path) -> None:
    with Server(data) as server:
        flip(data / "tiles.db", "bundle", "gzip", "id = 1", -10)
        server.wait_for("scrub.damaged")
        assert server.stop() == DAMAGED
        assert {spot.file for spot in read_mark(data / MARK_NAME)} == {"tiles.db"}
        server.start()
        server.wait_for("mark.removed")
        assert server.events("tiles.rebuilding")
        assert not (data / MARK_NAME).exists()
        assert server.stop() == 0


def test_a_start_reads_again_what_the_mark_names_and_refuses_until_it_is_whole(
    long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tlogd = Tlogd(capsys)
    data = shutil.copytree(long, tmp_path / "log")
    config = data / "treehead.toml"
    with Server(data) as server:
        change_entry(data, 123)
        server.wait_for("scrub.damaged")
        assert server.stop() == DAMAGED
        done = run_tlogd("serve", "--config", config, "--port", "0")
        assert done.returncode == DAMAGED
        assert "entry 123 is not the one in the signed tree" in done.stderr
        assert "tlogd repair --from" in done.stderr
        checked = tlogd("fsck", "--deep", "--config", config)
        assert checked.code == DAMAGED
        assert "note: a scrub found damage" in checked.out
        change_entry(data, 123)  # back
        assert tlogd("fsck", "--deep", "--config", config).code == 0
        assert (data / MARK_NAME).exists()  # a check changes nothing
        server.start()
        server.wait_for("mark.removed")
        assert not (data / MARK_NAME).exists()
        assert server.stop() == 0
