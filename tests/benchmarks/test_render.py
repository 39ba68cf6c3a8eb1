"""The README's part is made from a result alone, and nothing around it changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from benchmarks.machine import Machine
from benchmarks.render import BEGIN, END, pictures, render, table
from benchmarks.result import FORMAT, NOOP, OURS, Measurement, Result, Spread, figure, load, newest, ratios, save
from benchmarks.row import ROWS, rows_named
from tests.support.skips import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {
    ("adds-1", OURS): [1000.0, 1500.0, 1400.0],
    ("adds-1", NOOP): [20_000.0, 20_000.0, 28_000.0],
    ("adds-1", "naive"): [500.0, 500.0, 350.0],
    ("adds-256", OURS): [60_000.0, 50_000.0, 70_000.0],
    ("adds-256", NOOP): [100_000.0] * 3,
    ("fresh", OURS): [0.8, 0.9, 1.2],
}


def result() -> Result:
    measurements = [
        Measurement(
            run=run,
            row=row,
            target=target,
            value=value,
            latency_ms={"p50": 1.5, "p99": 20.0} if target == OURS else {},
            refused=0,
            details={},
        )
        for (row, target), values in FIGURES.items()
        for run, value in enumerate(values)
    ]
    machine = Machine(
        python="CPython 3.11.2", pgo=True, commit="abc", cpu="X <&> Y", cores=2, memory_gib=24.0, system="Linux"
    )
    return Result(
        format=FORMAT,
        date="2026-01-02",
        machine=machine,
        options={"runs": 3, "seconds": 5.0, "entries": 100_000, "processes": 1},
        limits=[{"fdatasync": 5000.0, "sha256": 1e6, "ed25519": 40_000.0}] * 3,
        measurements=measurements,
    )


def cells(row: str) -> list[str]:
    line = next(line for line in table(result()).splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_median_spread_shares_and_ratios_run_by_run() -> None:
    row = cells("durable adds, 1 client")
    assert row[1] == "1,400 (1,000–1,500) adds/s"
    assert row[2] == "1.50, 20.0"
    assert row[3] == "≥ 1,300: met"
    assert row[4] == "5.00 % (5.00–7.50)"  # 1000/20000, 1500/20000, 1400/28000
    assert row[5] == "0.280 (0.200–0.300)"
    assert row[8] == "3.00 (2.00–4.00)"  # 1000/500, 1500/500, 1400/350


def test_a_goal_of_a_percentile_is_missed_by_the_percentile() -> None:
    assert cells("durable adds, 256 clients")[3] == "≥ 50,000, p99 ≤ 10: missed"


def test_less_can_be_better() -> None:
    row = cells("add to head served, 1 client, p50")
    assert row[1] == "0.900 (0.800–1.20) ms"
    assert row[3] == "≤ 1.00: met"


def test_rendering_is_deterministic_and_leaves_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    render(result(), "x.json", readme)
    once = readme.read_text(), {file.name: file.read_bytes() for file in (tmp_path / "plots").iterdir()}
    render(result(), "x.json", readme)
    assert once == (readme.read_text(), {file.name: file.read_bytes() for file in (tmp_path / "plots").iterdir()})
    assert re.fullmatch(rf"before\n\n{BEGIN}\n.*{END}\n\nafter\n", once[0], re.DOTALL)
    assert "old" not in once[0]
    for name in re.findall(r"\((plots/\w+\.svg)\)", once[0]):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}"])
def test_without_its_markers_a_page_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="lacks a marker"):
        render(result(), "x.json", readme)
    assert readme.read_text() == text


def test_the_pictures_are_svg_and_name_everyone() -> None:
    found = pictures(result())
    assert list(found) == ["adds", "shares"]
    for _, picture in found.values():
        assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    texts = {element.text for element in ET.fromstring(found["adds"][1]).iter()}
    assert {OURS, NOOP, "naive", "1,024"} <= texts


def test_a_result_is_read_as_it_was_written_and_the_newest_is_found(tmp_path: Path) -> None:
    save(result(), tmp_path / "2026-01-02-bench.json")
    save(result(), tmp_path / "2025-12-31-bench.json")
    save(result(), tmp_path / "2026-02-01-other.json")
    file = newest(tmp_path, "bench")
    assert file == tmp_path / "2026-01-02-bench.json"
    assert load(file) == result()
    file.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="not a result"):
        load(file)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234567.0, "1,230,000"),
        (999.6, "1,000"),
        (12.34, "12.3"),
        (0.000107, "0.000107"),
        (0.07777, "0.0778"),
        (1.0, "1.00"),
    ],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_ratio_is_of_the_same_run() -> None:
    assert ratios({0: 10.0, 1: 30.0, 2: 5.0}, {0: 5.0, 1: 10.0}) == Spread(2.5, 2.0, 3.0)
    assert ratios({0: 1.0}, {1: 1.0}) is None


def test_rows_are_found_by_name_and_by_group() -> None:
    assert rows_named([]) == list(ROWS)
    assert [row.name for row in rows_named(["adds-64", "fsck"])] == ["adds-64", "fsck"]
    assert [row.connections for row in rows_named(["adds"])] == [1, 16, 64, 256, 1024]
    with pytest.raises(ValueError, match="no row or group nothing"):
        rows_named(["nothing"])


def test_the_readme_has_its_markers_and_the_peers_lock_names_no_place() -> None:
    assert re.search(f"{BEGIN}.*{END}", (CHECKOUT / "benchmarks" / "README.md").read_text(), re.DOTALL)
    lock = (CHECKOUT / "benchmarks" / "peers" / "requirements.txt").read_text()
    assert "--hash=sha256:" in lock
    assert "://" not in lock
