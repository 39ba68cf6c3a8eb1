"""Plain requests over connections of our own: a check of a whole log sends two for every 256 entries.

A `DirectRunner` is an `AsyncRunner` that costs a fifth for what is alike a million times: a GET over http://, with no
headers of its own, answered with a Content-Length. All else it leaves to aiohttp: other requests; https://; and, asked
for once more, whatever is not answered, or in another form than the one that is read here. So nothing odd is judged
here, and what is told of it is what every other command tells.

    connection   one request at a time, so answers cannot be mistaken for each other; then it is idle, or closed
    head         HTTP/1.1, status 200 to 599, each header on a line of its own; Content-Length, no Transfer-Encoding
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tlog.fetch import Response
from tlog_client import run
from tlog_client.body import Body
from tlog_client.failure import CONNECT_TIMEOUT, network_error
from tlog_client.run import AsyncRunner

if TYPE_CHECKING:
    from tlog.fetch import Request

MAX_HEAD = 1 << 14
"""Most bytes of a head."""

_ENCODED = 1 << 10  # bytes that gzip may need beyond what it encodes, for bodies of any size that is asked for
_STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)
_ONCE = ("connection", "content-encoding", "content-length", "retry-after")
_WITHOUT_BODY = (204, 304)

MAX_ODD = 3
"""Answers in a row that are not read here, after which no more requests are sent from here: all would be sent twice."""


class OddError(Exception):
    """An answer that is not read here."""


class Line(asyncio.Protocol):
    """One connection. Owned by whoever asks, until it is answered.

    Attributes:
        is_open: Whether it takes another request.
    """

    def __init__(self) -> None:
        """Begin before it is connected."""
        self.is_open = False
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self._data = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._begin = self._end = 0  # of the body
        self._most = 0

    async def ask(self, request: bytes, most: int) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and return status, headers and body of its answer.

        Args:
            request: The whole request.
            most: Bytes that the body may have as it is sent.

        Raises:
            OddError: There is no answer, or none that is read here.
        """
        if self._transport is None or not self.is_open:
            raise OddError
        self._most, self._head = most, None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            if self._answer is not None:  # nobody waits for it any more
                self.close()

    def close(self) -> None:
        """Close it at once."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio's.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take requests from now on."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101  # it is a socket
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that there is no answer."""
        self.is_open = False
        self._fail(OddError(str(exc)))

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._data += data
        try:
            self._read()
        except OddError as error:
            self._fail(error)
            self.close()

    def _read(self) -> None:
        if self._answer is None:
            raise OddError("nobody asked")
        if self._head is None:
            end = self._data.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end < 0:
                if len(self._data) >= MAX_HEAD:
                    raise OddError("a long head")
                return
            status, headers, length = parse_head(bytes(self._data[:end]))
            if length > self._most:
                raise OddError("a long body")
            self._head, self._begin, self._end = (status, headers), end + 4, end + 4 + length
        if len(self._data) > self._end:
            raise OddError("more than the answer")
        if len(self._data) == self._end:
            self._finish(*self._head)

    def _finish(self, status: int, headers: dict[str, str]) -> None:
        body = bytes(memoryview(self._data)[self._begin :])
        self._data = bytearray()
        self.is_open = headers.get("connection", "keep-alive").lower() == "keep-alive"
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, headers, body))

    def _fail(self, error: OddError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


def parse_head(head: bytes) -> tuple[int, dict[str, str], int]:
    """Return status, headers with names in lower case, and length of the body.

    Raises:
        OddError: It is not of the form that is read here.
    """
    first, *lines = head.split(b"\r\n")
    matched = _STATUS.fullmatch(first)
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise OddError("a malformed header")
        name = found[1].decode("ascii").lower()
        if name in headers and name in _ONCE:
            raise OddError("a header more than once")
        headers[name] = found[2].decode("latin-1")
    length = headers.get("content-length", "")
    if matched is None or "transfer-encoding" in headers or not _LENGTH.fullmatch(length):
        raise OddError("another framing")
    status = int(matched[1])
    if status in _WITHOUT_BODY:
        raise OddError("no body")
    return status, headers, int(length)


class DirectRunner(AsyncRunner):
    """Drives flows, and sends the plain requests among theirs over connections of its own."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        """Take the address of a log, and a bearer token where it asks for one.

        Raises:
            OptionError: The URL or the token cannot be used.
        """
        super().__init__(url, token=token)
        parts = urlsplit(self._base)
        self._is_plain = parts.scheme == "http" and self._base.isascii()
        self._address = parts.hostname or "", parts.port or 80
        self._path = parts.path
        headers = {"Host": parts.netloc, "Accept": "*/*", **self._headers}
        self._rest = " HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self._idle: list[Line] = []
        self._odd = 0  # answers in a row

    async def close(self) -> None:
        """Close the connections."""
        for line in self._idle:
            line.close()
        self._idle.clear()
        await super().close()

    async def _fetch(self, request: Request, limit: asyncio.Semaphore) -> Response:
        is_plain = request.method == "GET" and not request.headers and request.body is None
        if self._is_plain and is_plain and self._odd < MAX_ODD:
            async with limit:
                try:
                    return await self._ask(request)
                except OddError:
                    self._odd += 1
        return await super()._fetch(request, limit)

    async def _ask(self, request: Request) -> Response:
        """Return the response to a plain request.

        Raises:
            OddError: Another runner has to ask.
            UnavailableError: It took too long, or is of no use.
        """
        line = await self._line()
        text = f"GET {self._path}{request.path}{self._rest}".encode("ascii")
        try:
            async with asyncio.timeout(run.TOTAL_TIMEOUT):
                status, headers, data = await line.ask(text, request.max_size + _ENCODED)
        except TimeoutError as error:
            raise network_error(self._base, error, run.TOTAL_TIMEOUT) from error
        self._odd = 0
        if line.is_open:
            self._idle.append(line)
        body = Body(request, status, headers)
        body.take(data)
        return Response(status, headers, body.finish())

    async def _line(self) -> Line:
        """Return an idle connection, or a new one."""
        while self._idle:
            line = self._idle.pop()
            if line.is_open:
                return line
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, line = await asyncio.get_running_loop().create_connection(Line, *self._address)
        except OSError as error:
            raise OddError(str(error)) from error
        return line
