"""What the hottest paths cost, in calls of Python and C functions: a count, which no clock and no other load changes.

A limit is what was counted when it was set, and a tenth more. A change that goes beyond makes the log slower: it finds
a cheaper way, or sets a new limit and says why. The cost of an entry is the slope between few and many; what is done
once a commit is counted apart.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, raise_fatal
from tlog.server.api.bodies import Bodies
from tlog.server.api.lane import Lane
from tlog.server.api.rate import Rates
from tlog.server.api.traffic import Traffic
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import FrameType

    from tlog.server.log import ServedLog


class Calls:
    """Counts calls by thread while it is on."""

    def __init__(self) -> None:
        self.counts: Counter[bool] = Counter()  # by whether it was the thread of the event loop
        self._is_on = False

    def note(self, _: FrameType, event: str, __: object) -> None:
        if self._is_on and event in ("call", "c_call"):
            self.counts[threading.current_thread() is threading.main_thread()] += 1

    @contextmanager
    def counting(self) -> Iterator[Counter[bool]]:
        """Count until the block ends."""
        self.counts = Counter()
        self._is_on = True
        try:
            yield self.counts
        finally:
            self._is_on = False


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Profile this thread, and all that are started meanwhile."""
    found = Calls()
    threading.setprofile(found.note)
    sys.setprofile(found.note)
    yield found
    sys.setprofile(None)
    threading.setprofile(None)


class Link:
    """A client that takes answers."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def reply(self, data: bytes) -> None:
        self.answers.append(data)

    def await_reply(self) -> None:
        pass

    def reply_late(self, data: bytes) -> None:
        self.answers.append(data)
        self.answered.set_result(None)


@asynccontextmanager
async def hot(folder: Path) -> AsyncIterator[tuple[Lane, ServedLog]]:
    """Open a log and its hot lane; nothing else runs meanwhile."""
    async with open_log(create(folder / "log"), raise_fatal) as log:
        yield Lane({"": log}, Traffic(problems=Counter()), Rates(0, 1), Bodies(1 << 27)), log


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/cbor\r\n\r\n".encode()


def post(path: str, entry: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/cbor\r\nContent-Length: {len(entry)}\r\n\r\n"
    )
    return head.encode() + entry


async def add(lane: Lane, path: str, count: int) -> None:
    """Add entries, all in one commit."""
    requests = [post(path, f"{path} {count} {number} ".encode().ljust(300)) for number in range(count)]
    links = [Link() for _ in requests]
    for link, request in zip(links, requests, strict=True):
        assert lane.take(link, request) == len(request)
    for link in links:
        await link.answered
        assert link.answers[0].startswith(b"HTTP/1.1 20")


FEW, MANY = 20, 220


# Each limit is of the thread of the event loop, and of the thread of the commit.
@pytest.mark.parametrize(("path", "loop_limit", "commit_limit"), [("/add", 93, 19), ("/v1/entries", 144, 19)])
async def test_an_entry_costs_few_calls(
    tmp_path: Path, calls: Calls, path: str, loop_limit: int, commit_limit: int
) -> None:
    async with hot(tmp_path) as (lane, _):
        await add(lane, path, 3)
        found = []
        for count in (FEW, MANY):
            with calls.counting() as counts:
                await add(lane, path, count)
            found.append(dict(counts))
    few, many = found
    loop, commit = ((many[is_loop] - few[is_loop]) / (MANY - FEW) for is_loop in (True, False))
    print(f"{path}: {loop:.1f} calls an entry, {commit:.1f} in the commit")  # noqa: T201
    assert loop < loop_limit
    assert commit < commit_limit


async def test_a_commit_costs_few_calls(tmp_path: Path, calls: Calls) -> None:
    async with hot(tmp_path) as (lane, _):
        await add(lane, "/add", 2)
        with calls.counting() as counts:
            await add(lane, "/add", 1)
        loop, commit = counts[True], counts[False]
    print(f"a commit of one entry: {loop} calls, {commit} in the commit")  # noqa: T201
    assert loop < 600
    assert commit < 540


READS = [("/checkpoint", 26), ("/tile/0/000", 26), ("/tile/entries/000", 26), ("/v1/proofs/inclusion/3/600", 132)]


@pytest.mark.parametrize(("path", "limit"), READS, ids=[path for path, _ in READS])
async def test_a_read_of_what_memory_has_costs_few_calls(tmp_path: Path, calls: Calls, path: str, limit: int) -> None:
    async with hot(tmp_path) as (lane, log):
        await add(lane, "/add", 600)
        async with asyncio.timeout(10):
            while log.gauges().lag >= 256:  # noqa: ASYNC110 — the follower is what is waited for
                await asyncio.sleep(0.001)
        await log.read_entry(3)  # from the disk, with its proof
        link, request = Link(), get(path)
        assert lane.take(link, request) == len(request)
        with calls.counting() as counts:
            for _ in range(100):
                lane.take(link, request)
    assert len(set(link.answers)) <= 3, "the date may have changed"
    print(f"{path}: {counts[True] / 100:.1f} calls")  # noqa: T201
    assert counts[True] / 100 < limit
