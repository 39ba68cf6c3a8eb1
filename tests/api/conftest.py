"""A real log in a temporary folder, behind the real application."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from tests.support.grow import create, grow, raise_fatal, stored
from tests.support.rfc6962 import Tree
from tests.support.wire import connected
from tlog.server.api.serve import make_runner
from tlog.server.config import read_config
from tlog.server.limit import Limits
from tlog.server.log import ServedLog, open_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.wire import Connection, Headers
    from tlog.fetch import Response

SIZE = 700

DEFAULTS = Limits()


@dataclass
class Api:
    """A log with 700 entries, 512 of them in the tile store.

    Attributes:
        data: Its folder.
        log: The log.
        port: Where it listens.
        connection: A connection to it.
        tree: Its entries, for the oracle.
    """

    data: Path
    log: ServedLog
    port: int
    connection: Connection
    tree: Tree

    async def get(self, path: str | bytes, *headers: tuple[str, str]) -> Response:
        return await self.request("GET", path, None, headers)

    async def post(self, path: str, body: bytes, *headers: tuple[str, str]) -> Response:
        return await self.request("POST", path, body, headers)

    async def request(
        self, method: str, path: str | bytes, body: bytes | None = None, headers: Headers = ()
    ) -> Response:
        """Send a request over the one connection, or a new one where the server closed that."""
        try:
            return await self.connection.request(method, path, body, headers)
        except ConnectionResetError:
            async with connected(self.port) as fresh:
                return await fresh.request(method, path, body, headers)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the log once."""
    data = tmp_path_factory.mktemp("api") / "log"
    grow(create(data), [[b"entry %d " % number * (number % 4) + b"%d" % number for number in range(1, SIZE)]])
    return data


@pytest.fixture(params=[True, False], ids=["hot", "other"])
async def api(template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    """Serve a copy of the log as `tlogd serve` does, with and without a hot lane."""
    async with serving(shutil.copytree(template, tmp_path / "log"), hot_lane=bool(request.param)) as served:
        yield served


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    """Return the folder of a copy of the log."""
    return shutil.copytree(template, tmp_path / "copy")


@asynccontextmanager
async def serving(
    data: Path, limits: Limits = DEFAULTS, *, read_only: bool = False, hot_lane: bool = True
) -> AsyncIterator[Api]:
    """Open a log with some limits, and serve it."""
    config = msgspec.structs.replace(read_config(data / "treehead.toml"), limits=limits)
    async with open_log(config, raise_fatal, read_only=read_only) as log:
        runner = make_runner({"": log}, limits, hot_lane=hot_lane)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = int(runner.addresses[0][1])
            async with connected(port) as connection:
                yield Api(data, log, port, connection, Tree(stored(data)))
        finally:
            await runner.cleanup()
