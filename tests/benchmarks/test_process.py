"""Servers are waited for and ended by their own process IDs; the one that does nothing answers everything."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.limit import measure_limits
from benchmarks.load.hammer import hammer, new_source
from benchmarks.load.kind import KINDS
from benchmarks.load.part import Part, parse_address
from benchmarks.process import Program, ServerError
from benchmarks.whole import Client
from tests.support.simulated_log import SimulatedLog, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def noop() -> Iterator[str]:
    with Program([sys.executable, "-m", "benchmarks.load.noop", "--answer-bytes", "700"]) as program:
        yield program.url


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_that_does_nothing_takes_every_load(noop: str, kind: str) -> None:
    part = Part(parse_address(noop), kind, new_source(), 3, 0.3, 0.0, size=1 << 20)
    report, _ = hammer(noop, part, check="none")
    assert report["errors"] == []
    assert report["answer_bytes"] == 700
    assert report["answers"] >= 3


def test_a_program_listens_where_it_says_and_ends_when_told() -> None:
    command = "import json, time; print('hello'); print(json.dumps({'port': 5}), flush=True); time.sleep(50)"
    with Program([sys.executable, "-c", command]) as program:
        assert program.url == "http://127.0.0.1:5"
        os.kill(program.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)


def test_a_program_that_ends_is_told_with_what_it_said() -> None:
    with pytest.raises(ServerError, match="no such luck"):
        Program([sys.executable, "-c", f"print('no such luck'); print({json.dumps({'x': 1})!r})"])


def test_limits_are_measured(tmp_path: Path) -> None:
    limits = measure_limits(tmp_path, 0.02)
    assert sorted(limits) == ["ed25519", "fdatasync", "sha256"]
    assert all(limit > 0 for limit in limits.values())
    assert list(tmp_path.iterdir()) == []


def test_one_client_asks_and_waits() -> None:
    log = SimulatedLog.of_size(9)
    with serving(log) as url:
        client = Client(url)
        assert client.size() == 9
        assert client.size() == 9
        client.close()
    assert log.asked == ["checkpoint", "checkpoint"]
