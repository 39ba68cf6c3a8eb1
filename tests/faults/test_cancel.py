"""A task can be cancelled at every await of a submission and of a commit: nothing is half done, lost, or done twice.

Each await is tried in two moments: when the task begins to wait, and when what it waits for is there and it has not
gone on yet. What was admitted is in the log or never was; the next one works; what is under way at the end is nothing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count, product
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from tests.support.cancel import CancelledAt, Moment, outcome
from tests.support.grow import create, grow, raise_fatal, stored
from tests.support.wire import connected
from tests.support.witness import Seen
from tlog.cbor import Value, encode
from tlog.fetch import CBOR, parse_batch_answer
from tlog.server import derived, leaves, rebuild
from tlog.server.api.serve import make_runner
from tlog.server.config import read_config
from tlog.server.errors import CommitError, StoppedError
from tlog.server.idempotency import request_key
from tlog.server.log import open_log
from tlog.server.sequencer import Sequencer
from tlog.server.storage import leaves as leaf_store
from tlog.server.storage.database import Database
from tlog.server.storage.segments import open_segments

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from aiohttp.typedefs import Handler, Middleware

    from tests.support.wire import Headers
    from tlog.fetch import Response
    from tlog.server.log import ServedLog
    from tlog.server.sequencer import Placed

    Submitting = Coroutine[object, None, list[Placed]]
    Submit = Callable[["Log", list[bytes], str], Submitting]

pytestmark = pytest.mark.invariant("I4", "I6", "I8", "I17")

RUN = 256
SIZE = 701
MOST = 40
"""More suspension points than anything here has."""


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the leaf index begin to write runs early, so that duplicates are looked up in it."""
    for module in (derived, leaves, leaf_store, rebuild):
        monkeypatch.setattr(module, "RUN", RUN)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log of which 512 entries are in two runs of the leaf index, and the rest in memory."""
    data = tmp_path_factory.mktemp("cancel") / "log"
    with pytest.MonkeyPatch.context() as patch:
        for module in (derived, leaves, leaf_store, rebuild):
            patch.setattr(module, "RUN", RUN)
        config = create(data)
        grow(config, [[b"old %d" % number for number in range(1, SIZE)]])
        grow(config, [])  # with what the first one had no time to derive
    return data


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "log")


class Log:
    """An open log, and what was sent to it and answered."""

    def __init__(self, log: ServedLog, seen: Seen) -> None:
        self.log = log
        self.seen = seen
        self.sent: set[bytes] = set()
        self.cancelled = 0
        self._numbers = count()

    def fresh(self, number: int = 1) -> list[bytes]:
        """Return entries that the log has never seen."""
        return [b"new %d" % next(self._numbers) for _ in range(number)]

    async def add(self, entries: Sequence[bytes], key: str | None = None) -> list[Placed]:
        """Submit, and note the answer."""
        self.sent |= set(entries)
        request = None if key is None else request_key(key, "/route", b"\n".join(entries))
        placed = await self.log.add_many(entries, request)
        for one, entry in zip(placed, entries, strict=True):
            assert one.index < self.seen.head(one.head.note)
            assert self.seen.acknowledged.setdefault(one.index, entry) == entry
        return placed

    async def settled(self) -> None:
        """Check that an entry goes in, and that then nothing is left under way."""
        await asyncio.wait_for(self.add(self.fresh()), 20)
        for _ in range(1000):
            if not any(self._under_way()):
                break
            await asyncio.sleep(0.001)
        assert not any(self._under_way()), "something stays under way for ever"

    def _under_way(self) -> list[int]:
        writer = self.log._writable()
        pool, keyed = writer.pool, writer.admission._keyed
        return [pool.entries, pool.bytes, pool.committing, pool.places, len(pool.joinable), len(pool._open), len(keyed)]


@asynccontextmanager
async def opened(data: Path, *, dedup: bool = True) -> AsyncIterator[Log]:
    """Open a log; when it is closed, everything that was answered is there, once."""
    config = msgspec.structs.replace(read_config(data / "treehead.toml"), dedup=dedup)
    async with open_log(config, raise_fatal) as served:
        log = Log(served, Seen(config.vkey))
        yield log
        await log.settled()
    judge(data, log)


def judge(data: Path, log: Log) -> None:
    """Check what a log holds against what was answered."""
    entries = stored(data)
    log.seen.check(entries)
    assert len(set(entries)) == len(entries), "an entry was appended twice"
    assert set(entries[SIZE:]) <= log.sent


def new(log: Log, entries: list[bytes], _: str) -> Submitting:
    return log.add(entries)


def keyed(log: Log, entries: list[bytes], key: str) -> Submitting:
    return log.add(entries, key)


def in_memory(log: Log, entries: list[bytes], key: str) -> Submitting:
    return log.add([b"old 690", *entries, b"old 691", entries[0]], key)


def in_the_leaf_index(log: Log, entries: list[bytes], key: str) -> Submitting:
    return log.add([b"old 5", *entries, b"old 300"], key)


def old_alone(log: Log, _: list[bytes], key: str) -> Submitting:
    return log.add([b"old 5", b"old 300", b"old 690"], key)


SUBMISSIONS = [new, keyed, in_memory, in_the_leaf_index, old_alone]


def moments() -> Iterator[tuple[int, Moment]]:
    """Yield every point and moment, more than there are."""
    return product(range(1, MOST), Moment)


@pytest.mark.parametrize("submit", SUBMISSIONS)
async def test_a_submission_can_be_cancelled_at_every_await_and_sent_again(data: Path, submit: Submit) -> None:
    reached = 0
    async with opened(data) as log:
        for at, moment in moments():
            entries, key = log.fresh(3), f"{at}-{moment.name}"
            work = CancelledAt(submit(log, entries, key), at, moment)
            answered = await outcome(work)
            assert (answered is None) == work.was_reached
            again = await asyncio.wait_for(submit(log, entries, key), 20)
            assert answered is None or [one.index for one in answered] == [one.index for one in again]
            await log.settled()
            if not work.was_reached:
                break
            reached += 1
        else:
            raise AssertionError("there is no end to it")
    assert reached >= 2
    print(f"{submit.__name__}: cancelled {reached} times")  # noqa: T201


async def test_a_request_under_a_key_is_carried_out_once_wherever_its_first_try_is_cancelled(data: Path) -> None:
    async with opened(data, dedup=False) as log:
        for at, moment in moments():
            entries, key = log.fresh(3), f"{at}-{moment.name}"
            work = CancelledAt(keyed(log, entries, key), at, moment)
            await outcome(work)
            first, second = await asyncio.gather(keyed(log, entries, key), keyed(log, entries, key))
            assert [one.index for one in first] == [one.index for one in second]
            await log.settled()
            if not work.was_reached:
                break


@pytest.mark.parametrize(
    ("same_key", "submit"), [(False, new), (True, keyed), (False, in_the_leaf_index), (True, in_memory)]
)
async def test_one_who_brings_an_entry_and_one_who_joins_it_can_both_be_cancelled_anywhere(
    data: Path, submit: Submit, *, same_key: bool
) -> None:
    tried = 0
    async with opened(data) as log:
        most = await _points(log, submit)
        for (at, moment), (at_too, moment_too) in product(
            product(range(most + 1), Moment), product(range(most + 2), Moment)
        ):
            entries, key = log.fresh(2), f"{tried}"
            owner = CancelledAt(submit(log, entries, key), at, moment)
            joiner = CancelledAt(submit(log, entries, key if same_key else f"{key}-too"), at_too, moment_too)
            bystander = log.add(entries)
            first, second, third = await asyncio.gather(outcome(owner), outcome(joiner), bystander)
            assert (first is None, second is None) == (owner.was_reached, joiner.was_reached)
            again = await asyncio.wait_for(log.add(entries), 20)
            assert [one.index for one in again] == [one.index for one in third]
            await log.settled()
            tried += 1
    print(f"{submit.__name__}: {tried} pairs")  # noqa: T201


async def _points(log: Log, submit: Submit) -> int:
    work = CancelledAt(submit(log, log.fresh(2), "count"), 0)
    await outcome(work)
    return work.points


# The commit.


@pytest.mark.parametrize("moment", Moment)
def test_the_sequencer_can_be_cancelled_at_every_await_and_a_restart_goes_on(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Moment
) -> None:
    honest = Sequencer.run
    reached = 0
    for at in range(1, MOST):
        data = shutil.copytree(template, tmp_path / f"{at}")
        works: list[CancelledAt[None]] = []

        async def run(self: Sequencer, at: int = at, works: list[CancelledAt[None]] = works) -> None:
            works.append(CancelledAt(honest(self), at, moment))
            await works[0]

        monkeypatch.setattr(Sequencer, "run", run)
        seen, fatal = asyncio.run(_add_until_cancelled(data))
        assert [type(error) for error in fatal] == [CommitError] * works[0].was_reached, "it went on as if nothing were"
        monkeypatch.setattr(Sequencer, "run", honest)
        asyncio.run(_go_on(data, seen))
        if not works[0].was_reached:
            break
        reached += 1
    else:
        raise AssertionError("there is no end to it")
    assert reached >= 4
    print(f"sequencer: cancelled {reached} times {moment.value}")  # noqa: T201


async def _add_until_cancelled(data: Path) -> tuple[Log, list[BaseException]]:
    """Add, two at a time, until the sequencer is gone or has done enough; return what the log took for fatal, too."""
    config = read_config(data / "treehead.toml")
    fatal: list[BaseException] = []
    async with open_log(config, fatal.append) as served:
        log = Log(served, Seen(config.vkey))
        (sequencer,) = (task for task in asyncio.all_tasks() if task.get_name() == "sequencer")
        for _ in range(3):
            adds = [log.add(log.fresh(2)) for _ in range(2)]
            answers = await asyncio.wait_for(asyncio.gather(*adds, return_exceptions=True), 20)
            failures = [type(answer) for answer in answers if isinstance(answer, BaseException)]
            assert failures in ([], [StoppedError] * len(failures))
            assert not failures or sequencer.done()
            if sequencer.done():
                break
    return log, fatal


async def _go_on(data: Path, before: Log) -> None:
    async with opened(data) as log:
        log.seen, log.sent = before.seen, log.sent | before.sent
        log._numbers = before._numbers


async def test_work_on_a_database_is_done_as_a_whole_wherever_its_caller_is_cancelled(tmp_path: Path) -> None:
    database = await Database.open(partial(open_segments, tmp_path / "log.db", create=True))
    await database.run(lambda connection: connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)"))
    reached = 0

    def work(number: int, connection: sqlite3.Connection) -> int:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?)", (2 * number,))
        connection.execute("INSERT INTO t VALUES (?)", (2 * number + 1,))
        connection.execute("COMMIT")
        return number

    try:
        numbers = count()
        for (at, moment), (more, then) in product(product(range(1, 4), Moment), product(range(3), Moment)):
            number = next(numbers)
            inner = CancelledAt(database.run(partial(work, number)), at, moment)
            outer = CancelledAt(_await(inner), at + more if more else 0, then)
            done = await outcome(outer)
            assert done in (None, number)
            reached += inner.was_reached
            rows = await database.run(lambda connection: connection.execute("SELECT x FROM t ORDER BY x").fetchall())
            assert [x for (x,) in rows] == list(range(2 * number + 2)), "half of it, or twice"
    finally:
        await database.close()
    assert reached >= 6


async def _await(work: Awaitable[int]) -> int:
    return await work


# The handlers.


class Cancels:
    """A middleware that cancels the handler of the next request at one of its awaits."""

    def __init__(self) -> None:
        self.next: tuple[int, Moment] | None = None
        self.work: CancelledAt[web.StreamResponse] | None = None

    def arm(self, at: int, moment: Moment) -> None:
        """Cancel the next request at that point."""
        self.next, self.work = (at, moment), None

    def middleware(self) -> Middleware:
        @web.middleware
        async def cancel(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self.next is None:
                return await handler(request)
            (at, moment), self.next = self.next, None
            self.work = CancelledAt(_handle(handler, request), at, moment)
            return await self.work

        return cancel

    async def post(self, port: int, route: str, body: bytes, headers: Headers) -> list[int] | None:
        """Send a request, and its body when it is waited for; return the indexes of the answer, if there is one."""
        lines = [f"POST {route} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode()
        with suppress(ConnectionError):
            async with connected(port) as connection:
                answer = asyncio.ensure_future(connection.send(head))
                for _ in range(1000):
                    await asyncio.sleep(0.001)
                    if self.next is None and (self.work is None or self.work.points):
                        break
                connection._transport.write(body)
                return _indexes(await asyncio.wait_for(answer, 20))
        return None


def _indexes(response: Response) -> list[int]:
    assert response.status in (200, 201), response
    match response.headers["content-type"].partition(";")[0]:
        case "text/plain":
            return [int(response.body)]
        case "application/json":
            return [int(json.loads(response.body)["index"])]
        case _:
            return [result.index for result in parse_batch_answer(response.body).results]


async def _handle(handler: Handler, request: web.Request) -> web.StreamResponse:
    return await handler(request)


BATCH: Headers = (("Content-Type", CBOR), ("Accept", CBOR), ("Treehead-Have", "300"))


@pytest.mark.parametrize(
    ("route", "headers", "old"),
    [
        ("/add", (), False),
        ("/v1/entries", (("Treehead-Have", "300"),), False),
        ("/v1/entries", (), True),
        ("/v1/entries/batch", BATCH, False),
    ],
    ids=["add", "entry", "old entry", "batch"],
)
async def test_a_request_can_be_cancelled_at_every_await_and_sent_again(
    data: Path, route: str, headers: Headers, *, old: bool
) -> None:
    cancels, reached = Cancels(), 0
    async with opened(data) as log:
        runner = make_runner({"": log.log}, log.log.limits)
        runner.app.middlewares.append(cancels.middleware())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = int(runner.addresses[0][1])
            for at, moment in moments():
                entries = [b"old 5"] if old else log.fresh(2 if "batch" in route else 1)
                body = encode(list[Value](entries)) if "batch" in route else entries[0]
                log.sent |= set(entries)
                request = partial(
                    cancels.post, port, route, body, (*headers, ("Idempotency-Key", f"{at}{moment.name}"))
                )
                cancels.arm(at, moment)
                first = await request()
                assert cancels.work is not None
                assert (first is None) == cancels.work.was_reached
                second = await request()
                assert second is not None, "the next request was not answered"
                assert first in (None, second)
                await log.settled()
                if first is not None:
                    break
                reached += 1
            else:
                raise AssertionError("there is no end to it")
        finally:
            await runner.cleanup()
    assert reached >= 4
    print(f"{route}: cancelled {reached} times")  # noqa: T201
