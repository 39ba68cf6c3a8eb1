"""A real process under real load: what it acknowledges is there, and what a head promises can be had at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.server import Server, init_log
from tests.support.static import Address, addresses, every_width, path, unframed
from tests.support.wire import Connection, Pool, connected, pool
from tests.support.witness import Seen
from tlog.checkpoint import Checkpoint
from tlog.fetch import CBOR, HAVE_HEADER, over_http, parse_answer
from tlog.merkle import verify_consistency, verify_inclusion
from tlog.reader import TileCache, read_consistency_proof, read_entries, read_inclusion_proof

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.rfc6962 import Tree

pytestmark = pytest.mark.invariant("I5", "I6")

CONNECTIONS = 64
ENTRIES = 20_000
KILL_AFTER = 9_000


class Run:
    """One load on one server that is killed once on the way."""

    def __init__(self, server: Server, seen: Seen, total: int) -> None:
        self.server = server
        self.seen = seen
        self.total = total
        self.up = asyncio.Event()
        self.up.set()
        self.done = asyncio.Event()
        self.numbers = iter(range(10**9))
        self.checked: set[int] = set()

    async def add(self, *, rich: bool) -> None:
        """Add entry after entry over one connection, and over a new one after the kill."""
        while not self.done.is_set():
            await self.up.wait()
            try:
                async with connected(self.server.port) as connection:
                    await (self._add_rich(connection) if rich else self._add_plain(connection))
            except ConnectionError:
                assert not self.up.is_set() or self.done.is_set(), "the server hung up"

    def entries(self) -> Iterator[bytes]:
        while len(self.seen.acknowledged) < self.total:
            number = next(self.numbers)
            yield b"%d " % number * (1 + number % 40)
        self.done.set()

    async def _add_plain(self, connection: Connection) -> None:
        for entry in self.entries():
            response = await connection.request("POST", "/add", entry)
            assert response.status == 200
            self.seen.acknowledgement(int(response.body), entry)

    async def _add_rich(self, connection: Connection) -> None:
        """Add with proofs, and check them as they come."""
        have, root = 0, b""
        for entry in self.entries():
            headers = (("Accept", CBOR), (HAVE_HEADER, str(have)))
            response = await connection.request("POST", "/v1/entries", entry, headers)
            assert response.status == 201
            answer = parse_answer(response.body)
            self.seen.acknowledgement(answer.index, entry)
            size = self.seen.head(answer.checkpoint)
            assert answer.index < size
            verify_inclusion(answer.leaf_hash, answer.index, size, answer.proof, self.seen.heads[size])
            if have:
                assert answer.consistency is not None
                assert answer.consistency[0] == have
                verify_consistency(have, size, answer.consistency[1], root, self.seen.heads[size])
            have, root = size, self.seen.heads[size]

    async def watch(self) -> None:
        """Fetch everything of each head the moment it appears."""
        while not self.done.is_set():
            await self.up.wait()
            try:
                async with pool(self.server.port) as readers:
                    await self._watch(readers)
            except ConnectionError:
                assert not self.up.is_set(), "the server hung up"

    async def _watch(self, readers: Pool) -> None:
        while not self.done.is_set():
            (response,) = await readers.get_all(["/checkpoint"])
            assert response.status == 200
            size = self.seen.head(response.body)
            await self.fetch(readers, {*addresses(size)})
            self.checked.add(size)

    async def fetch(self, readers: Pool, wanted: set[Address]) -> None:
        ordered = sorted(wanted, key=path)
        self.seen.tiles(ordered, await readers.get_all(map(path, ordered)))

    async def kill_once(self) -> None:
        """Kill the server under load, start it again, and fetch everything of every head that was seen before."""
        while len(self.seen.acknowledged) < KILL_AFTER:  # noqa: ASYNC110  # nobody has an event for it
            await asyncio.sleep(0.01)
        before = set(self.seen.heads)
        self.up.clear()
        self.server.kill()
        self.server.start()
        assert self.server.start_s < 5
        async with pool(self.server.port) as readers:
            await self.fetch(readers, {address for size in before for address in addresses(size)})
        self.up.set()


@pytest.mark.timeout(180)
def test_64_connections_add_20000_entries_while_every_tile_of_every_head_is_there_also_across_a_kill(
    tmp_path: Path,
) -> None:
    seen = Seen(init_log(tmp_path / "log"))
    with Server(tmp_path / "log") as server:
        run = uvloop.run(_load(server, seen))
        uvloop.run(_compare(server, seen, run))
        assert server.stop() == 0
        assert "request.failed" not in server.stderr


async def _load(server: Server, seen: Seen) -> Run:
    run = Run(server, seen, ENTRIES)
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for work in (run.kill_once(), run.watch(), *(run.add(rich=number % 8 == 0) for number in range(CONNECTIONS))):
            tasks.create_task(work)
    seconds = time.monotonic() - began
    count = len(seen.acknowledged)
    print(f"{count} adds in {seconds:.1f} s, {count / seconds:.0f} a second; restart {server.start_s:.2f} s")  # noqa: T201
    print(f"{len(seen.heads)} heads seen, of {len(run.checked)} all tiles fetched at once: {len(seen.served)} kinds")  # noqa: T201
    assert count >= ENTRIES
    assert len(run.checked) > 20
    return run


async def _compare(server: Server, seen: Seen, run: Run) -> None:
    """Check all that was seen, then proofs by HTTP against proofs from tiles against the definition."""
    async with pool(server.port) as readers:
        (response,) = await readers.get_all(["/checkpoint"])
        size = seen.head(response.body)
        await run.fetch(readers, {*addresses(size)})
        bundles = [address for address in addresses(size) if address[0] is None]
        tree = seen.check([entry for bundle in bundles for entry in unframed(seen.served[bundle])])
        assert len(tree.entries) == size
        assert tree.entries[0].count(b"treehead/genesis/v1") == 1
        await _compare_proofs(readers, seen, tree)
        await run.fetch(readers, set(random.Random(1).sample(sorted(every_width(size), key=path), 2000)))
        seen.check(tree.entries)


async def _compare_proofs(readers: Pool, seen: Seen, tree: Tree) -> None:
    dice = random.Random(2)
    cache = TileCache()
    heads = sorted(seen.heads)
    for size in dice.sample(heads, 60):
        head = Checkpoint("localhost/x", size, seen.heads[size])
        index, old = dice.randrange(size), dice.choice([other for other in heads if other <= size])
        inclusion, consistency, entry = await readers.get_all(
            [f"/v1/proofs/inclusion/{index}/{size}", f"/v1/proofs/consistency/{old}/{size}", f"/v1/entries/{index}"]
        )
        wanted = tree.path(index, 0, size)
        assert [b64decode(part) for part in json.loads(inclusion.body)["proof"]] == wanted
        assert json.loads(inclusion.body)["leafHash"] == tree.mth(index, index + 1).hex()
        assert await readers.run(over_http(read_inclusion_proof(head, index, cache))) == wanted
        wanted = tree.proof(old, size)
        assert [b64decode(part) for part in json.loads(consistency.body)["proof"]] == wanted
        assert await readers.run(over_http(read_consistency_proof(head, old, cache))) == wanted
        assert b64decode(json.loads(entry.body)["entry"]) == tree.entries[index]
        assert await readers.run(over_http(read_entries(head, index, index + 1, cache))) == [tree.entries[index]]
