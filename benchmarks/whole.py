"""The rows that are no load: one client's way from an add to the served head, starts, rebuilds, growth, and fsck."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, TypedDict

from benchmarks.contestant import Server
from benchmarks.load.hammer import new_source
from benchmarks.load.index import plain_index
from benchmarks.load.part import parse_address
from benchmarks.load.percentile import summary_ms
from benchmarks.load.wire import WireError, parse_answer
from benchmarks.log import grow
from benchmarks.process import BIN, init_log, serve_log, serving_new_log
from benchmarks.result import OURS, Measurement
from tlog.checkpoint import parse_checkpoint
from tlog.note import split_note

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.row import Row
    from benchmarks.session import Load

SMALL = 10_000
"""Entries in the log that the large one is held against."""

_COPIED = 1_000_000
_CONNECTIONS = 256
_CHUNK = 1 << 16
_TIMEOUT_S = 60.0
_FSCK_S = 3600.0


class _Fsck(TypedDict):
    """What is used of fsck's report."""

    result: str
    size: int
    timing: dict[str, float]


class Client:
    """One connection that waits for each answer; no event loop, for what one client sees."""

    def __init__(self, url: str) -> None:
        """Connect."""
        self.address = parse_address(url)
        self._socket = socket.create_connection((self.address.host, self.address.port), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """Send a request, and return the body of the answer.

        Raises:
            WireError: The answer is none, or another status than 200.
        """
        self._socket.sendall(request)
        data = b""
        while (parsed := parse_answer(data)) is None:
            if not (more := self._socket.recv(_CHUNK)):
                raise WireError("the server closed the connection")
            data += more
        status, at, end = parsed
        if status != 200:
            raise WireError(f"status {status}")
        return data[at:end]

    def add(self, entry: bytes) -> int:
        """Add an entry, and return its index."""
        return plain_index(self.ask(self.address.http("POST", "/add", "", entry)))

    def size(self) -> int:
        """Return the size of the served head."""
        note = self.ask(self.address.http("GET", "/checkpoint"))
        return parse_checkpoint(split_note(note)[0], extensions=True).size


def times_to_head(url: str, seconds: float) -> list[float]:
    """Return how long it takes from sending an entry until the served head has it, again and again, in seconds."""
    client, source, times = Client(url), new_source(), list[float]()
    until = time.perf_counter() + seconds
    try:
        while (began := time.perf_counter()) < until or not times:
            index = client.add(source.entry(len(times)))
            while client.size() <= index:
                if time.perf_counter() - began > _TIMEOUT_S:
                    raise WireError(f"the served head does not reach entry {index}")
            times.append(time.perf_counter() - began)
    finally:
        client.close()
    return times


class Whole:
    """Measures the rows that are no load, on the prepared log and on new ones."""

    def __init__(self, folder: Path, prepared: Path, vkey: str, entries: int, load: Load) -> None:
        """Take the prepared log of that many entries, where others are made, and the load of the row `grown`."""
        self._folder = folder
        self._prepared = prepared
        self._vkey = vkey
        self._entries = entries
        self._load = load

    def measure(self, run: int, row: Row) -> Measurement:
        """Measure one row."""
        measures = {
            "fresh": self._fresh,
            "start": self._start,
            "rebuild": self._rebuild,
            "grown": self._grown,
            "fsck": self._fsck,
        }
        value, latency, details = measures[row.name]()
        return Measurement(
            run=run, row=row.name, target=OURS, value=value, latency_ms=latency, refused=0, details=details
        )

    def _fresh(self) -> tuple[float, dict[str, float], dict[str, float]]:
        with serving_new_log(self._folder / "fresh") as (program, _):
            times = times_to_head(program.url, self._load.seconds)
        shutil.rmtree(self._folder / "fresh")
        latency = summary_ms(times)
        return latency["p50"], latency, {"adds": len(times)}

    def _start(self) -> tuple[float, dict[str, float], dict[str, float]]:
        began = time.perf_counter()
        with serve_log(self._prepared) as program:
            client = Client(program.url)
            index = client.add(new_source().entry(0))
            milliseconds = (time.perf_counter() - began) * 1e3
            client.close()
        return round(milliseconds, 1), {}, {"entries": index, "listening_ms": round(program.start_s * 1e3, 1)}

    def _rebuild(self) -> tuple[float, dict[str, float], dict[str, float]]:
        for file in self._prepared.glob("tiles.db*"):
            file.unlink()
        with serve_log(self._prepared) as program:
            return round(program.start_s, 3), {}, {"entries": self._entries}

    def _grown(self) -> tuple[float, dict[str, float], dict[str, float]]:
        small, large = self._folder / "small", self._folder / "large"
        vkey = init_log(small)
        grow(small, SMALL)
        few = self._adds(small, vkey)
        shutil.rmtree(small)
        if self._entries > _COPIED:
            many = self._adds(self._prepared, self._vkey)
        else:
            shutil.copytree(self._prepared, large)
            many = self._adds(large, self._vkey)
            shutil.rmtree(large)
        return round(many / few, 3), {}, {"entries": self._entries, "few_per_second": few, "many_per_second": many}

    def _adds(self, data: Path, vkey: str) -> float:
        with serve_log(data) as program:
            report = self._load.hammer(Server(program.url, "full", vkey), "add", _CONNECTIONS)
        return report["per_second"]

    def _fsck(self) -> tuple[float, dict[str, float], dict[str, float]]:
        cores = os.cpu_count() or 1
        state = self._folder / "fsck"
        with serve_log(self._prepared) as program:
            options = ["--vkey", self._vkey, "--state-dir", str(state), "--json", "--workers", str(cores)]
            command = [str(BIN / "tlog"), "fsck", program.url, *options]
            done = subprocess.run(command, check=True, capture_output=True, timeout=_FSCK_S)
        report: _Fsck = json.loads(done.stdout)
        assert report["result"] == "verified"
        shutil.rmtree(state)
        return round(report["size"] / report["timing"]["seconds"], 1), {}, {"entries": report["size"], "workers": cores}
