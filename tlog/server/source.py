"""Where lost entries come from: whatever serves, or holds, the tiles and bundles of a log (c2sp.org/tlog-tiles).

    https://…       a log, or a mirror of it
    a folder        a mirror as files: tile/…, bundles as they are or gzip-encoded
    a folder        with a log.db: another data directory
    a file          a log.db, or a backup

All are asked with the requests of `tlog.fetch`, and nothing that they answer is believed: the flows of `tlog.reader`
verify it up to a head. A source that leads elsewhere than its log can so withhold entries, and never bring in others.
"""

from __future__ import annotations

import asyncio
import zlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp

from tlog.errors import FormatError
from tlog.fetch import Response, over_http
from tlog.server.errors import SourceError, UnusableNameError
from tlog.server.stored import StoredSource
from tlog.server.verify.finding import LOG
from tlog.strict import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from tlog.fetch import Fetching, Request
    from tlog.reader import Reading
    from tlog.server.backup import Steps

T = TypeVar("T")

ANSWER_S = 30.0
"""Seconds within which a request to a server is answered, to the last byte."""

CONNECT_S = 10.0
"""Seconds within which a server takes a connection."""

CONNECTIONS = 16
"""Most requests to a server at once."""

TRIES = 4
"""How often a request is sent that was pushed back, or whose connection was lost."""

MAX_PAUSE_S = 10.0
"""Most seconds between two tries, whatever the server asks for."""

_GZIP = 31  # zlib's wbits for the gzip container
_PUSHBACK = (429, 503)
_CHUNK = 1 << 16


class Source(Protocol):
    """Answers requests for tiles, bundles and a checkpoint. Blocking; owned by one thread."""

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Return the answer to each request, in order; 404 for what it does not have.

        Raises:
            SourceError: It cannot be reached.
        """

    def close(self) -> None:
        """Let go of what it holds."""


def open_source(name: str, size: int, steps: Steps) -> Source:
    """Return the source of a name.

    Args:
        name: A URL, a folder, or a file.
        size: Number of entries that are of use.
        steps: Told what is being done.

    Raises:
        UnusableNameError: There is no such source, or it cannot be told what it is.
        StartRefusedError: Its database cannot be read, or goes on for more than one commit.
    """
    if name.startswith(("http://", "https://")):
        return ServedSource(_base(name))
    path = Path(name)
    if (path / LOG).exists():
        return StoredSource(path / LOG, size, steps)
    if (path / "tile").is_dir():
        return FolderSource(path)
    if path.is_file():
        return StoredSource(path, size, steps)
    raise UnusableNameError(f"{name} is no URL, no backup, and no folder with the tiles or the log.db of a log")


def run(source: Source, fetching: Fetching[T]) -> T:
    """Drive a flow to its end.

    Raises:
        TreeheadError: Whatever the flow raises, or SourceError.
    """
    with closing(fetching):
        try:
            requests = next(fetching)
            while True:
                requests = fetching.send(source.answer(requests))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # StopIteration is not generic


def read(source: Source, reading: Reading[T]) -> T:
    """Drive a flow that reads tiles and bundles to its end; see `run`."""
    return run(source, over_http(reading))


class FolderSource:
    """A mirror as files, named as they are served."""

    def __init__(self, folder: Path) -> None:
        """Take the folder that holds `tile`."""
        self._folder = folder

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Answer from files; see Source."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Response:
        path = self._folder / request.path
        if not path.is_file():
            return Response(404, {}, b"")
        try:
            with path.open("rb") as file:
                data = file.read(request.max_size + _CHUNK)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        if data[:2] == b"\x1f\x8b":  # of a bundle that is not encoded, this is the length of an entry
            data = _gunzip(data, request.max_size) or data
        return Response(200, {}, data[: request.max_size + 1])

    def close(self) -> None:
        """Hold nothing."""


class ServedSource:
    """A server, asked over several connections. No redirect is followed, and no more is read than is of use."""

    def __init__(self, base: str) -> None:
        """Take the URL of the log, with a slash at its end; nothing is asked yet."""
        self._base = base
        self._runner = asyncio.Runner()
        self._session: aiohttp.ClientSession | None = None

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Ask; see Source."""
        return self._runner.run(self._answer(requests))

    async def _answer(self, requests: Sequence[Request]) -> list[Response]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "gzip", "User-Agent": "tlogd"},
                auto_decompress=False,
            )
        asking: list[Coroutine[None, None, Response]] = [self._ask(self._session, request) for request in requests]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in asking]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # one is enough, and says the same as the others
        return [task.result() for task in tasks]

    async def _ask(self, session: aiohttp.ClientSession, request: Request) -> Response:
        """Send a request, again where that may help."""
        for tried in range(1, TRIES + 1):
            pause = tried / TRIES
            try:
                response = await self._get(session, request)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if tried == TRIES or isinstance(error, TimeoutError):
                    reason = "it takes too long" if isinstance(error, TimeoutError) else _reason(error)
                    raise SourceError(f"{self._base}{request.path} does not answer: {reason}") from error
            else:
                if response.status not in _PUSHBACK or tried == TRIES:
                    return response
                pause = _pause_s(response)
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _get(self, session: aiohttp.ClientSession, request: Request) -> Response:
        async with session.get(self._base + request.path, allow_redirects=False) as answer:
            data = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK):
                data += chunk
                if len(data) > request.max_size + _CHUNK:
                    break
            headers = {name.lower(): value for name, value in answer.headers.items()}
        body = bytes(data)
        if "gzip" in headers.get("content-encoding", ""):
            body = _gunzip(body, request.max_size) or b""
        return Response(answer.status, headers, body[: request.max_size + 1])

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char <= " " or char in "?#@\\\x7f" for char in url):
        raise UnusableNameError("the URL of a source names a host, and has no credentials, query or fragment")
    return url.rstrip("/") + "/"


def _gunzip(data: bytes, max_size: int) -> bytes | None:
    """Decode at most one byte more than is of use; None where it is no gzip."""
    reader = zlib.decompressobj(_GZIP)
    try:
        decoded = reader.decompress(data, max_size + 1)
    except zlib.error:
        return None
    return decoded if reader.eof or len(decoded) > max_size else None


def _reason(error: Exception) -> str:
    """Return what went wrong with a connection, in a few words."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return getattr(inner, "strerror", None) or str(error) or type(error).__name__


def _pause_s(response: Response) -> float:
    try:
        return min(MAX_PAUSE_S, parse_decimal(response.headers.get("retry-after", "").encode()))
    except (FormatError, UnicodeEncodeError):
        return 1.0
