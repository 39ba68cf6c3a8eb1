"""A log takes no entries while its disk is too full."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.wire import connected
from tlog.server.errors import NoSpaceError
from tlog.server.space import Space

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve


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


def test_the_disk_is_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = Disk(monkeypatch)
    space = Space([tmp_path], 0, disk.clock)
    for _ in range(1000):
        space.check()
        disk.now += 0.01
    assert disk.looks == pytest.approx(10, abs=1)


def test_the_fullest_volume_counts(tmp_path: Path) -> None:
    assert Space([tmp_path], 0).free > 0
    assert Space([tmp_path, tmp_path / "missing"], 0).free == 0


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
