"""Runners: they drive the flows of `tlog.fetch` over real sockets, and never look into what they carry.

A flow yields a list of requests and is sent the list of responses; a failure to get one of them is thrown into the
flow. An empty list means that it waits for another flow of the same client. `AsyncRunner` works over aiohttp,
`SyncRunner` over urllib3; each library is imported when its runner is first used.

No redirect is followed, no cookie is kept, no proxy is taken from the environment, and no more of a body is kept than
its request has use for, counted after decompression.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from tlog.errors import NotFoundError, TreeheadError, UnavailableError
from tlog.fetch import Response, check
from tlog_client.body import Body
from tlog_client.failure import CONNECT_TIMEOUT, network_error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator
    from types import ModuleType
    from typing import Self

    import aiohttp
    import urllib3

    from tlog.fetch import Fetching, Request

T = TypeVar("T")

MAX_REQUESTS = 16
"""Most requests of one flow that are under way at once."""

MAX_CONNECTIONS = 128
"""Most connections of one asynchronous client."""

TOTAL_TIMEOUT = 60.0
"""Seconds that one request may take, from connecting to the last byte of its answer."""

SILENCE = 45.0
"""Seconds after which a stream without a byte counts as broken: three heartbeats of the log."""

_CHUNK = 1 << 16
_THREADS = 8


class OptionError(TreeheadError, ValueError):
    """A URL, a token or another setting of the caller that cannot be used."""


def parse_url(url: str) -> str:
    """Return the address of a log with exactly one slash at its end.

    Raises:
        OptionError: Not http or https, no host, or with credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise OptionError("the URL of the log cannot be read") from None
    if parts.scheme not in ("http", "https") or not usable:
        raise OptionError("the URL of a log begins with http:// or https:// and names a host")
    if "@" in parts.netloc:
        raise OptionError("the URL of a log holds no credentials; give a token instead")
    if "?" in url or "#" in url or any(char <= " " or char in "\\\x7f" for char in url):
        raise OptionError("the URL of a log has no query, no fragment and no white space")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"


def _headers(token: str | None) -> dict[str, str]:
    """Return the headers of every request."""
    headers = {"Accept-Encoding": "gzip", "User-Agent": "treehead-client"}
    if token is not None:
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise OptionError("a token is one word of printable ASCII characters")
        headers["Authorization"] = f"Bearer {token}"
    return headers


class _Sender(Protocol):
    """What turns requests into responses."""

    def send(self, requests: list[Request]) -> list[Response]:
        """Return the response to each request, in order."""


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """What a flow returned."""

    value: T


def _advance(flow: Fetching[T], answer: list[Response] | UnavailableError | None) -> list[Request] | _Done[T]:
    """Take a flow from one list of requests to the next, or to its end; None begins it."""
    try:
        if isinstance(answer, UnavailableError):
            return flow.throw(answer)
        return next(flow) if answer is None else flow.send(answer)
    except StopIteration as done:
        return _Done(done.value)


def drive(sender: _Sender, flow: Fetching[T]) -> T:
    """Run a flow to its end.

    Raises:
        TreeheadError: Whatever the flow raises.
    """
    with closing(flow):
        step = _advance(flow, None)
        while isinstance(step, list):
            answer: list[Response] | UnavailableError
            try:
                answer = sender.send(step)
            except UnavailableError as error:
                answer = error
            step = _advance(flow, answer)
        return step.value


class AsyncRunner:
    """Drives flows over aiohttp; several at once share one session."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        """Take the address of a log, and a bearer token where it asks for one.

        Raises:
            OptionError: The URL or the token cannot be used.
        """
        self._base = parse_url(url)
        self._headers = _headers(token)
        self._session: aiohttp.ClientSession | None = None  # made where a loop runs
        self._ended: asyncio.Event | None = None  # set when the next flow ends

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, flow: Fetching[T]) -> T:
        """Run a flow to its end. Where it asks for nothing, it waits until another flow has ended.

        Raises:
            TreeheadError: Whatever the flow raises.
        """
        try:
            step = _advance(flow, None)
            while isinstance(step, list):
                answer: list[Response] | UnavailableError
                try:
                    answer = await self._send(step)
                except UnavailableError as error:
                    answer = error
                step = _advance(flow, answer)
            return step.value
        finally:
            flow.close()
            if self._ended is not None:
                self._ended.set()
                self._ended = None

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body of an answer that does not end, chunk by chunk as it arrives.

        Raises:
            NotFoundError: The log has no such stream.
            CouldNotCheckError: It did not answer with one, was silent for 45 seconds, or the connection broke.
        """
        import aiohttp  # noqa: PLC0415  # as in _send

        try:
            async with self._open(aiohttp).request(
                request.method,
                self._base + request.path,
                headers={**dict(request.headers), "Accept-Encoding": "identity"},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE),
            ) as answer:
                if answer.status != 200:
                    check(await _read(request, answer))
                if answer.content_type != dict(request.headers).get("Accept"):
                    raise NotFoundError(f"{self._base}{request.path} is no stream")
                async for chunk in answer.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise network_error(self._base, error, SILENCE) from error

    def _open(self, http: ModuleType) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _open_session(http, self._headers)
        return self._session

    async def _send(self, requests: list[Request]) -> list[Response]:
        """Return the response to each request, in order; the first failure ends the others."""
        import asyncio  # noqa: PLC0415  # verifying offline needs none of this

        if not requests:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()
            return []
        limit = asyncio.Semaphore(MAX_REQUESTS)
        tasks = [asyncio.ensure_future(self._fetch(request, limit)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, request: Request, limit: asyncio.Semaphore) -> Response:
        import aiohttp  # noqa: PLC0415  # as in _send

        async with limit:
            try:
                async with self._open(aiohttp).request(
                    request.method,
                    self._base + request.path,
                    headers=dict(request.headers),
                    data=BytesIO(request.body) if request.body else request.body,  # large bytes are sent in pieces so
                    allow_redirects=False,
                ) as answer:
                    return await _read(request, answer)
            except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError too
                raise network_error(self._base, error, TOTAL_TIMEOUT) from error


def _open_session(http: ModuleType, headers: dict[str, str]) -> aiohttp.ClientSession:
    session: aiohttp.ClientSession = http.ClientSession(
        auto_decompress=False,  # Body bounds what comes out
        connector=http.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=http.DummyCookieJar(),
        headers=headers,
        timeout=http.ClientTimeout(total=TOTAL_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
    )
    return session


async def _read(request: Request, answer: aiohttp.ClientResponse) -> Response:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    body = Body(request, answer.status, headers)
    async for chunk in answer.content.iter_chunked(_CHUNK):
        if not body.take(chunk):
            break
    return Response(answer.status, headers, body.finish())


class SyncRunner:
    """Drives flows over urllib3; the requests of one list are sent side by side by a few threads."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        """Take the address of a log, and a bearer token where it asks for one.

        Raises:
            OptionError: The URL or the token cannot be used.
        """
        import urllib3  # noqa: PLC0415  # verifying offline needs no HTTP

        self._base = parse_url(url)
        self._pool = urllib3.PoolManager(
            headers=_headers(token),
            maxsize=_THREADS,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=TOTAL_TIMEOUT),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def run(self, flow: Fetching[T]) -> T:
        """Run a flow to its end.

        Raises:
            TreeheadError: Whatever the flow raises.
        """
        return drive(self, flow)

    def send(self, requests: list[Request]) -> list[Response]:
        """Return the response to each request, in order; after a failure no further one is begun.

        Raises:
            UnavailableError: One of them could not be got.
        """
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # most lists hold one request

        if len(requests) < 2:
            return [self._fetch(request) for request in requests]
        with ThreadPoolExecutor(_THREADS) as threads:
            futures = [threads.submit(self._fetch, request) for request in requests]
            try:
                return [future.result() for future in futures]
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, request: Request) -> Response:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415  # as in __init__

        try:
            answer = self._pool.request(
                request.method,
                self._base + request.path,
                body=request.body,
                headers={**self._pool.headers, **dict(request.headers)},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            return _read_sync(request, answer)
        except (HTTPError, OSError) as error:
            raise network_error(self._base, error, TOTAL_TIMEOUT) from error


def _read_sync(request: Request, answer: urllib3.BaseHTTPResponse) -> Response:
    deadline = time.monotonic() + TOTAL_TIMEOUT
    headers = {name.lower(): value for name, value in answer.headers.items()}
    is_read = False
    try:
        body = Body(request, answer.status, headers)
        while chunk := answer.read1(_CHUNK, decode_content=False):
            if not body.take(chunk):
                break
            if time.monotonic() > deadline:
                raise UnavailableError(f"the answer took longer than {TOTAL_TIMEOUT:g} s")
        else:
            is_read = True
        return Response(answer.status, headers, body.finish())
    finally:
        if not is_read:
            answer.close()
        answer.release_conn()
