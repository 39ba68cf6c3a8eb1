"""The peer with a library: pymerkle's SqliteTree, which keeps every node in SQLite, behind aiohttp."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import TYPE_CHECKING, Protocol, cast

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable


class Tree(Protocol):
    """What is used of the library's tree."""

    def append_entry(self, data: bytes) -> int:
        """Append an entry durably; return its number, from 1 on."""


async def serve(file: str) -> None:
    """Serve on a free port until killed."""
    make = cast("Callable[..., Tree]", importlib.import_module("pymerkle").SqliteTree)  # only its environment has it
    tree = make(file, algorithm="sha256")

    async def add(request: web.Request) -> web.Response:
        return web.Response(text=str(tree.append_entry(await request.read()) - 1))

    app = web.Application()
    app.add_routes([web.post("/add", add)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
