"""Following: heads that are verified, over the stream or by polling, across outages; and entries as they come."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from threading import Thread

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.server import Server, init_log
from tests.support.simulated_log import OTHER, SimulatedLog, always, changed, entry_of, flipped, serving
from tlog.errors import (
    CouldNotCheckError,
    ForkError,
    FormatError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from tlog.fetch import Request
from tlog.note import sign_note
from tlog_client import AsyncLog, Log, OptionError, Published, patience
from tlog_client.failure import UnreachableError
from tlog_client.patience import Patience


class Streaming:
    """A simulated log on a socket, with a stream of checkpoints.

    Attributes:
        log: What it serves.
        streams: How often the stream was asked for.
        broken: What the next streams consist of, one after the other, instead of heads.
    """

    def __init__(self, log: SimulatedLog) -> None:
        self.log = log
        self.streams = 0
        self.broken: list[bytes] = []
        self._is_cut = False
        self._grown = asyncio.Event()

    def show(self, size: int) -> None:
        """Serve a larger head."""
        self.log.size = size
        self._grown.set()

    def cut(self) -> None:
        """End the streams that are open."""
        self._is_cut = True
        self._grown.set()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/checkpoints/stream":
            return await self.stream(request)
        answer = self.log.respond(Request("GET", request.path[1:]))
        return web.Response(status=answer.status, body=answer.body)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        if self.broken:
            return web.Response(body=self.broken.pop(), content_type="text/event-stream")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            self._grown.clear()
            lines = self.log.note().split(b"\n")
            await response.write(
                b"event: checkpoint\nid: 1\n" + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n: beat\n"
            )
            await self._grown.wait()
            if self._is_cut:
                self._is_cut = False
                return response


@asynccontextmanager
async def streaming(log: SimulatedLog) -> AsyncIterator[tuple[Streaming, str]]:
    site = Streaming(log)
    app = web.Application()
    app.router.add_get("/{path:.*}", site.respond)
    async with TestServer(app, host="127.0.0.1") as server:
        yield site, f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(patience, "MAX_DELAY", 0.02)


# Heads.


async def test_each_head_of_the_stream_is_yielded_once_and_consistent() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    async with streaming(log) as (site, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        sizes = []
        async with aclosing(client.follow()) as heads:
            async for head in heads:
                assert head == log.head(head.size)
                sizes.append(head.size)
                if head.size == 900:
                    break
                site.show(head.size + 200)
        assert sizes == [100, 300, 500, 700, 900]
        assert site.streams == 1
        assert "checkpoint" not in log.asked


async def test_a_log_without_a_stream_is_asked_again_and_again() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    log.lies["v1/checkpoints/stream"] = always(404)
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client, aclosing(client.follow(interval=0.01)) as heads:
            sizes = []
            async for head in heads:
                sizes.append(head.size)
                if head.size == 900:
                    break
                log.size += 400
    assert sizes == [100, 500, 900]
    assert log.asked.count("v1/checkpoints/stream") == 1


@pytest.mark.parametrize("status", [200, 403, 405])
async def test_whatever_answers_without_a_stream_is_polled(status: int) -> None:
    log = SimulatedLog.of_size(9)
    log.lies["v1/checkpoints/stream"] = always(status, b"<html>")
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client, aclosing(client.follow()) as heads:
            assert (await anext(heads)).size == 9


async def test_an_older_head_is_checked_and_not_yielded() -> None:
    log = SimulatedLog.of_size(900)
    async with (
        streaming(log) as (site, url),
        AsyncLog(url, log.vkey, state_dir=None) as client,
        aclosing(client.follow()) as heads,
    ):
        assert (await anext(heads)).size == 900
        site.show(300)
        asked = asyncio.create_task(anext(heads))
        while not any(path.startswith("tile/") for path in log.asked):  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
        assert not asked.done()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


def say(site: Streaming, note: bytes) -> None:
    """Show this note from now on."""
    site.log.note = lambda *_: note  # type: ignore[method-assign]  # a lie


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda site: site.log.__dict__.update(site.log.forked(3, 500).__dict__), ForkError),
        (lambda site: site.log.__dict__.update(site.log.forked(3, 100).__dict__), ForkError),
        (
            lambda site: setattr(site.log, "note", lambda: sign_note(site.log.head().format(), [OTHER])),
            VerificationError,
        ),
        (lambda site: setattr(site.log, "note", lambda: b"junk\n"), FormatError),
    ],
    ids=["fork", "fork of one size", "another key", "no note"],
)
async def test_a_head_that_is_wrong_ends_the_following(
    change: Callable[[Streaming], None], error: type[Exception]
) -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    async with (
        streaming(log) as (site, url),
        AsyncLog(url, log.vkey, state_dir=None) as client,
        aclosing(client.follow()) as heads,
    ):
        assert (await anext(heads)).size == 100
        change(site)
        site.show(log.size)
        with pytest.raises(error):
            await anext(heads)


async def test_a_log_that_is_away_from_the_beginning_is_an_error() -> None:
    async with AsyncLog("http://127.0.0.1:1", SimulatedLog.of_size(1).vkey, state_dir=None) as client:
        with pytest.raises(UnreachableError):
            await anext(client.follow())
        with pytest.raises(UnreachableError):
            await anext(client.tail())


async def test_a_stream_that_breaks_or_is_garbled_is_opened_anew_and_said_once() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    notices: list[CouldNotCheckError] = []
    async with streaming(log) as (site, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        site.broken = [b"data: a\rb\n\n", b"x" * 70_000, b"", b"event: checkpoint\ndata: cut"]
        with pytest.raises(UnavailableError, match="ended the stream"):
            await anext(client.follow())  # the first answer must be one
        async with aclosing(client.follow(notice=notices.append)) as heads:
            site.broken.clear()
            assert (await anext(heads)).size == 100
            site.broken = [b"data: a\rb\n\n", b"x" * 70_000, b""]
            waiting = asyncio.ensure_future(anext(heads))
            site.cut()
            while site.streams < 6:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
            site.show(900)
            assert (await waiting).size == 900
    assert len(notices) == 1


async def test_a_missing_tile_is_waited_for() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    async with streaming(log) as (site, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        notices: list[CouldNotCheckError] = []
        async with aclosing(client.follow(notice=notices.append)) as heads:
            await anext(heads)
            misses = iter(range(12))
            log.lies["tile/"] = lambda request, response: (
                response if next(misses, None) is None else always(404)(request, response)
            )
            site.show(900)
            assert (await anext(heads)).size == 900
        assert len(notices) == 1
        log.lies["tile/"] = always(404)


async def test_what_stays_missing_is_raised_in_the_end() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    async with (
        streaming(log) as (site, url),
        AsyncLog(url, log.vkey, state_dir=None) as client,
        aclosing(client.follow()) as heads,
    ):
        await anext(heads)
        log.lies["tile/"] = always(404)
        site.show(900)
        with pytest.raises(CouldNotCheckError):
            await anext(heads)


def test_the_sync_log_follows_by_polling_across_outages() -> None:
    log = SimulatedLog.of_size(900)
    log.size = 100
    notices: list[CouldNotCheckError] = []
    with serving(log) as url, Log(url, log.vkey, state_dir=None) as client:
        heads = client.follow(interval=0.01, notice=notices.append)
        assert next(heads).size == 100
        misses = iter(range(4))
        log.lies["checkpoint"] = lambda request, response: (
            response if next(misses, None) is None else always(500)(request, response)
        )
        log.size = 900
        assert next(heads).size == 900
    assert len(notices) == 1


async def test_who_leaves_early_leaves_nothing_behind() -> None:
    log = SimulatedLog.of_size(900)
    async with streaming(log) as (_, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        async for head in client.follow():
            assert head.size == 900
            break
        async for published in client.tail(7):
            assert published.index == 7
            break


# Entries.


async def test_entries_are_yielded_as_they_are_published_from_any_index() -> None:
    log = SimulatedLog.of_size(3000)
    log.size = 300
    async with streaming(log) as (site, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        for start in (0, 299, 300, 2500):
            log.size = 300
            found = []
            async with aclosing(client.tail(start)) as entries:
                site.show(3000)
                async for published in entries:
                    found.append(published)
                    if published.index == 2999:
                        break
            assert found == [Published(index, entry_of(index)) for index in range(start, 3000)]


async def test_by_default_a_tail_begins_at_the_served_head() -> None:
    log = SimulatedLog.of_size(300)
    log.size = 299
    async with streaming(log) as (site, url), AsyncLog(url, log.vkey, state_dir=None) as client:
        async with aclosing(client.tail()) as entries:
            first = asyncio.ensure_future(anext(entries))
            while not site.streams:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
            await client.checkpoint()
            site.show(300)
            assert (await first).index == 299
        with pytest.raises(OptionError):
            await anext(client.tail(-1))


async def test_an_entry_that_is_not_the_one_in_the_tree_ends_the_tail() -> None:
    log = SimulatedLog.of_size(600)
    log.bundles = log.forked(400).tree
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client, aclosing(client.tail(0)) as entries:
            with pytest.raises(VerificationError, match="entry 400 "):
                await anext(entries)


async def test_an_entry_that_is_missing_for_a_while_is_waited_for() -> None:
    log = SimulatedLog.of_size(600)
    misses = iter(range(5))
    log.lies["tile/entries/"] = lambda request, response: (
        response if next(misses, None) is None else always(503)(request, response)
    )
    notices: list[CouldNotCheckError] = []
    with serving(log) as url:
        async with (
            AsyncLog(url, log.vkey, state_dir=None) as client,
            aclosing(client.tail(0, notice=notices.append)) as entries,
        ):
            assert (await anext(entries)).index == 0
    assert len(notices) == 1


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (0, 1), (255, 257), (0, 2500), (2499, 2500), (2500, 2500), (7, None)]
)
async def test_a_range_of_entries_comes_back_verified(start: int, end: int | None) -> None:
    log = SimulatedLog.of_size(2500)
    wanted = [Published(index, entry_of(index)) for index in range(start, 2500 if end is None else end)]
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            assert [one async for one in client.entries(start, end)] == wanted
        with Log(url, log.vkey, state_dir=None) as sync:
            assert list(sync.entries(start, end)) == wanted


async def test_a_range_that_the_log_does_not_have_is_refused() -> None:
    log = SimulatedLog.of_size(25)
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            for start, end in ((0, 26), (26, 30), (26, None)):
                with pytest.raises(NotFoundError):
                    await anext(client.entries(start, end))
            for start, end in ((-1, 3), (4, 3), (0, -1)):
                with pytest.raises(OptionError):
                    await anext(client.entries(start, end))
            log.lies["tile/entries"] = changed(flipped)
            with pytest.raises(VerificationError):
                await anext(client.entries(0))


# Patience.


def test_delays_double_up_to_a_bound_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = 0.0
    waiting = Patience(lambda: now)
    error = UnreachableError("away")
    delays = [waiting.delay(error) for _ in range(50)]
    for number, delay in enumerate(delays):
        most = min(30, 0.5 * 2**number)
        assert most / 2 <= delay <= most
    assert len(set(delays)) > 40
    assert waiting.failures == 50
    now = 1000.0
    assert waiting.delay(error) <= 0.5
    assert waiting.failures == 1


# The real server.


async def test_a_tail_goes_on_across_restarts_and_kills_of_the_server(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    notices: list[CouldNotCheckError] = []
    with Server(tmp_path / "log") as server:
        url = f"http://127.0.0.1:{server.port}"
        async with (
            AsyncLog(url, vkey, state_dir=None) as writer,
            AsyncLog(url, vkey, state_dir=None) as reader,
            aclosing(reader.tail(1, notice=notices.append)) as entries,
        ):
            for number in range(4):
                await writer.add_many([b"%d.%d" % (number, part) for part in range(300)])
                for part in range(300):
                    assert (await anext(entries)).entry == b"%d.%d" % (number, part)
                if number == 3:
                    break
                restart = Thread(target=_restart, args=(server, number))
                restart.start()
                await asyncio.to_thread(restart.join)
    assert len(notices) <= 3


def _restart(server: Server, number: int) -> None:
    if number % 2:
        server.kill()
    else:
        assert server.stop() == 0
    server.start()
