"""Answers as bytes, for the hot lane: what aiohttp would send of the same answer, field by field.

What is the same each time is made once: everything up to the length of the body, and once a second what follows it.

    HTTP/1.1 200 OK CRLF
    Content-Type: text/plain; charset=utf-8 CRLF  …  Content-Length:     made once for each kind of answer
    4                                                                    the body's
    CRLF Date: … CRLF Server: … CRLF CRLF                                made once a second
    1234
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING

from aiohttp import hdrs
from aiohttp.http import SERVER_SOFTWARE

from tlog.server.api.operation import FRESH, OPEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from tlog.server.api.operation import Operation


def form(operation: Operation, media_type: str, status: int = HTTPStatus.OK) -> bytes:
    """Return the answers of an operation in a media type, up to the length of the body."""
    return _head(status, operation.headers_of(media_type) | (OPEN if operation.is_public else {}))


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"{hdrs.CONTENT_LENGTH}: "]).encode()


class Stamp:
    """What follows the length: the date, the server, and the end of the head."""

    __slots__ = ("_bytes", "_second")

    def __init__(self) -> None:
        """Begin with none."""
        self._second = -1
        self._bytes = b""

    def __call__(self) -> bytes:
        """Return it for this second."""
        second = int(time())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True)
            self._bytes = f"\r\n{hdrs.DATE}: {date}\r\n{hdrs.SERVER}: {SERVER_SOFTWARE}\r\n\r\n".encode()
        return self._bytes

    def problem(self, response: web.Response) -> bytes:
        """Return a problem document as it is sent."""
        headers = dict(response.headers) | {hdrs.CACHE_CONTROL: FRESH} | OPEN
        body = response.body
        assert isinstance(body, bytes)  # noqa: S101 — answer_problem() makes nothing else
        return b"%b%d%b%b" % (_head(response.status, headers), len(body), self(), body)
