"""The budget of a commit: where its time goes, for a few numbers of clients, from what the log counts itself.

    .venv/bin/python -m benchmarks.budget NAME [--tlogd FILE --commit REV]    measure, and keep results/budget-NAME.json
    .venv/bin/python -m benchmarks.budget render                              draw plots/budget.svg from what is kept

    wait     from the admission of its oldest entry to the sealing of the batch
    append   the root from the right edge, and the entries made durable: one fsync
    recount  read back, hashed the second way, consistency verified
    sign     signed, and opened as a client would
    swap     the head made durable in the checkpoint store: one fsync
    hand     what is left of the time from sealing to publishing: two changes of thread, and the lock of the interpreter

`--tlogd` names the program of another version, to compare with: both are measured under the same load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from benchmarks.load.hammer import hammer, new_source
from benchmarks.load.part import Part, parse_address
from benchmarks.machine import Machine, describe
from benchmarks.plot import Stack, stacks
from benchmarks.process import BIN, Program

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENTS = (1, 64, 256)
STEPS = ("wait", "append", "recount", "sign", "swap", "hand")

_HERE = Path(__file__).parent


class Row(TypedDict):
    """One load: adds a second, entries of a commit, and milliseconds of each of its steps."""

    clients: int
    per_second: float
    entries: float
    steps_ms: dict[str, float]


class Budget(TypedDict):
    """What was measured of one version."""

    name: str
    machine: Machine
    rows: list[Row]


def read_budget(metrics: str) -> tuple[float, dict[str, float]]:
    """Return the entries of a commit and the milliseconds of its steps, on average, from what /metrics says."""
    entries = _mean(metrics, "treehead_commit_entries", "")
    steps = {step: 1e3 * _mean(metrics, "treehead_commit_step_seconds", f'step="{step}"') for step in STEPS[1:5]}
    whole = 1e3 * _mean(metrics, "treehead_commit_seconds", "")
    wait = 1e3 * _mean(metrics, "treehead_commit_wait_seconds", "")
    return entries, {"wait": wait, **steps, "hand": max(0.0, whole - sum(steps.values()))}


def _mean(metrics: str, name: str, label: str) -> float:
    """Return the mean of a histogram of one log."""
    found = {}
    for part in ("sum", "count"):
        lines = [line for line in metrics.splitlines() if line.startswith(f"{name}_{part}{{") and label in line]
        if len(lines) != 1:
            raise ValueError(f"{len(lines)} values of {name}_{part}")
        found[part] = float(lines[0].rpartition(" ")[2])
    return found["sum"] / found["count"]


def measure(tlogd: Path, clients: int, seconds: float, folder: Path) -> Row:
    """Load a new log, and return what its commits took."""
    data = folder / f"log-{clients}"
    command = [str(tlogd), "init", "--origin", "localhost/bench", "--data", str(data)]
    subprocess.run(command, check=True, capture_output=True)
    with Program([tlogd, "serve", "--config", data / "treehead.toml", "--port", "0"]) as program:
        part = Part(parse_address(program.url), "add", new_source(), clients, seconds, 0.0)
        report, _ = hammer(program.url, part, check="distinct")
        with urllib.request.urlopen(f"{program.url}/metrics", timeout=10) as answer:  # noqa: S310 — our own server
            entries, steps = read_budget(answer.read().decode())
    rounded = {step: round(value, 4) for step, value in steps.items()}
    return Row(clients=clients, per_second=report["per_second"], entries=round(entries, 1), steps_ms=rounded)


def draw(budgets: Sequence[Budget]) -> str:
    """Return the picture: for each load a bar for each version, its length the time of a commit."""
    rows = [
        (budget["name"], row)
        for clients in CLIENTS
        for budget in budgets
        for row in budget["rows"]
        if row["clients"] == clients
    ]
    return stacks(
        "A commit, from the admission of its oldest entry to the answer",
        "ms",
        STEPS,
        [
            Stack(
                f"{row['clients']} client{'s' * (row['clients'] > 1)}, {name}",
                tuple(row["steps_ms"][step] for step in STEPS),
                f"{row['per_second']:,.0f} adds/s",
            )
            for name, row in rows
        ],
    )


def main() -> None:
    """Measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what the measured version is called, or: render")
    parser.add_argument("--tlogd", type=Path, default=BIN / "tlogd", help="the program of the version")
    parser.add_argument("--commit", default="", help="its commit, where that is not the one of this checkout")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    options = parser.parse_args()
    results = _HERE / "results"
    if options.name != "render":
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            rows = [measure(options.tlogd, clients, options.seconds, Path(folder)) for clients in CLIENTS]
        machine = describe()
        machine["commit"] = options.commit or machine["commit"]
        budget = Budget(name=options.name, machine=machine, rows=rows)
        (results / f"budget-{options.name}.json").write_text(json.dumps(budget, indent=1) + "\n")
        json.dump(budget, sys.stdout, indent=1)
        return
    budgets = [json.loads(file.read_text()) for file in sorted(results.glob("budget-*.json"))]
    (_HERE / "plots").mkdir(exist_ok=True)
    (_HERE / "plots" / "budget.svg").write_text(
        draw(sorted(budgets, key=lambda budget: budget["rows"][0]["per_second"]))
    )


if __name__ == "__main__":
    main()
