"""Connections with deadlines and a limit; aiohttp has neither.

    from                              until                                deadline          then
    connecting, or the first byte     the whole head of a request          header_seconds    408, closed
    the head                          the whole body                       body_seconds      408, closed
    an answer that waits              the client has taken some of it      write_seconds     cut off
    an answer                         the next request                     keepalive_seconds closed (by aiohttp)

A connection beyond the limit is answered with a 503 and closed before a byte of it is read. What a client does wrong is
counted and never logged: it can be made to happen a million times.

One sweep over all connections looks at their deadlines, several times within the shortest one, so that a request costs
no timer. What is used of aiohttp here is private in part; `tests/serve/test_aiohttp.py` pins it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from sys import byteorder
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, TypeAlias, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tlog.server.api.problems import BUSY, TIMEOUT, answer_problem, problem_of_parser_error, problems
from tlog.server.api.traffic import PROBLEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest

    from tlog.server.api.traffic import Traffic
    from tlog.server.limit import Limits

MIN_TAKEN = 4096
"""Bytes of an answer that a client must take within write_seconds, unless it takes all: less is an attack."""

RETRY_AFTER_S = 5
"""Seconds that a connection beyond the limit is asked to wait: others close after their deadlines."""

_SWEEPS = 8  # within the shortest deadline
_MAX_SWEEP_S = 1.0


Connect: TypeAlias = "Callable[[Listener, asyncio.AbstractEventLoop], Connection]"


class Listener(web.Server):
    """Makes the connections of a server, and holds them to their deadlines. Owned by the event loop."""

    def __init__(self, server: web.Server, limits: Limits, traffic: Traffic, connect: Connect) -> None:
        """Take the place of a server of aiohttp.

        Args:
            server: Whose handler and requests are used.
            limits: Deadlines, and the number of connections.
            traffic: Where connections are counted.
            connect: Makes a connection.
        """
        handle = partial(problems, handler=server.request_handler)  # also for what is refused before any middleware
        super().__init__(handle, request_factory=server.request_factory)
        self.limits = limits
        self.traffic = traffic
        self._connect = connect
        self._every = min(_MAX_SWEEP_S, min(limits.header_seconds, limits.body_seconds, limits.write_seconds) / _SWEEPS)
        self._open: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """Return the protocol of a connection that was just accepted."""
        return self._connect(self, asyncio.get_running_loop())

    def admit(self, connection: Connection) -> bool:
        """Count a new connection in, and return False where it is beyond the limit."""
        if len(self._open) >= self.limits.connections:
            self.traffic.refused += 1
            self.traffic.problems[BUSY.name] += 1
            return False
        self._open.add(connection)
        self.traffic.connections = len(self._open)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._sweep)
        return True

    def dismiss(self, connection: Connection) -> None:
        """Count a closed connection out."""
        self._open.discard(connection)
        self.traffic.connections = len(self._open)

    def _sweep(self) -> None:
        """End what is late, and look again in a moment while there is a connection."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._open):
            connection.keep_deadlines(now)
        self._timer = loop.call_later(self._every, self._sweep) if self._open else None


class Connection(RequestHandler):
    """One connection. Owned by the event loop."""

    __slots__ = ("_answers", "_body", "_body_at", "_head_at", "_left", "_left_at", "_left_of", "_listener", "_wire")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """Begin unconnected."""
        super().__init__(
            listener,
            loop=loop,
            keepalive_timeout=listener.limits.keepalive_seconds,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for none
            auto_decompress=False,  # bodies come as they were sent, so that an encoded one can be refused
        )
        self._listener = listener
        self._wire: asyncio.Transport | None = None  # aiohttp forgets its own when it begins to close
        self._head_at: float | None = None  # when the head that is awaited began
        self._body: StreamReader | None = None  # the newest body
        self._body_at = 0.0
        self._answers = 0
        self._left = self._left_of = 0  # unsent bytes when they were last looked at, and of which answer
        self._left_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, or refuse to."""
        self._wire = wire = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        if self._listener.admit(self):
            super().connection_made(transport)
            self._head_at = self._loop.time()
        else:
            self._force_close = True  # nothing is read
            wire.write(_BUSY)
            wire.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Be gone."""
        self._listener.dismiss(self)
        self._wire = None
        super().connection_lost(exc)
        self._stop_lingering()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 — aiohttp names it so
        """End what is under way within a time, and at once what nobody waits for."""
        self._stop_lingering()
        if self._body is not None and self._request_in_progress:
            with suppress(TimeoutError, web.RequestPayloadError):
                async with asyncio.timeout(timeout):
                    await self._body.wait_eof()  # aiohttp would not read it to its end, and let the request die
        await super().shutdown(timeout)

    def _stop_lingering(self, *, close: bool = False) -> None:
        """Wait no more for the rest of a body that was refused; aiohttp would for ten seconds, with nobody there."""
        body = self._body
        if body is not None and not self._request_in_progress and not body.is_eof() and body.exception() is None:
            body.set_exception(TimeoutError())  # and not its end: a handler may be about to read it
            if close:
                self.close()

    def data_received(self, data: bytes) -> None:
        """Take what came, and note what is awaited next."""
        seen = self._request_count
        was_in_body = self._body is not None and not self._body.is_eof()
        is_closing, self._close = self._close, self._close and not was_in_body
        super().data_received(data)
        self._close = is_closing or self._close
        if self._request_count != seen:
            self._head_at = None
            self._body, self._body_at = self._messages[-1][1], self._loop.time()
            if self._upgraded:
                self.close()  # nothing is upgraded; aiohttp would collect what follows unparsed
        elif data and not was_in_body and self._head_at is None:
            self._head_at = self._loop.time()

    def keep_deadlines(self, now: float) -> None:
        """End what is late."""
        limits = self._listener.limits
        if self._is_stalled(now, limits.write_seconds):
            self._count_late("write")
            if self._wire is not None:
                self._wire.abort()
        elif self._head_at is not None and now - self._head_at > limits.header_seconds:
            self._end_head()
        elif self._body is not None and now - self._body_at > limits.body_seconds:
            self._end_body(self._body)

    def _is_stalled(self, now: float, seconds: float) -> bool:
        """Return whether the client has not taken enough of an answer for that long."""
        left = _unsent(self._wire) if self._wire is not None else 0
        if left == 0:
            self._left_at = None
        elif self._left_at is None or self._left_of != self._answers:
            self._left, self._left_at, self._left_of = left, now, self._answers
        elif now - self._left_at > seconds:
            if left > self._left - MIN_TAKEN:
                return True
            self._left, self._left_at = left, now
        return False

    def _end_head(self) -> None:
        """Give up on a head: at once, or behind the request that is being answered."""
        self._head_at = None
        if self.transport is None:
            return
        self._count_late("head")
        if self._waiter is None or self._waiter.done():
            self.close()
            return
        self.transport.write(_LATE)
        self.force_close()

    def _end_body(self, body: StreamReader) -> None:
        """Tell the handler that waits for a body that it will not come in time; close where nobody waits for it."""
        self._stop_lingering(close=True)
        self._body = None
        if not body.is_eof() and body.exception() is None and self._request_in_progress:
            self._count_late("body")
            self._lingering_time = 0.0  # the rest is not waited for either
            body.set_exception(TimeoutError())  # `problems` makes a 408 of it

    def _count_late(self, name: str) -> None:
        self._listener.traffic.late[name] += 1

    def log_access(self, request: BaseRequest, response: web.StreamResponse, time: float | None) -> None:  # noqa: ARG002
        """Note that an answer is finished; aiohttp calls this after each."""
        self._answers += 1

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 — aiohttp's words, with what the client sent in them
    ) -> web.StreamResponse:
        """Answer what cannot be parsed; `problems` has answered everything else."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer is sent already")
        response = problem_of_parser_error(status, exc)
        self._listener.traffic.unparsed += 1
        self._listener.traffic.problems[response[PROBLEM]] += 1
        return response


def _unsent(wire: asyncio.Transport) -> int:
    """Return the bytes that the client has not taken, of an answer of which some are still in this process; else 0."""
    ours = wire.get_write_buffer_size()
    if ours == 0:
        return 0
    try:
        return ours + int.from_bytes(ioctl(wire.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4)), byteorder)
    except OSError:
        return ours  # the system does not tell what it still holds


def _raw(response: web.Response) -> bytes:
    """Return an answer as it is sent where there is no request; the connection closes after it."""
    body = response.body
    assert isinstance(body, bytes)  # noqa: S101 — answer_problem() makes nothing else
    headers = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _busy() -> web.Response:
    response = answer_problem(BUSY, "too many connections")
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


_BUSY = _raw(_busy())
_LATE = _raw(answer_problem(TIMEOUT))


class Runner(web.AppRunner):
    """Runs an application behind a Listener."""

    def __init__(
        self, app: web.Application, limits: Limits, traffic: Traffic, shutdown_s: float, connect: Connect = Connection
    ) -> None:
        """Take an application; nothing is started yet."""
        super().__init__(app, shutdown_timeout=shutdown_s)
        self._limits = limits
        self._traffic = traffic
        self._connect = connect

    async def _make_server(self) -> web.Server:
        return Listener(await super()._make_server(), self._limits, self._traffic, self._connect)
