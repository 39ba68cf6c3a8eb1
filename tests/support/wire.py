"""HTTP/1.1 by hand: what is sent is exactly what was written, and nothing is normalised, followed or retried."""

from __future__ import annotations

import asyncio
import zlib
from base64 import b64decode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, cast

from tlog.fetch import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from typing import Self

    from tlog.fetch import Fetching, Request

T = TypeVar("T")

Headers = tuple[tuple[str, str], ...]


class Connection(asyncio.Protocol):
    """One connection, kept alive, with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._reply: asyncio.Future[Response] | None = None
        self._bodiless = False
        self._lost: BaseException | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to a port of this machine."""
        return (await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    async def request(
        self, method: str, path: str | bytes, body: bytes | None = None, headers: Headers = ()
    ) -> Response:
        """Send one request and return its answer, as it was sent.

        Raises:
            ConnectionError: The server hung up before the whole answer.
        """
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        lines = ["Host: localhost", *length, *(f"{name}: {value}" for name, value in headers)]
        target = path if isinstance(path, bytes) else path.encode()
        return await self.send(
            method.encode()
            + b" "
            + target
            + b" HTTP/1.1\r\n"
            + "\r\n".join(lines).encode()
            + b"\r\n\r\n"
            + (body or b""),
            bodiless=method == "HEAD",
        )

    async def send(self, data: bytes, *, bodiless: bool = False) -> Response:
        """Send bytes and return the answer to them.

        Raises:
            ConnectionError: The server hung up before the whole answer.
        """
        if self._lost is not None:
            raise ConnectionResetError("the server hung up") from self._lost
        self._bodiless = bodiless
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._reply

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if self._bodiless or " 204 " in status else int(headers["content-length"])
        if len(body) < length:
            return
        assert len(body) == length, "more bytes than the answer has"
        reply, self._reply, self._buffer = self._reply, None, b""
        assert reply is not None, f"an answer that nobody asked for: {head!r}"
        if not reply.done():
            reply.set_result(Response(int(status.split(" ")[1]), headers, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("closed")
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the server hung up"))

    async def close(self) -> None:
        """Close the connection, and let the loop see it closed."""
        self._transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Open a connection, and close it afterwards."""
    connection = await Connection.open(port)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection whose answers are read by hand, and close it afterwards."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


class Pool:
    """Several connections; a list of requests is sent side by side, and answered in order."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    async def get_all(self, paths: Iterable[str]) -> list[Response]:
        """Get many paths, Content-Encoding undone."""
        numbered = list(enumerate(paths))
        waiting = iter(numbered)
        found: dict[int, Response] = {}

        async def work(connection: Connection) -> None:
            for at, path in waiting:
                found[at] = decoded(await connection.request("GET", path))

        await asyncio.gather(*map(work, self._connections))
        return [found[at] for at, _ in numbered]

    async def run(self, flow: Fetching[T]) -> T:
        """Drive a flow of `tlog.fetch`."""
        try:
            requests = next(flow)
            while True:
                requests = flow.send(await self._respond(requests))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # StopIteration is not generic

    async def _respond(self, requests: list[Request]) -> list[Response]:
        assert {(request.method, request.headers, request.body) for request in requests} == {("GET", (), None)}
        return await self.get_all(f"/{request.path}" for request in requests)


@asynccontextmanager
async def pool(port: int, size: int = 8) -> AsyncIterator[Pool]:
    """Open a pool, and close it afterwards."""
    connections = [await Connection.open(port) for _ in range(size)]
    try:
        yield Pool(connections)
    finally:
        for connection in connections:
            await connection.close()


def decoded(response: Response) -> Response:
    """Undo gzip, with zlib: the server uses another library."""
    if response.headers.get("content-encoding") != "gzip":
        return response
    return Response(response.status, response.headers, zlib.decompress(response.body, 31))


def head_of(note: bytes) -> tuple[int, bytes]:
    """Return size and root of a signed checkpoint, read the simple way."""
    lines = note.split(b"\n")
    return int(lines[1]), b64decode(lines[2])
