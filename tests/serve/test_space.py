"""A log takes no entries while its disk is too full."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import stored
from tests.support.scrape import scrape
from tests.support.server import run_tlogd
from tests.support.wire import connected
from tlog.server.errors import CommitError, NoSpaceError, StartRefusedError
from tlog.server.space import Space, check_blocks, is_full

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve

pytestmark = pytest.mark.invariant("I18")


class Disk:
    """Stands for statvfs(2), and counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 30
        self.looks = 0
        self.now = 0.0
        honest = os.statvfs("/")

        def look(_: Path) -> os.statvfs_result:
            self.looks += 1
            fields = list(honest)
            fields[1:5] = [4096, honest.f_blocks, honest.f_bfree, self.free // 4096]  # frsize, …, bavail
            return os.statvfs_result(fields)

        monkeypatch.setattr(os, "statvfs", look)

    def clock(self) -> float:
        return self.now


def test_below_the_floor_is_refused_and_from_it_on_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(monkeypatch)
    space = Space([tmp_path], 1 << 30, disk.clock)
    space.check()
    disk.free -= 4096
    space.check()  # not looked at yet
    disk.now += 1
    with pytest.raises(NoSpaceError, match="1023 MiB"):
        space.check()
    disk.free += 4096
    disk.now += 1
    space.check()


def test_what_is_promised_counts_as_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    space = Space([tmp_path], 1 << 29, Disk(monkeypatch).clock)
    space.check(1 << 29)
    with pytest.raises(NoSpaceError):
        space.check((1 << 29) + 1)


def test_the_disk_is_looked_at_twenty_times_a_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(monkeypatch)
    space = Space([tmp_path], 0, disk.clock)
    for _ in range(1000):
        space.check()
        disk.now += 0.001
    assert disk.looks == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("block", "is_refused"), [(512, True), (1024, True), (2048, True), (4096, False), (65536, False)]
)
def test_blocks_must_hold_a_step_of_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: int, *, is_refused: bool
) -> None:
    fields = list(os.statvfs("/"))
    fields[1] = block
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    with pytest.raises(StartRefusedError, match=f"blocks of {block} bytes") if is_refused else nullcontext():
        check_blocks(tmp_path)


def test_the_fullest_volume_counts(tmp_path: Path) -> None:
    assert Space([tmp_path], 0).free > 0
    assert Space([tmp_path, tmp_path / ("x" * 300)], 0).free == 0  # nobody can tell


def test_a_place_that_is_gone_is_no_full_disk(tmp_path: Path) -> None:
    told: list[CommitError] = []
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.touch()
    space = Space([tmp_path, file], 0, on_gone=told.append)
    assert (space.free > 0, told) == (True, [])
    file.unlink()
    space.look()
    file.parent.rmdir()
    file.parent.touch()
    space.look()
    assert [str(error).partition(":")[0] for error in told] == [f"{file} is gone"] * 2
    assert not is_full(file)


@pytest.mark.invariant("I6", "I8")
@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
async def test_a_database_that_is_moved_away_stops_the_log_and_what_it_acknowledged_is_in_it(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    server, data = serve(), tmp_path / "log"
    acknowledged = dict[int, bytes]()
    number = 0
    with suppress(ConnectionError):
        async with connected(server.port) as connection:
            while True:
                number += 1
                if number == 10:
                    (data / name).rename(data / "away")
                answer = await connection.request("POST", "/add", b"%d" % number)
                assert answer.status == 200, answer.body
                acknowledged[int(answer.body)] = b"%d" % number
    assert server.wait() == 4
    assert f"{data / name} is gone" in str(server.events("log.stopped")[-1]["reason"])
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert (done.returncode, f"{data / name} is missing" in done.stderr) == (3, True), done.stderr
    (data / "away").rename(data / name)
    server.start()
    assert server.stop() == 0
    kept = stored(data)
    assert len(acknowledged) >= 9
    assert {index: kept[index] for index in acknowledged} == acknowledged


async def test_a_full_disk_is_507_and_reading_goes_on(serve: Serve) -> None:
    server = serve(free_bytes=1 << 60)
    async with connected(server.port) as connection:
        for path in ("/add", "/v1/entries"):
            response = await connection.request("POST", path, b"entry")
            assert response.status == 507
            assert b"urn:treehead:problem:no-space" in response.body
            assert response.headers["cache-control"] == "no-store"
        assert (await connection.request("GET", "/checkpoint")).status == 200
        assert (await connection.request("GET", "/v1/entries/0")).status == 200
        assert (await connection.request("GET", "/readyz")).status == 200
    found = await scrape(server.port)
    assert found["treehead_problems_total", ("type", "no-space")] == 2
    assert found["treehead_disk_free_bytes", ("log", "localhost/x")] > 0
    assert found["treehead_tree_size", ("log", "localhost/x")] == 1
