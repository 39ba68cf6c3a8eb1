"""What a commit takes is read from /metrics, and drawn as it was measured."""

from __future__ import annotations

import re

import pytest

from benchmarks.budget import STEPS, Budget, Row, draw, read_budget
from benchmarks.machine import describe

METRICS = """# TYPE treehead_commit_entries histogram
treehead_commit_entries_count{log="x"} 4.0
treehead_commit_entries_sum{log="x"} 10.0
treehead_commit_wait_seconds_count{log="x"} 4.0
treehead_commit_wait_seconds_sum{log="x"} 0.002
treehead_commit_seconds_count{log="x"} 4.0
treehead_commit_seconds_sum{log="x"} 0.008
""" + "".join(
    f'treehead_commit_step_seconds_count{{log="x",step="{step}"}} 4.0\n'
    f'treehead_commit_step_seconds_sum{{log="x",step="{step}"}} {seconds}\n'
    for step, seconds in (("append", 0.0016), ("recount", 0.0008), ("sign", 0.0004), ("swap", 0.0012))
)


def test_a_budget_is_the_mean_of_each_step_and_what_is_left() -> None:
    entries, steps = read_budget(METRICS)
    assert entries == 2.5
    assert steps == pytest.approx({"wait": 0.5, "append": 0.4, "recount": 0.2, "sign": 0.1, "swap": 0.3, "hand": 1.0})


def test_metrics_without_commits_are_no_budget() -> None:
    with pytest.raises(ValueError, match="0 values of treehead_commit_entries_sum"):
        read_budget("")


def test_bars_are_as_long_as_their_steps() -> None:
    rows = [Row(clients=1, per_second=10.0, entries=1.0, steps_ms=dict.fromkeys(STEPS, size)) for size in (1.0, 2.0)]
    budgets = [Budget(name=f"{at}", machine=describe(), rows=[row]) for at, row in enumerate(rows)]
    picture = draw(budgets)
    widths = [float(width) for width in re.findall(r'width="([0-9.]+)" height="16"', picture)]
    assert widths[6:] == [2 * width for width in widths[:6]]
    assert draw(budgets) == picture
