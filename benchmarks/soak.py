"""A long run at a share of what the server can do: does its memory grow, does its write-ahead log, do answers get late?

    .venv/bin/python -m benchmarks.soak                    ten minutes at 80 %
    .venv/bin/python -m benchmarks.soak --seconds 60 --warm-up 20

    1  the closed loop for a few seconds: the rate that the server can do
    2  the open loop at the share of that, for a few seconds: the percentiles to compare with
    3  the same for long, while memory and files are looked at each second

All on one log. Growth is the median of the last ten samples over that of the ten after the warm-up. Every answer is
judged as in `load/hammer.py`. Prints one JSON object; ends with 1 where an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contestant import Server
from benchmarks.process import serving_new_log
from benchmarks.session import FailedError, Load

if TYPE_CHECKING:
    from benchmarks.load.hammer import Report

_CONNECTIONS = 256
_STEP_S = 1.0
_SHORT_S = 10.0
_WINDOW = 10
_MAX_TREE_SIZE = 1 << 27


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server holds at one moment.

    Attributes:
        second: Seconds since the sampling began.
        memory: Resident memory, in bytes.
        wal: Bytes of all write-ahead logs together.
    """

    second: float
    memory: int
    wal: int


@dataclass(slots=True)
class Watch:
    """Samples a server each second until it is told to stop; owned by its thread until it has ended."""

    pid: int
    data: Path
    samples: list[Sample] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sample."""
        began = time.monotonic()
        while not self.stop.wait(_STEP_S):
            wal = sum(file.stat().st_size for file in self.data.glob("*.db-wal"))
            self.samples.append(Sample(time.monotonic() - began, resident(self.pid), wal))


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) << 10
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True)  # noqa: S607
    return int(done.stdout) << 10


def growth(samples: list[Sample], warm_up: float) -> int:
    """Return how much resident memory grew after the warm-up, in bytes."""
    memory = [sample.memory for sample in samples if sample.second >= warm_up]
    if not memory:
        return 0
    return round(statistics.median(memory[-_WINDOW:]) - statistics.median(memory[:_WINDOW]))


def soak(folder: Path, seconds: float, warm_up: float, share: float) -> tuple[Report, Report, Report, list[Sample]]:
    """Take all three steps; return their reports and the samples of the third.

    Raises:
        FailedError: An answer was wrong.
    """
    data = folder / "log"
    short = min(_SHORT_S, seconds)
    with serving_new_log(data, tree_size=_MAX_TREE_SIZE) as (program, vkey):
        server = Server(program.url, "full", vkey)
        closed = Load(short).hammer(server, "add", _CONNECTIONS)
        rate = share * closed["per_second"]
        compared = Load(short, rate=rate).hammer(server, "add", _CONNECTIONS)
        watch = Watch(program.pid, data)
        thread = threading.Thread(target=watch.run)
        thread.start()
        try:
            long = Load(seconds, rate=rate).hammer(server, "add", _CONNECTIONS)
        finally:
            watch.stop.set()
            thread.join()
    return closed, compared, long, [sample for sample in watch.samples if sample.second <= max(seconds, warm_up)]


def main() -> None:
    """Read the options, run, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds until memory counts")
    parser.add_argument("--share", type=float, default=0.8, help="of the measured closed-loop rate")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to try")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=".bench-") as name:
            closed, compared, long, samples = soak(Path(name), options.seconds, options.warm_up, options.share)
    except FailedError as error:
        sys.exit(f"soak: {error}")
    report = {
        "seconds": options.seconds,
        "closed_loop_per_second": closed["per_second"],
        "open_loop_per_second": long["per_second"],
        "refused": sum(long["statuses"].values()),
        "latency_ms": {"short": compared["latency_ms"], "long": long["latency_ms"]},
        "p99_over_short": round(long["latency_ms"]["p99"] / compared["latency_ms"]["p99"], 2),
        "memory_mb": {
            "growth_after_warm_up": round(growth(samples, options.warm_up) / 1e6, 1),
            "most": round(max((sample.memory for sample in samples), default=0) / 1e6, 1),
        },
        "wal_mb_most": round(max((sample.wal for sample in samples), default=0) / 1e6, 1),
        "acknowledged": long["acknowledged"],
        "in_place": long["checked"],
        "samples": [[round(sample.second), sample.memory, sample.wal] for sample in samples],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
