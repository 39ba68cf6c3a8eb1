"""The README's tables and pictures, from a result alone: the same result always gives the same text.

What stands between the two markers is the program's, everything else is written by people and stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.load.kind import ADDING
from benchmarks.plot import Line, bars, lines
from benchmarks.result import NOOP, OURS, Spread, by_run, figure, ratios, spread, targets_of
from benchmarks.row import ROWS, Row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from benchmarks.result import Measurement, Result

BEGIN = "<!-- written by ./dev bench: begin -->"
END = "<!-- written by ./dev bench: end -->"

_LIMITS = {
    "fdatasync": "appends of 4 KiB made durable, a second",
    "sha256": "SHA-256 of 301 bytes, a second, one core",
    "ed25519": "Ed25519 signatures, a second, one core",
}


def render(result: Result, source: str, readme: Path) -> None:
    """Write the tables into the README and the pictures beside it.

    Args:
        result: What was measured.
        source: Name of its file.
        readme: A file with both markers.

    Raises:
        ValueError: A marker is missing.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme.name} lacks a marker: {BEGIN} … {END}")
    folder = readme.parent / "plots"
    folder.mkdir(exist_ok=True)
    shown = []
    for name, (title, picture) in pictures(result).items():
        (folder / f"{name}.svg").write_text(picture)
        shown.append(f"![{title}](plots/{name}.svg)")
    parts = [BEGIN, _origin(result, source), table(result), _limits_table(result), *shown, END]
    readme.write_text(before + "\n\n".join(parts) + after)


def _origin(result: Result, source: str) -> str:
    """Return what the figures were measured with, as a sentence."""
    machine, options = result["machine"], result["options"]
    where = f"{machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}"
    build = "with" if machine["pgo"] else "without"
    return (
        f"Measured on {result['date']} at commit `{machine['commit']}` with {machine['python']} ({build} profile-"
        f"guided optimization) on {where}: "
        f"{options['runs']:.0f} runs of {options['seconds']:g} s a row, a log of {options['entries']:,.0f} entries for "
        "reads. Median, and least to greatest of the runs. The load generator runs on the same cores. "
        f"All figures: `results/{source}`."
    )


def table(result: Result) -> str:
    """Return the table of all rows that were measured."""
    others = [target for target in targets_of(result) if target not in (OURS, NOOP)]
    limits = list(_LIMITS)
    head = ["", OURS, "p50, p99 ms", "goal", f"of {NOOP}", *(f"÷ {limit}" for limit in limits)]
    rows = [_cells(result, row, others) for row in ROWS if by_run(result, row.name, OURS)]
    return _markdown([*head, *(f"× {other}" for other in others)], rows)


def _cells(result: Result, row: Row, others: Iterable[str]) -> list[str]:
    ours = by_run(result, row.name, OURS)
    values = _values(ours)
    cells = [row.title, f"{_spread(spread(values.values()))} {row.unit}", _latency(ours), _goal(row, ours)]
    noop = ratios(values, _values(by_run(result, row.name, NOOP)))
    cells.append(_spread(noop, 100, " %"))
    for limit in _LIMITS:
        known = {run: each[limit] for run, each in enumerate(result["limits"]) if limit in each}
        cells.append(_spread(ratios(values, known)) if limit in _limits_of(row) else "")
    return cells + [_spread(ratios(values, _values(by_run(result, row.name, other)))) for other in others]


def _limits_of(row: Row) -> Collection[str]:
    """Return the limits that a row could run into: appends need all of them, what is hashed or proven needs hashes."""
    if row.kind in ADDING:
        return _LIMITS
    return ("sha256",) if row.kind in ("proof", "proofs") or row.name == "fsck" else ()


def _values(measured: Mapping[int, Measurement]) -> dict[int, float]:
    return {run: each["value"] for run, each in measured.items()}


def _latency(measured: Mapping[int, Measurement]) -> str:
    """Return the medians of two percentiles."""
    found = [
        spread(each["latency_ms"][name] for each in measured.values() if name in each["latency_ms"])
        for name in ("p50", "p99")
    ]
    return ", ".join(figure(each.middle) for each in found if each)


def _goal(row: Row, measured: Mapping[int, Measurement]) -> str:
    """Return the goal, and whether the median reaches it."""
    middle = spread(each["value"] for each in measured.values())
    late = spread(each["latency_ms"].get("p99", 0.0) for each in measured.values())
    if row.goal == 0 or middle is None or late is None:
        return ""
    is_met = middle.middle <= row.goal if row.is_less_better else middle.middle >= row.goal
    is_met = is_met and (row.p99_goal == 0 or late.middle <= row.p99_goal)
    p99 = f", p99 ≤ {row.p99_goal:g}" if row.p99_goal else ""
    return f"{'≤' if row.is_less_better else '≥'} {figure(row.goal)}{p99}: {'met' if is_met else 'missed'}"


def _spread(found: Spread | None, factor: float = 1, unit: str = "") -> str:
    if found is None:
        return ""
    middle, low, high = (figure(value * factor) for value in (found.middle, found.low, found.high))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low}–{high})"


def _limits_table(result: Result) -> str:
    """Return the table of the machine's limits."""
    rows = [[text, _spread(spread(each[name] for each in result["limits"]))] for name, text in _LIMITS.items()]
    return _markdown(["limit of this machine", "measured in the same run"], rows)


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def pictures(result: Result) -> dict[str, tuple[str, str]]:
    """Return title and SVG of each picture that the result has the figures for, by name."""
    found: dict[str, tuple[str, str]] = {}
    adds = [row for row in ROWS if row.kind == "add"]
    plotted = [line for target in targets_of(result) if (line := _line(result, target, adds)).points]
    if plotted:
        title = "Durable adds, each acknowledged"
        places = [f"{row.connections:,}" for row in adds]
        found["adds"] = title, lines(title, "adds/s", places, plotted)
    shares = [(row.title, share) for row in ROWS if (share := _share(result, row)) is not None]
    if shares:
        title = "Share of a server that does nothing, under the same load"
        found["shares"] = title, bars(title, shares)
    return found


def _line(result: Result, target: str, rows: Iterable[Row]) -> Line:
    found = ((place, spread(_values(by_run(result, row.name, target)).values())) for place, row in enumerate(rows))
    return Line(target, tuple((place, each) for place, each in found if each is not None and each.low > 0))


def _share(result: Result, row: Row) -> Spread | None:
    return ratios(_values(by_run(result, row.name, OURS)), _values(by_run(result, row.name, NOOP)))
