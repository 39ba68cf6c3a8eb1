"""Results: what one run of the program has measured, as it is kept in `results/`.

    {"format": 1, "date": …, "machine": {…}, "options": {…},
     "limits": [{"fdatasync": …, "sha256": …, "ed25519": …}, …]           one a run
     "measurements": [{"run": 0, "row": "adds-256", "target": "treehead", "value": …, …}, …]}

Shares and ratios are not kept: they follow from the measurements, each from two of the same run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypedDict

from benchmarks.machine import Machine  # noqa: TC001  # a TypedDict is evaluated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT = 1
"""Version of the form above."""

OURS = "treehead"
"""Name of our own server among the targets."""

NOOP = "no-op"
"""Name of the server that does nothing."""


class Measurement(TypedDict):
    """One figure of one target in one run.

    `latency_ms` is empty where it is not measured; `refused` counts answers like 503; `details` has what the figure is
    made of.
    """

    run: int
    row: str
    target: str
    value: float
    latency_ms: dict[str, float]
    refused: int
    details: dict[str, float]


class Result(TypedDict):
    """All that is kept of one call of the program."""

    format: int
    date: str
    machine: Machine
    options: dict[str, float]
    limits: list[dict[str, float]]
    measurements: list[Measurement]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of several runs.

    Attributes:
        middle: Median.
        low: Least.
        high: Greatest.
    """

    middle: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of some values, or None where there are none."""
    known = list(values)
    return Spread(median(known), min(known), max(known)) if known else None


def by_run(result: Result, row: str, target: str) -> dict[int, Measurement]:
    """Return what a target reached in a row, by run."""
    return {each["run"]: each for each in result["measurements"] if (each["row"], each["target"]) == (row, target)}


def ratios(above: Mapping[int, float], below: Mapping[int, float]) -> Spread | None:
    """Return the spread of one over the other, run by run: what the machine did in between cancels out."""
    return spread(above[run] / below[run] for run in above if below.get(run, 0.0) > 0.0)


def targets_of(result: Result) -> list[str]:
    """Return the targets of a result in the order in which they were measured."""
    return list(dict.fromkeys(each["target"] for each in result["measurements"]))


def load(file: Path) -> Result:
    """Read a result.

    Raises:
        ValueError: It has another format.
    """
    result: Result = json.loads(file.read_bytes())
    if result.get("format") != FORMAT:
        raise ValueError(f"{file.name} is not a result of format {FORMAT}")
    return result


def save(result: Result, file: Path) -> None:
    """Write a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def newest(folder: Path, name: str) -> Path | None:
    """Return the newest result of a name: its file is <date>-<name>.json."""
    files = sorted(folder.glob(f"????-??-??-{name}.json"))
    return files[-1] if files else None


def figure(value: float) -> str:
    """Return a number to three digits, as a table shows it."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.{max(0, digits)}f}"
