"""One call of the program: every row, with everyone who takes it in turn, run after run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.limit import measure_limits
from benchmarks.result import OURS, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.contestant import Contestant, Noop, Server
    from benchmarks.load.hammer import Report
    from benchmarks.row import Row
    from benchmarks.whole import Whole

_LIMIT_S = 1.0
_JUDGE_S = 600.0


class FailedError(Exception):
    """A server answered wrongly: there is no figure then."""


@dataclass(frozen=True, slots=True)
class Load:
    """How long and from how many processes a load comes.

    Attributes:
        seconds: Length of its timed part.
        processes: Number of generator processes.
        rate: Requests a second of the open loop; 0 for the closed loop.
    """

    seconds: float
    processes: int = 1
    rate: float = 0.0

    def hammer(self, server: Server, kind: str, connections: int) -> Report:
        """Put a server under load, from a process of its own.

        Raises:
            FailedError: An answer was wrong, or an entry was lost or moved.
        """
        command = [sys.executable, "-m", "benchmarks.load.hammer", server.url, kind, "--check", server.check]
        command += ["--connections", str(connections), "--seconds", str(self.seconds), "--size", str(server.size)]
        command += ["--processes", str(self.processes), "--patience", str(server.patience)]
        command += ["--rate", str(self.rate)]
        command += [] if server.vkey is None else ["--vkey", server.vkey]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_JUDGE_S + 20 * self.seconds, check=False
        )
        if not done.stdout:
            raise FailedError(f"{kind}: {done.stderr[-2000:]}")
        report: Report = json.loads(done.stdout)
        if report["errors"]:
            raise FailedError(f"{kind}: " + "; ".join(report["errors"]))
        return report


class Session:
    """Measures rows, and keeps what was measured.

    Attributes:
        limits: The machine's limits, one dictionary a run.
        measurements: All figures so far.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        contestants: Sequence[Contestant],
        noop: Noop,
        load: Load,
        whole: Whole,
        tell: Callable[[str], None],
    ) -> None:
        """Take what is measured, of whom, and how.

        Args:
            rows: The rows, in order.
            contestants: Ours first.
            noop: The one among them that does nothing.
            load: How long and from where.
            whole: Measures the rows that are no load.
            tell: Is told what is measured.
        """
        self.limits: list[dict[str, float]] = []
        self.measurements: list[Measurement] = []
        self._rows = rows
        self._contestants = contestants
        self._noop = noop
        self._load = load
        self._whole = whole
        self._tell = tell

    def run(self, number: int, folder: Path) -> None:
        """Measure everything once.

        Raises:
            FailedError: An answer was wrong.
        """
        self.limits.append(measure_limits(folder, min(_LIMIT_S, self._load.seconds)))
        for row in self._rows:
            for contestant in self._contestants:
                if contestant.takes(row):
                    self._measure(number, row, contestant)
            if row.kind == "":
                self._keep(self._whole.measure(number, row))

    def _measure(self, number: int, row: Row, contestant: Contestant) -> None:
        with contestant.running(row) as server:
            report = self._load.hammer(server, row.kind, row.connections)
        if contestant.name == OURS:
            self._noop.answer_bytes = report["answer_bytes"]
        self._keep(measurement_of(number, row, contestant.name, report))

    def _keep(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        value, refused = measurement["value"], measurement["refused"]
        self._tell(
            f"run {measurement['run'] + 1}  {measurement['row']:14} {measurement['target']:12} {value:12,.1f}"
            + (f"  ({refused} refused)" if refused else "")
        )


def measurement_of(number: int, row: Row, target: str, report: Report) -> Measurement:
    """Return the figure that a load has given."""
    return Measurement(
        run=number,
        row=row.name,
        target=target,
        value=report["items_per_second"],
        latency_ms=report["latency_ms"],
        refused=sum(report["statuses"].values()),
        details={
            "answers": report["answers"],
            "answer_bytes": report["answer_bytes"],
            "verified": report["verified"],
            "checked": report["checked"],
        },
    )
