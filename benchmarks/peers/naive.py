"""The peer that anybody would write first: aiohttp, SQLite, one row and transaction an entry, a tree kept leaf by leaf.

It signs nothing, reads nothing back and serves no proofs: it does less than a log must, and does it durably.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import sys

from aiohttp import web


class Naive:
    """One table of entries, and the hashes of the complete subtrees on the right edge."""

    def __init__(self, file: str) -> None:
        """Open a new database."""
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE TABLE entry (number INTEGER PRIMARY KEY, data BLOB NOT NULL, root BLOB NOT NULL)"
        )
        self._edge: list[tuple[int, bytes]] = []
        self._size = 0

    async def add(self, request: web.Request) -> web.Response:
        """Append the body, and answer with its index."""
        entry = await request.read()
        number = self._size
        self._size += 1
        height, top = 0, hashlib.sha256(b"\x00" + entry).digest()
        while self._edge and self._edge[-1][0] == height:
            height, top = height + 1, hashlib.sha256(b"\x01" + self._edge.pop()[1] + top).digest()
        self._edge.append((height, top))
        root = self._edge[-1][1]
        for _, peak in self._edge[-2::-1]:
            root = hashlib.sha256(b"\x01" + peak + root).digest()
        self._connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (number, entry, root))
        return web.Response(text=str(number))


async def serve(file: str) -> None:
    """Serve on a free port until killed."""
    app = web.Application()
    app.add_routes([web.post("/add", Naive(file).add)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
