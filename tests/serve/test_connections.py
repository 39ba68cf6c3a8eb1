"""How many connections there may be, and what happens beyond that."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.server import TLOGD, Server, init_log
from tests.support.serving import dialled
from tests.support.wire import connected

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve

pytestmark = pytest.mark.invariant("I19")

FEW_FILES = ("sh", "-c", 'ulimit -n 64 && exec "$0" "$@"', *TLOGD)
"""`tlogd` with 64 file descriptors."""

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def is_live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Return whether a connection is served; False where the server closes it."""
    writer.write(LIVEZ)
    try:
        async with asyncio.timeout(5):
            return (await reader.readuntil(b"live\n")).startswith(b"HTTP/1.1 200")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def test_a_connection_beyond_the_limit_is_503_and_closed(serve: Serve) -> None:
    server = serve(connections=10)
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(dialled(server.port)) for _ in range(10)]
        assert all([await is_live(*each) for each in served])
        async with dialled(server.port) as (reader, _):  # it sends nothing
            async with asyncio.timeout(5):
                answer = await reader.read()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in head
            assert b"\r\nCache-Control: no-store" in head
            assert json.loads(body)["type"] == "urn:treehead:problem:busy"
        assert all([await is_live(*each) for each in served])
        for _, writer in served[:5]:
            writer.close()
        await until_served(server.port)
    found = await scrape(server.port)
    assert found["treehead_connections_refused_total", ()] >= 1
    assert found["treehead_problems_total", ("type", "busy")] == found["treehead_connections_refused_total", ()]
    assert "Traceback" not in server.stderr


async def until_served(port: int) -> None:
    """Wait until a new connection is served: the server has seen that another is closed."""
    async with asyncio.timeout(5):
        while True:
            async with dialled(port) as each:
                if await is_live(*each):
                    return


async def test_a_server_without_descriptors_goes_on_with_the_connections_it_has(tmp_path: Path) -> None:
    init_log(tmp_path / "log")
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "log", FEW_FILES))
        assert server.events("server.few_files")
        async with connected(server.port) as honest, AsyncExitStack() as crowd:
            for _ in range(150):
                await crowd.enter_async_context(dialled(server.port))
            for number in range(50):
                assert (await honest.request("POST", "/add", b"%d" % number)).status in (200, 201)
            await crowd.aclose()
        await until_served(server.port)
        assert (await scrape(server.port))["treehead_tree_size", ("log", "localhost/x")] == 51
        assert "Traceback" not in server.stderr
        assert server.stop() == 0
        server.start()
