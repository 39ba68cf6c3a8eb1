"""Connections with a hot lane: who reads the next request, and in which order answers go out.

    bytes come    an answer of the hot lane is awaited      they wait, and nothing more is read
                  aiohttp is within a request, or answers   they are aiohttp's
                  a request begins                          the hot lane's, if it takes it; else aiohttp's

So at each moment one of the two has the connection, and answers go out in the order of their requests. Where a request
ends that aiohttp reads is only known where it begins a packet, and has a Content-Length or no body; after any other,
aiohttp keeps the connection for good.

A body of the hot lane that comes in parts is held until it is whole. It has the deadline of all bodies: what is late is
given to aiohttp, and ended there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage

from tlog.errors import PushbackError
from tlog.server.api.protocol import Connection

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse
    from aiohttp.web_request import BaseRequest

    from tlog.server.api.bodies import Bodies
    from tlog.server.api.lane import Lane
    from tlog.server.api.protocol import Listener


class HotConnection(Connection):
    """One connection. Owned by the event loop."""

    __slots__ = (
        "_bodies",
        "_due",
        "_finished",
        "_held",
        "_held_at",
        "_is_awaited",
        "_lane",
        "_replied",
        "_seen",
        "_whole",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop, lane: Lane, bodies: Bodies) -> None:
        """Begin unconnected."""
        super().__init__(listener, loop)
        self._lane = lane
        self._bodies = bodies
        self._is_awaited = False  # whether an answer of the hot lane is still to come
        self._replied: asyncio.Future[None] | None = None  # for who waits for that
        self._held = bytearray()  # what came behind a request whose answer is awaited, or a request in parts
        self._seen = 0  # answers that had gone out when deadlines were looked at last
        self._whole = 0  # bytes of the request in parts; 0 where there is none
        self._held_at = 0.0
        self._finished = 0  # answers of aiohttp that have gone out
        self._due: int | None = 0  # bytes that aiohttp's request still lacks; None where nobody can tell

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._is_awaited:
            self._held += data
            self._pause_transport_reading()
        elif self._whole:
            self._take_part(data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Let the hot lane answer what it takes, and aiohttp have the rest."""
        while data and self._is_between():
            taken = self._lane.take(self, data)
            if taken <= 0:
                if taken < 0 and self._hold(data, -taken):
                    return
                break
            self._head_at = None
            data = data[taken:]
            if not data:
                return
            if self._is_awaited:
                self._held += data
                self._pause_transport_reading()
                return
        self._give(data)

    def _is_between(self) -> bool:
        """Return whether a request would begin here, all before it are answered, and more are taken."""
        return (
            self._due == 0
            and self._request_count == self._finished
            and not self._paused  # the client takes no answers: aiohttp waits for it
            and not (self._close or self._force_close)
            and (self._body is None or self._body.is_eof())
        )

    # Parts.

    def _hold(self, data: bytes, whole: int) -> bool:
        """Hold the begin of a request until it is whole; False where bodies take too much memory already."""
        try:
            self._bodies.take(len(data))
        except PushbackError:
            return False
        self._held += data
        self._whole, self._held_at, self._head_at = whole, self._loop.time(), None
        return True

    def _take_part(self, data: bytes) -> None:
        try:
            self._bodies.take(len(data))
        except PushbackError:
            self._give(self._release() + data)
            return
        self._held += data
        if len(self._held) >= self._whole:
            self._take(self._release())

    def _release(self) -> bytes:
        """Return what was held of a request in parts, and hold it no more."""
        data = bytes(self._held)
        self._held.clear()
        self._whole = 0
        self._bodies.held -= len(data)
        return data

    def keep_deadlines(self, now: float) -> None:
        """End what is late."""
        if self._whole and now - self._held_at > self._listener.limits.body_seconds:
            since = self._held_at
            self._give(self._release())
            self._body_at = since  # the next look ends it
        else:
            super().keep_deadlines(now)
        if self._answers != self._seen:  # it was not idle since the look before
            self._seen = self._answers
            self._next_keepalive_close_time = now + self._keepalive_timeout

    # aiohttp's.

    def _give(self, data: bytes) -> None:
        """Give bytes to aiohttp, and note how many it still needs for its request."""
        seen, before = self._request_count, self._due
        super().data_received(data)
        if before is None or not data:
            return
        if before > 0:
            self._due = before - len(data) if len(data) <= before else None
        elif self._request_count == seen + 1:
            self._due = self._lacking(data)
        else:
            self._due = None

    def _lacking(self, data: bytes) -> int | None:
        """Return the bytes that the request which these bytes begin with still lacks; None where nobody can tell."""
        message, _ = self._messages[-1]
        end = data.find(b"\r\n\r\n") + 4
        if (
            not isinstance(message, RawRequestMessage)
            or message.chunked
            or message.upgrade
            or end < 4
            or data[0] in b"\r\n"
        ):
            return None
        lacking = end + int(message.headers.get(hdrs.CONTENT_LENGTH, "0")) - len(data)
        return lacking if lacking >= 0 else None

    def log_access(self, request: BaseRequest, response: StreamResponse, time: float | None) -> None:
        """Note that an answer of aiohttp has gone out; aiohttp calls this after each."""
        super().log_access(request, response, time)
        self._finished += 1
        if not response.keep_alive:
            self._due = None  # it closes the connection now

    # Answers of the hot lane.

    def reply(self, data: bytes) -> None:
        """Send an answer; see Link."""
        if self._wire is not None:
            self._wire.write(data)
            self._answers += 1

    def await_reply(self) -> None:
        """Take no other request; see Link."""
        self._is_awaited = True

    def reply_late(self, data: bytes) -> None:
        """Send the answer that was awaited; see Link."""
        self._is_awaited = False
        if self._wire is not None:
            self._wire.write(data)
            self._answers += 1
        if self._replied is not None:
            self._replied.set_result(None)
            self._replied = None
        if self._wire is not None and self._close:
            self.force_close()
        elif self._held:
            held = bytes(self._held)
            self._held.clear()
            self._resume_transport_reading()
            self._take(held)

    def _process_keepalive(self) -> None:
        """Close an idle connection; one that awaits an answer, or the rest of a request, is none."""
        if self._is_awaited or self._whole:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 — aiohttp names it so
        """End what is under way within a time."""
        if self._is_awaited:
            self._replied = self._loop.create_future()
            await asyncio.wait([self._replied], timeout=timeout)
            self._replied = None
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Be gone."""
        if self._whole:
            self._release()
        super().connection_lost(exc)
