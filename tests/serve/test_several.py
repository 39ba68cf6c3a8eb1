"""Several logs in one process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import faulty_tlogd
from tests.support.scrape import scrape
from tests.support.server import Server, init_log, run_tlogd
from tests.support.wire import connected, head_of

if TYPE_CHECKING:
    from pathlib import Path

ORIGINS = {"a": "localhost/a", "b": "localhost/b"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make two logs, and the file of a server of both."""
    for name, origin in ORIGINS.items():
        init_log(tmp_path / name, origin=origin)
    tables = [f'[[log]]\nprefix = "/{name}"\ndata = "{name}"\n' for name in ORIGINS]
    (tmp_path / "treehead.toml").write_text("version = 1\n\n" + "\n".join(tables))
    return tmp_path


async def test_each_log_is_below_its_prefix_and_the_rest_at_the_root(data: Path) -> None:
    with Server(data) as server:
        async with connected(server.port) as connection:
            for number in range(3):
                assert (await connection.request("POST", "/a/add", b"%d" % number)).status in (200, 201)
            assert (await connection.request("POST", "/b/add", b"x")).body == b"1"
            for name, size in (("a", 4), ("b", 2)):
                note = (await connection.request("GET", f"/{name}/checkpoint")).body
                assert note.startswith(f"{ORIGINS[name]}\n".encode())
                assert head_of(note)[0] == size
            assert (await connection.request("GET", "/checkpoint")).status == 404
            assert (await connection.request("GET", "/readyz")).status == 200
        found = await scrape(server.port)
        assert [found["treehead_entries_total", ("log", origin)] for origin in ORIGINS.values()] == [3, 1]
        assert server.stop() == 0
        assert [event["origin"] for event in server.events("log.closed")] == list(ORIGINS.values())


def test_one_that_refuses_to_start_stops_all_and_leaves_the_others_as_they_were(data: Path) -> None:
    (data / "b" / "log.db").rename(data / "b" / "elsewhere")
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert done.returncode == 3
    (data / "b" / "elsewhere").rename(data / "b" / "log.db")
    with Server(data) as server:
        assert server.stop() == 0


async def test_the_failure_of_one_ends_the_process(data: Path) -> None:
    with Server(data) as server:
        assert server.stop() == 0
        server.start(program=(sys.executable, faulty_tlogd.__file__, "append", "before", "raise", "1"))
        async with connected(server.port) as connection:
            with pytest.raises(ConnectionError):
                await connection.request("POST", "/b/add", b"x")
        assert server.wait() == 4
        server.start()
        async with connected(server.port) as connection:
            assert (await connection.request("POST", "/b/add", b"x")).body == b"1"
