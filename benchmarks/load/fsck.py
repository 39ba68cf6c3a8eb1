"""`tlog fsck` of a log over HTTP, server and check on the same cores, against the SHA-256 limit of the same run.

The limit: the hashes that the check cannot do without, one for each entry and one for each node above, in a tight loop
on every core at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tlog.errors import PushbackError
from tlog.server.config import read_config
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import Iterator


class Report(TypedDict):
    """What is used of a report."""

    result: str
    size: int
    timing: dict[str, float]


BIN = Path(sys.executable).parent
ENTRY_SIZE = 300
BATCH = 4096
LIMIT_SECONDS = 2.0


def hash_for(seconds: float) -> float:
    """Return how many entries a second one core hashes, each with one node."""
    leaf, node = bytes(1 + ENTRY_SIZE), bytes(65)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(1000):
            sha256(leaf).digest()
            sha256(node).digest()
        count += 1000
    return count / (time.perf_counter() - started)


def limit(cores: int) -> float:
    """Return how many entries a second all cores hash together."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.map(hash_for, [LIMIT_SECONDS] * cores, chunksize=1))


def fill(data: Path, size: int) -> None:
    """Let a log grow to a size, by the write path itself."""

    def fail(error: BaseException) -> None:
        raise error

    async def run() -> None:
        async with open_log(read_config(data / "treehead.toml"), fail) as log:
            while (start := log.head.size) < size:
                numbers = range(start, min(size, start + BATCH))
                try:
                    await log.add_many([(b"%d " % number).ljust(ENTRY_SIZE, b"x") for number in numbers])
                except PushbackError:
                    await asyncio.sleep(0.05)

    asyncio.run(run())


@contextmanager
def serving(data: Path) -> Iterator[str]:
    """Serve a log, and return its URL."""
    command = [str(BIN / "tlogd"), "serve", "--config", str(data / "treehead.toml"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "server.listening" in line)
        try:
            yield f"http://127.0.0.1:{json.loads(line)['port']}"
        finally:
            process.terminate()
            process.stderr.read()


def check(url: str, data: Path, state: Path, workers: int) -> Report:
    """Run the command once, and return its report."""
    options = ["--vkey", f"@{data / 'vkey'}", "--state-dir", str(state), "--json", "--workers", str(workers)]
    command = [str(BIN / "tlog"), "fsck", url, *options]
    report: Report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert report["result"] == "verified"
    return report


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a log to check, made where it is missing and kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        data = options.data or Path(name) / "log"
        if not data.exists():
            init = [BIN / "tlogd", "init", "--origin", "localhost/bench", "--data", data]
            subprocess.run(init, check=True, capture_output=True)
            fill(data, options.entries)
        cores = os.cpu_count() or 1
        hashes = limit(cores)
        rows = []
        with serving(data) as url:
            for number in range(options.runs):
                report = check(url, data, Path(name) / f"state-{number}", options.workers)
                rate = report["size"] / report["timing"]["seconds"]
                share = {"entries_per_second": round(rate), "share_of_sha256": round(rate / hashes, 3)}
                rows.append({"entries": report["size"], "workers": options.workers, **report["timing"], **share})
    machine = {"python": platform.python_version(), "cores": cores, "sha256_entries_per_second": round(hashes)}
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(machine)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
