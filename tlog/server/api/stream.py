"""GET /v1/checkpoints/stream: each new head, as server-sent events (HTML Standard §9.2).

    event: checkpoint
    id: <size>
    data: <first line of the note>
    …
    data:                             the last line is empty, so that joined they are the note byte for byte

The newest head comes at once, then at most ten a second; a comment every 15 seconds shows that the connection lives.
One task of each log formats an event for all who follow. Nothing queues up: who is slow is sent the newest head when
the one before has left, and who takes nothing is cut off by the deadline of answers.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from tlog.errors import PushbackError, TreeheadError
from tlog.server.api.keys import LIMITS, LOG
from tlog.server.api.media import EVENTS
from tlog.server.api.operation import FRESH, operation
from tlog.server.api.problems import BUSY
from tlog.server.api.traffic import TRAFFIC

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tlog.server.log import ServedLog
    from tlog.server.storage import SignedHead

INTERVAL_S = 0.1
"""Seconds from one event to the next at the least."""

HEARTBEAT_S = 15.0
"""Seconds after which a stream without news shows that it lives."""

CHECK_S = 1.0
"""Seconds after which a client that left is noticed."""

RETRY_AFTER_S = 30
"""Seconds that a subscriber too many is asked to wait: streams end when their clients leave."""

_HEARTBEAT = b":\n\n"


class Feed:
    """The heads of one log, as events. Owned by the event loop.

    Attributes:
        event: The newest event.
        number: How many there were before it.
        is_closed: Whether no more will come.
    """

    def __init__(self, log: ServedLog) -> None:
        """Begin with the newest head of a log."""
        self.event = format_event(log.head)
        self.number = 0
        self.is_closed = False
        self._log = log
        self._size = log.head.size
        self._news = asyncio.Event()  # set once, for those who wait now; the next ones get another
        self._writing: set[asyncio.Transport] = set()

    async def run(self) -> None:
        """Follow the log until cancelled, or until it ends."""
        try:
            while True:
                await self._log.wait_for_head(self._size)
                self._publish(self._log.head)
                await asyncio.sleep(INTERVAL_S)
        except TreeheadError:
            self.close()  # the log ends, and so do its streams

    def _publish(self, head: SignedHead) -> None:
        self._size = head.size
        self.event = format_event(head)
        self.number += 1
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Return at the next event, when the feed is closed, or after some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    @contextmanager
    def writing(self, transport: asyncio.Transport) -> Iterator[None]:
        """Note that a client is being written to, so that one who takes nothing does not hold up a shutdown."""
        self._writing.add(transport)
        try:
            yield
        finally:
            self._writing.discard(transport)

    def close(self) -> None:
        """End every stream: in order where its client takes the end, at once where it does not."""
        self.is_closed = True
        self._wake()
        for transport in self._writing:
            transport.abort()


FEED = web.AppKey("FEED", Feed)
"""The heads of the log."""


def format_event(head: SignedHead) -> bytes:
    """Return a head as an event."""
    lines = b"".join(b"data: %b\n" % line for line in head.note.split(b"\n"))
    return b"event: checkpoint\nid: %d\n%b\n" % (head.size, lines)


@operation("GET", "/v1/checkpoints/stream", offers=(EVENTS,), problems=(BUSY,))
async def get_stream(request: web.Request) -> web.StreamResponse:
    """Follow the checkpoints of the log, as server-sent events.

    The newest comes at once, then each new one, ten a second at most; who is slow skips to the newest. The data of an
    event `checkpoint` is the signed note byte for byte, and its id the size of the tree.
    """
    traffic, limit = request.config_dict[TRAFFIC], request.config_dict[LIMITS].subscribers
    if traffic.subscribers >= limit:
        raise PushbackError(f"at most {limit:,} clients follow at a time", retry_after=RETRY_AFTER_S)
    headers = {hdrs.CONTENT_TYPE: EVENTS, hdrs.CACHE_CONTROL: FRESH, "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    traffic.subscribers += 1
    try:
        with suppress(ConnectionError):  # the client left, as every client of a stream does in the end
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await _follow(request, response)
    finally:
        traffic.subscribers -= 1
    return response


OPERATIONS = (get_stream,)


async def _follow(request: web.Request, response: web.StreamResponse) -> None:
    """Send events until the feed is closed.

    Raises:
        ConnectionError: The client left.
    """
    feed = request.app[FEED]
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    transport.set_write_buffer_limits(0)  # so that to drain means that the event has left
    clock, sent, at = asyncio.get_running_loop().time, -1, 0.0
    while not feed.is_closed:
        if sent != feed.number or clock() - at >= HEARTBEAT_S:
            event = feed.event if sent != feed.number else _HEARTBEAT
            sent, at = feed.number, clock()
            with feed.writing(transport):
                await response.write(event)
                await request.writer.drain()
        elif transport.is_closing():
            raise ConnectionResetError("the client left")
        else:
            await feed.wait(min(CHECK_S, HEARTBEAT_S))


async def run_feed(app: web.Application) -> AsyncIterator[None]:
    """Keep the feed of a log running as long as its application."""
    task = asyncio.create_task(app[FEED].run(), name="feed")
    yield
    task.cancel()
    await asyncio.wait([task])


async def close_feed(app: web.Application) -> None:
    """End the streams of a log when its application shuts down."""
    app[FEED].close()


def add_feed(app: web.Application) -> None:
    """Give the application of a log its feed."""
    app[FEED] = Feed(app[LOG])
    app.cleanup_ctx.append(run_feed)
    app.on_shutdown.append(close_feed)
