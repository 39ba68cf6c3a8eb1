"""The peer with a library: pymerkle's SqliteTree, which keeps entries and leaf hashes in SQLite, behind aiohttp.

Adds are durable by the library's own settings. Inclusion proofs are its own, for a tree that is filled at the start.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import TYPE_CHECKING, Protocol, cast

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Proof(Protocol):
    """What is used of the library's proof."""

    def serialize(self) -> dict[str, object]:
        """Return it as JSON has it."""


class Tree(Protocol):
    """What is used of the library's tree; it counts entries from 1 on."""

    def append_entry(self, data: bytes) -> int:
        """Append an entry durably, and return its number."""

    def append_entries(self, entries: Iterable[bytes]) -> int:
        """Append entries, and return the size."""

    def prove_inclusion(self, index: int, size: int) -> Proof:
        """Prove an entry in the tree of a size."""


async def serve(file: str, size: int) -> None:
    """Serve a tree of that size on a free port until killed."""
    make = cast("Callable[..., Tree]", importlib.import_module("pymerkle").SqliteTree)  # only its environment has it
    tree = make(file, algorithm="sha256")
    if size:
        tree.append_entries((b"%d " % number).ljust(300, b"x") for number in range(size))

    async def add(request: web.Request) -> web.Response:
        return web.Response(text=str(tree.append_entry(await request.read()) - 1))

    async def prove(request: web.Request) -> web.Response:
        index, wanted = int(request.match_info["index"]), int(request.match_info["size"])
        return web.json_response(tree.prove_inclusion(index + 1, wanted).serialize())

    app = web.Application()
    app.add_routes([web.post("/add", add), web.get("/v1/proofs/inclusion/{index}/{size}", prove)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
