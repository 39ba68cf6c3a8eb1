"""Everything at once: batches, single adds, duplicates, followers and restarts; then the whole log is checked.

The load runs through the client library, which verifies each answer. At the end each entry has one index, whoever sent
it, how often and when, and `tlog fsck` finds nothing.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.grow import stored
from tests.support.server import Server, init_log
from tlog.errors import CouldNotCheckError
from tlog_client import AsyncLog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tlog_client import Added

TLOG = str(Path(sys.executable).parent / "tlog")
SINGLES = 64
BATCH = 1000
FOLLOWERS = 3


@dataclass
class Load:
    """What was sent, and what was answered.

    Attributes:
        log: The client that everybody uses.
        batched: Entries that go in by batch.
        index: The one index of each entry that was acknowledged.
        new: How often each entry was called new.
    """

    log: AsyncLog
    batched: int
    dice: random.Random
    index: dict[bytes, int] = field(default_factory=dict)
    new: dict[bytes, int] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        singles = [self._singles(number) for number in range(SINGLES)]
        followers = [self._follow() for _ in range(FOLLOWERS)]
        batches = [self._batches(part, 4) for part in range(4)]
        work = [asyncio.create_task(one) for one in (*singles, *followers)]
        await asyncio.gather(*batches)
        self.done.set()
        await asyncio.gather(*work)

    def _keep(self, entries: Iterable[bytes], added: Iterable[Added]) -> None:
        for entry, one in zip(entries, added, strict=True):
            assert self.index.setdefault(entry, one.index) == one.index, "an entry got a second index"
            self.new[entry] = self.new.get(entry, 0) + one.is_new

    async def _batches(self, part: int, parts: int) -> None:
        """Send every batch twice in a random order, with entries of others mixed in."""
        starts = [start for start in range(0, self.batched, BATCH) for _ in range(2)]
        mine = starts[part::parts]
        self.dice.shuffle(mine)
        for start in mine:
            entries = [b"batched %d" % number for number in range(start, min(start + BATCH, self.batched))]
            entries += self.dice.sample(list(self.index), min(20, len(self.index)))
            await self._send(entries)

    async def _singles(self, number: int) -> None:
        """Send entries of one's own, and again and again one that somebody else may be sending right now."""
        count = 0
        while not self.done.is_set():
            count += 1
            own = b"single %d %d" % (number, count)
            shared = b"batched %d" % self.dice.randrange(self.batched)
            await self._send([self.dice.choice([own, own, shared])])

    async def _send(self, entries: list[bytes]) -> None:
        """Send until it is answered; the server may be restarted meanwhile."""
        for _ in range(100):
            try:
                added = [await self.log.add(entries[0])] if len(entries) == 1 else await self.log.add_many(entries)
            except CouldNotCheckError:
                await asyncio.sleep(0.1)
                continue
            self._keep(entries, added)
            return
        raise AssertionError("the log does not come back")

    async def _follow(self) -> None:
        """Look at every entry as it is published."""
        expected = 0
        async for published in self.log.tail(0):
            assert published.index == expected
            expected += 1
            assert self.index.get(published.entry, published.index) == published.index
            if self.done.is_set() and expected >= max(self.index.values()):
                return


async def _restart(server: Server, done: asyncio.Event, dice: random.Random, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(dice.uniform(1, 2))
        if done.is_set():
            return
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


async def _load(server: Server, vkey: str, state: Path, batched: int, restarts: int) -> Load:
    async with AsyncLog(f"http://127.0.0.1:{server.port}", vkey, state_dir=state) as log:
        load = Load(log, batched, random.Random(batched))
        restarting = asyncio.create_task(_restart(server, load.done, random.Random(restarts), restarts))
        await load.run()
        await restarting
    return load


def surface(folder: Path, batched: int, restarts: int) -> None:
    data = folder / "log"
    vkey = init_log(data)
    with Server(data) as server:
        load = uvloop.run(_load(server, vkey, folder / "state", batched, restarts))
        command = [TLOG, "fsck", "--log", f"http://127.0.0.1:{server.port}", "--vkey", vkey, "--state-dir"]
        checked = subprocess.run([*command, folder / "state"], capture_output=True, text=True, timeout=300, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert server.stop() == 0
    entries = stored(data)[1:]
    assert len(set(entries)) == len(entries), "an entry is in the log twice"
    assert {entry: index for index, entry in enumerate(entries, 1)} == load.index
    assert batched <= len(entries)
    assert all(count <= 1 for count in load.new.values()), "an entry was new twice"
    print(f"{len(entries)} entries, {batched} of them by batch, {restarts} kills: each has one index")  # noqa: T201


@pytest.mark.timeout(120)
def test_6000_entries_by_batch_with_64_single_adders_and_followers_over_2_kills(tmp_path: Path) -> None:
    surface(tmp_path, 6_000, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_100000_entries_by_batch_with_64_single_adders_and_followers_over_10_kills(tmp_path: Path) -> None:
    surface(tmp_path, 100_000, 10)
