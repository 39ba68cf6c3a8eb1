"""One HTTP/1.1 connection of the load generator: one write a request, and an answer read with as little as that takes.

    answer   HTTP/1.1 <status, 3 digits> …CRLF, header lines, CRLF, then as many bytes as Content-Length says

An answer without Content-Length is refused: chunked encoding is not read, and closing connections are not measured.
A connection has at most one request under way, so the clock runs on the server and not on a queue in this process.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from typing import TypeAlias

Parsed: TypeAlias = tuple[int, int, int]
"""Status, and where the body begins and ends."""

_BLANK = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_VERSION = b"http/1.1 "


class WireError(Exception):
    """An answer is none that this program reads, or the server hung up."""


def parse_answer(data: bytes) -> Parsed | None:
    """Return where an answer's parts are, or None while it is not whole.

    Raises:
        WireError: It has no Content-Length, is no HTTP/1.1, or more bytes follow than were asked for.
    """
    at = data.find(_BLANK)
    if at < 0:
        return None
    status, length = _parse_head(data[:at])
    begin = at + len(_BLANK)
    end = begin + length
    if len(data) < end:
        return None
    if len(data) > end:
        raise WireError("more bytes than were asked for")
    return status, begin, end


@lru_cache(maxsize=256)  # answers in one second often have the same head
def _parse_head(head: bytes) -> tuple[int, int]:
    """Return status and Content-Length.

    Raises:
        WireError: One is missing.
    """
    lines = head.lower() + b"\r\n"
    at = lines.find(_LENGTH)
    status = lines[len(_VERSION) : len(_VERSION) + 3]
    if at < 0 or not lines.startswith(_VERSION) or not status.isdigit():
        raise WireError(f"no HTTP/1.1 answer with a Content-Length: {head.decode('latin-1')}")
    length = lines[at + len(_LENGTH) : lines.find(b"\r\n", at + len(_LENGTH))].strip(b" \t")
    if not length.isdigit():
        raise WireError(f"not a Content-Length: {length.decode('latin-1')}")
    return int(status), int(length)


class Driver(Protocol):
    """What tells a connection when to send."""

    def free(self, connection: Connection) -> None:
        """Take a connection that has nothing under way."""

    def answered(self, connection: Connection, answer: bytes, parsed: Parsed) -> None:
        """Take an answer; the connection is free after it."""

    def lost(self, connection: Connection, error: Exception) -> None:
        """Take the end of a connection that was not closed by this side."""


class Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        number: Number of the request under way.
        since: When it was sent, or was due.
        is_busy: Whether one is under way.
    """

    __slots__ = ("_driver", "_is_closed", "_rest", "_transport", "_write", "is_busy", "number", "since")

    def __init__(self, driver: Driver) -> None:
        """Take who is told of what happens."""
        self.number = 0
        self.since = 0.0
        self.is_busy = False
        self._driver = driver
        self._rest = b""
        self._is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Report for work."""
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write
        self._driver.free(self)

    def send(self, number: int, request: bytes, since: float) -> None:
        """Send a whole request."""
        self.number, self.since, self.is_busy = number, since, True
        self._write(request)

    def data_received(self, data: bytes) -> None:
        """Hand an answer over once it is whole."""
        if self._rest:
            data = self._rest + data
        try:
            parsed = parse_answer(data)
        except WireError as error:
            self.close()
            self._driver.lost(self, error)
            return
        if parsed is None:
            self._rest = data
            return
        if not self.is_busy:
            self.close()
            self._driver.lost(self, WireError("an answer to no request"))
            return
        self._rest = b""
        self.is_busy = False
        self._driver.answered(self, data, parsed)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of it, unless this side closed."""
        if not self._is_closed:
            self._is_closed = True
            self._driver.lost(self, exc or WireError("the server closed the connection"))

    def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        self._transport.abort()


now = perf_counter
"""The clock of all measurements: monotonic, in seconds."""
