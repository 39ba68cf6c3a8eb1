"""The body of an answer as it arrives: decoded, and never more of it than its request has use for."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tlog.errors import UnavailableError
from tlog.fetch import MAX_PROBLEM_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlog.fetch import Request


class Body:
    """The body of one answer, decoded as it arrives and bounded by what the request has use for.

    Of an answer that is no success only the beginning matters: it is cut off instead of refused.
    """

    def __init__(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        """Begin with the head of an answer, header names in lower case.

        Raises:
            UnavailableError: Its Content-Encoding is not one that was asked for.
        """
        self._cut = status >= 300
        self._limit = MAX_PROBLEM_SIZE if self._cut else request.max_size
        self._data = bytearray()
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise UnavailableError("the log answered in a Content-Encoding that nobody asked for")
        self._gunzip = zlib.decompressobj(wbits=31) if "gzip" in encoding else None

    def take(self, chunk: bytes) -> bool:
        """Add a chunk as it came from the network, and say whether more is of use.

        Raises:
            UnavailableError: Broken gzip, or more bytes than are of use.
        """
        room = self._limit + 1 - len(self._data)
        if self._gunzip:
            try:
                chunk = self._gunzip.decompress(chunk, room)
            except zlib.error:
                raise UnavailableError("the log answered with broken gzip") from None
            if self._gunzip.unused_data:
                raise UnavailableError("the log answered with bytes behind the end of its gzip")
        self._data += chunk[:room]
        if len(self._data) <= self._limit:
            return True
        if not self._cut:
            raise UnavailableError(f"the log answered with more than the {self._limit} bytes that are of use")
        return False

    def finish(self) -> bytes:
        """Return the body, decoded.

        Raises:
            UnavailableError: It was cut off.
        """
        if self._gunzip and not self._gunzip.eof and not self._cut:
            raise UnavailableError("the answer of the log was cut off")
        return bytes(self._data[: self._limit])
