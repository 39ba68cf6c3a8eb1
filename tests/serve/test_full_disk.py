"""Real volumes that are filled to the last byte, by the log itself and by others; and the ballast that helps then."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.server import TLOGD, Server, init_log, run_tlogd
from tests.support.serving import limit
from tests.support.volume import fill, free, release, volume
from tests.support.wire import connected
from tlog.cbor import decode
from tlog.server.ballast import BALLAST_NAME, keep_ballast

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve

pytestmark = pytest.mark.invariant("I18")

MIB = 1 << 20
VOLUME = 64 * MIB
FLOOR = 12 * MIB
BALLAST = 4 * MIB
OTHERS = 8 * MIB
"""What others keep on the volume until somebody makes room: more than the log was short of."""

SMALL = "file system with small blocks"


def allocated(path: Path) -> int:
    """Return the bytes that a file really takes up."""
    return path.stat().st_blocks * 512


# ------------------------------------------------------------------------------------------------------- the ballast


def test_a_served_log_has_its_ballast_from_the_first_start_on(serve: Serve, tmp_path: Path) -> None:
    server = serve(ballast_bytes=3 * MIB + 5)
    path = tmp_path / "log" / BALLAST_NAME
    assert path.stat().st_size == 3 * MIB + 5
    assert path.stat().st_mode & 0o777 == 0o600
    assert allocated(path) >= 3 * MIB
    assert len(server.events("ballast.made")) == 1
    made = path.stat().st_ino
    assert server.stop() == 0
    server.start()
    assert path.stat().st_ino == made
    status = run_tlogd("status", "--config", tmp_path / "log" / "treehead.toml").stdout
    assert f"{path}, {3 * MIB + 5:,} bytes" in status
    assert server.stop() == 0
    path.unlink()
    server.start()
    assert allocated(path) >= 3 * MIB
    assert server.stop() == 0
    assert sorted(file.name for file in path.parent.iterdir() if BALLAST_NAME in file.name) == [BALLAST_NAME]


def test_without_room_for_it_there_is_no_ballast_and_the_log_is_served(serve: Serve, tmp_path: Path) -> None:
    server = serve(ballast_bytes=3 * MIB, free_bytes=1 << 60)
    (line,) = server.events("ballast.missing")
    assert line["reason"] == "too little free space"
    assert not (tmp_path / "log" / BALLAST_NAME).exists()


def test_a_name_that_is_taken_is_no_reason_to_stop(serve: Serve, tmp_path: Path) -> None:
    server = serve(ballast_bytes=MIB)
    path = tmp_path / "log" / BALLAST_NAME
    assert server.stop() == 0
    path.unlink()
    path.mkdir()
    server.start()
    assert len(server.events("ballast.missing")) == 1
    assert path.is_dir()


def test_a_log_that_is_served_read_only_gets_no_ballast(tmp_path: Path) -> None:
    data = tmp_path / "log"
    init_log(data)
    limit(data, ballast_bytes=MIB)
    command = ("sh", "-c", 'exec "$0" "$@" --read-only', *TLOGD)
    with Server(data, command) as server:
        assert server.stop() == 0
    assert not (data / BALLAST_NAME).exists()


@pytest.mark.parametrize("size", [MIB, 2 * MIB, 3 * MIB])
def test_a_ballast_gets_the_size_of_the_configuration(tmp_path: Path, size: int) -> None:
    path = tmp_path / BALLAST_NAME
    keep_ballast(tmp_path, 2 * MIB, 0)
    assert allocated(path) >= 2 * MIB
    keep_ballast(tmp_path, size, 0)
    assert (path.stat().st_size, allocated(path) >= size) == (size, True)
    keep_ballast(tmp_path, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_ballast_with_holes_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / BALLAST_NAME
    with path.open("xb") as file:
        file.truncate(MIB)
    assert allocated(path) == 0
    keep_ballast(tmp_path, MIB, 0)
    assert allocated(path) >= MIB


@pytest.mark.parametrize("reserves", ["not at all", "holes only"])
def test_a_ballast_is_written_where_the_system_reserves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserves: str
) -> None:
    if reserves == "not at all":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", lambda file, _, size: os.ftruncate(file, size))
    keep_ballast(tmp_path, MIB + 7, 0)
    path = tmp_path / BALLAST_NAME
    assert (path.stat().st_size, allocated(path) >= MIB) == (MIB + 7, True)


def test_a_ballast_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    keep_ballast(tmp_path, MIB, 0)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- a full volume


class Filled:
    """A log on a small volume, and what was acknowledged of it."""

    def __init__(self, place: Path, **limits: int) -> None:
        self.data = place / "log"
        init_log(self.data)
        limit(self.data, **limits)
        self.config = self.data / "treehead.toml"
        self.server = Server(self.data)
        self.acknowledged: list[bytes] = []
        self._bytes = random.Random(0)

    async def add(self, count: int = 1, size: int = 60_000) -> int:
        """Add entries of a size until one is not taken; return the last status, 0 for an answer that never came."""
        status = 0
        with suppress(ConnectionError):
            async with connected(self.server.port) as connection:
                for _ in range(count):
                    entry = self._bytes.randbytes(size)
                    status = 0
                    response = await connection.request("POST", "/add", entry)
                    status = response.status
                    if status != 200:
                        break
                    self.acknowledged.append(entry)
                    assert int(response.body) == len(self.acknowledged)
        return status

    async def check(self) -> None:
        """Check that everything that was acknowledged is served as it came, and that everything is signed."""
        async with connected(self.server.port) as connection:
            for index, entry in enumerate(self.acknowledged, 1):
                response = await connection.request(
                    "GET", f"/v1/entries/{index}", None, (("Accept", "application/cbor"),)
                )
                answer = decode(response.body)
                assert isinstance(answer, dict)
                assert answer["entry"] == entry
        assert self.server.stop() == 0
        done = run_tlogd("fsck", "--deep", "--config", self.config)
        assert done.returncode == 0, done.stdout

    def refusal(self) -> tuple[int, str]:
        """Try to start; return the exit code and what was said, or 0 where it is served."""
        said = len(self.server.stderr)
        try:
            self.server.start()
        except AssertionError:
            return self.server.code, self.server.stderr[said:]
        self.server.kill()
        return 0, ""


@pytest.mark.parametrize("kind", ["tmpfs", "ext4-4096"])
async def test_at_the_floor_adding_ends_and_whatever_else_fills_the_disk_nothing_is_lost(
    tmp_path: Path, kind: str
) -> None:
    with volume(tmp_path, kind, VOLUME) as place:
        (place / "others").write_bytes(bytes(OTHERS))
        log = Filled(place, free_bytes=FLOOR, ballast_bytes=BALLAST)
        with log.server as server:
            assert await log.add(2000) == 507
            assert len(log.acknowledged) > 100
            assert free(place) >= FLOOR - 2 * MIB
            await until(server.port, "follower_lag_entries", 256)  # it writes nothing any more
            fill(place / "junk")
            await until(server.port, "disk_free_bytes", 4096)
            assert await log.add() == 507
            async with connected(server.port) as connection:
                for path in ("/checkpoint", "/v1/entries/1", "/readyz"):
                    assert (await connection.request("GET", path)).status == 200
            server.kill()
            fill(place / "junk")

            code, said = log.refusal()
            if code:
                assert code == 3
                assert (
                    f"its disk is full: free some space, in the worst case by removing {log.data / 'ballast'}" in said
                )
            fill(place / "junk")
            (log.data / BALLAST_NAME).unlink()
            server.start()
            assert await log.add() == 507
            assert not (log.data / BALLAST_NAME).exists()
            assert server.stop() == 0

            (place / "junk").unlink()
            (place / "others").unlink()
            server.start()
            assert allocated(log.data / BALLAST_NAME) >= BALLAST
            assert await log.add() == 200
            await log.check()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4-4096"])
async def test_a_commit_that_meets_the_full_disk_stops_the_log_and_the_ballast_lets_it_go_on(
    tmp_path: Path, kind: str
) -> None:
    with volume(tmp_path, kind, VOLUME) as place:
        log = Filled(place, free_bytes=0, ballast_bytes=BALLAST)
        with log.server as server:
            assert await log.add(20, 100) == 200
            fill(place / "junk")
            release(place / "junk", 16 << 10)
            assert await log.add() == 0
            assert server.wait() == 4
            (line,) = server.events("log.stopped")
            assert "full" in str(line["reason"])
            fill(place / "junk")
            code, said = log.refusal()
            if code:
                assert code in {3, 4}
                assert "full" in said
            fill(place / "junk")
            (log.data / BALLAST_NAME).unlink()
            limit(log.data, free_bytes=MIB)
            server.start()
            assert await log.add() in {200, 507}
            (place / "junk").unlink()
            assert server.stop() == 0
            server.start()
            unanswered = await _size(server.port) - 1 - len(log.acknowledged)
            assert unanswered in {0, 1}
            assert server.stop() == 0
            log.acknowledged += _newest(log.data, unanswered)
            server.start()
            await log.check()


async def until(port: int, name: str, below: int) -> None:
    """Wait until a number of a server is small."""
    for _ in range(1000):
        if (await scrape(port))[f"treehead_{name}", ("log", "localhost/x")] < below:
            return
    raise AssertionError(f"{name} stays where it is")


async def _size(port: int) -> int:
    async with connected(port) as connection:
        return int((await connection.request("GET", "/checkpoint")).body.split(b"\n")[1])


def _newest(data: Path, count: int) -> list[bytes]:
    """Return the newest entries of a log that is not served."""
    from tests.support.grow import stored  # noqa: PLC0415  # for this alone

    return stored(data)[-count:] if count else []


# ------------------------------------------------------------------------------------------------------ small blocks


def test_small_blocks_are_refused_before_a_full_disk_kills_the_server(tmp_path: Path) -> None:
    init_log(tmp_path / "log")
    with volume(tmp_path, "ext4-1024", 8 * MIB) as place:
        shutil.copytree(tmp_path / "log", place / "log")
        done = run_tlogd("serve", "--config", place / "log" / "treehead.toml", "--port", "0")
        assert done.returncode == 3
        assert f"the file system of {place / 'log'} has blocks of 1024 bytes" in done.stderr
        assert "mkfs.ext4 -b 4096" in done.stderr
        before = sorted(place.iterdir())
        done = run_tlogd("init", "--origin", "localhost/y", "--data", place / "new")
        assert done.returncode == 1
        assert "blocks of 1024 bytes" in done.stderr
        assert sorted(place.iterdir()) == before


OPEN_WAL = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM t").fetchone()
"""


@pytest.mark.parametrize(("kind", "ended"), [("ext4-1024", -signal.SIGBUS), ("ext4-4096", "an error, or well")])
def test_sqlite_is_killed_on_a_full_disk_of_small_blocks_alone(tmp_path: Path, kind: str, ended: object) -> None:
    with volume(tmp_path, kind, 8 * MIB) as place:
        connection = sqlite3.connect(place / "t.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (1)")
        shutil.copy(place / "t.db-wal", tmp_path / "wal")
        connection.close()
        shutil.copy(tmp_path / "wal", place / "t.db-wal")
        fill(place / "junk")
        release(place / "junk", 12 << 10)  # enough for a byte in each 4096 of 32768, and not for the rest
        done = subprocess.run([sys.executable, "-c", OPEN_WAL, place / "t.db"], capture_output=True, check=False)
        assert done.returncode == ended if isinstance(ended, int) else done.returncode in {0, 1}
