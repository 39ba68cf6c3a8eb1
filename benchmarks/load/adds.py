"""Durable adds over HTTP: `POST /add` of 300 bytes, each acknowledged in a signed head, against this run's limits."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
CONNECTIONS = (1, 16, 64, 256)
ENTRY_SIZE = 300
NOOP_PORT_LINE = "listening "


class Client(asyncio.Protocol):
    """One connection that sends the next request when the last is answered, and times each."""

    def __init__(self, numbers: Iterator[int], times: list[float]) -> None:
        """Take request numbers from an iterator that all connections share."""
        self._numbers = numbers
        self._times = times
        self._buffer = b""
        self._since = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        number = next(self._numbers, None)
        if number is None:
            self._transport.close()
            self.done.set_result(None)
            return
        body = (b"%d " % number).ljust(ENTRY_SIZE, b"x")
        self._since = time.perf_counter()
        self._transport.write(b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def data_received(self, data: bytes) -> None:
        """Count an answer once it is whole."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(head.decode("latin-1")))
            return
        self._times.append(time.perf_counter() - self._since)
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail if the server hung up."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


async def load(port: int, connections: int, requests: int) -> dict[str, float]:
    """Send requests over connections; return the rate and two percentiles."""
    times: list[float] = []
    numbers = iter(range(requests))
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(numbers, times), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    seconds = time.perf_counter() - started
    times.sort()
    return {
        "per_second": round(requests / seconds, 1),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1e3, 2),
    }


def fdatasyncs(folder: Path, seconds: float = 1.0) -> float:
    """Return how many appends of 4 KiB a second this disk makes durable."""
    descriptor = os.open(folder / "limit", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        os.write(descriptor, bytes(4096))
        os.fdatasync(descriptor)
        count += 1
    os.close(descriptor)
    return round(count / (time.perf_counter() - started), 1)


async def noop_server() -> None:
    """Serve the no-op limit until killed."""

    async def add(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=b"0", content_type="text/plain")

    app = web.Application()
    app.add_routes([web.post("/add", add)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"{NOOP_PORT_LINE}{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


@contextmanager
def running(command: list[str], marker: str) -> Iterator[int]:
    """Run a server; yield the port behind the marker in what it prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if marker in line)
            yield int(json.loads(line)["port"] if line.startswith("{") else line.removeprefix(marker))
        finally:
            process.terminate()


def measure(connections: int, requests: int, folder: Path) -> dict[str, object]:
    """Measure one row: a new log, and the no-op server, under the same load."""
    data = folder / f"log-{connections}"
    subprocess.run(
        [BIN / "tlogd", "init", "--origin", "localhost/bench", "--data", data], check=True, capture_output=True
    )
    serve = [str(BIN / "tlogd"), "serve", "--config", str(data / "treehead.toml"), "--port", "0"]
    with running(serve, "server.listening") as port:
        adds = uvloop.run(load(port, connections, requests))
    with running([sys.executable, __file__, "--noop"], NOOP_PORT_LINE) as port:
        noop = uvloop.run(load(port, connections, requests))
    share = round(adds["per_second"] / noop["per_second"], 3)
    return {"connections": connections, "adds": adds, "noop": noop, "share_of_noop": share}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="requests a row; a tenth for one connection")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--noop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.noop:
        uvloop.run(noop_server())
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        limit = fdatasyncs(folder)
        rows = [measure(c, options.requests // (10 if c == 1 else 1), folder) for c in CONNECTIONS]
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "fdatasync_per_second": limit}
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(machine)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
