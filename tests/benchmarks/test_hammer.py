"""The load generator against a real server, and against logs that lie: what was lost or moved is always found."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from benchmarks.kills import run
from benchmarks.load.hammer import Report, hammer, new_source
from benchmarks.load.kind import ADDING, KINDS
from benchmarks.load.part import Part, parse_address
from benchmarks.process import serving_new_log
from tests.support.rfc6962 import Tree
from tests.support.simulated_log import OTHER, SimulatedLog, always, changed, entry_of, flipped, serving
from tlog.fetch import Response

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tlog.fetch import Request

SECONDS = 0.3
LONGER = 1.0  # in which the fifth of a row of requests is answered on any machine


def load(
    url: str, kind: str, vkey: str | None, *, check: str = "full", connections: int = 4, seconds: float = SECONDS
) -> Report:
    part = Part(parse_address(url), kind, new_source(), connections, seconds, 0.0)
    report, _ = hammer(url, part, check=check, vkey=vkey)
    return report


class PlainLog(SimulatedLog):
    """A log that takes `POST /add`, and then does something with what it took."""

    def __init__(self, then: Callable[[list[bytes]], int]) -> None:
        super().__init__([entry_of(0)])
        self._then = then

    def _respond(self, request: Request) -> Response:
        if request.path != "add":
            return super()._respond(request)
        assert isinstance(self.tree.entries, list)
        assert request.body is not None
        self.tree.entries.append(request.body)
        index = self._then(self.tree.entries)
        self.size = len(self.tree.entries)
        return Response(200, {}, b"%d" % index)


def honest(entries: list[bytes]) -> int:
    return len(entries) - 1


def lost(entries: list[bytes]) -> int:
    if len(entries) == 5:
        entries[-1] = b"another"
    return len(entries) - 1


def moved(entries: list[bytes]) -> int:
    if len(entries) == 5:
        entries[3:5] = entries[4], entries[3]
    return len(entries) - 1


def twice(entries: list[bytes]) -> int:
    return len(entries) - 1 - (len(entries) == 5)


def ahead(entries: list[bytes]) -> int:
    return len(entries) + 1000


def test_an_honest_log_has_no_errors() -> None:
    log = PlainLog(honest)
    with serving(log) as url:
        report = load(url, "add", log.vkey)
    assert report["errors"] == []
    assert report["checked"] == report["acknowledged"] == len(log.tree.entries) - 1 > 4


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lost, "does not hold the entry"),
        (moved, "does not hold the entry"),
        (twice, "two entries were acknowledged at index 3"),
        (ahead, "are beyond the newest checkpoint"),
    ],
)
def test_what_was_lost_or_moved_is_found(lie: Callable[[list[bytes]], int], says: str) -> None:
    log = PlainLog(lie)
    with serving(log) as url:
        report = load(url, "add", log.vkey, connections=1, seconds=LONGER)
    assert any(says in error for error in report["errors"])
    assert any("are not in place" in error for error in report["errors"])
    assert report["checked"] < report["acknowledged"]


def test_without_tiles_an_index_that_was_given_twice_is_found_still() -> None:
    log = PlainLog(twice)
    with serving(log) as url:
        report = load(url, "add", None, check="distinct", connections=1, seconds=LONGER)
    assert "two entries were acknowledged at index 3" in report["errors"]


def test_bundles_that_the_tree_does_not_have_are_found() -> None:
    log = PlainLog(honest)
    log.lies["tile/entries"] = changed(flipped)
    with serving(log) as url:
        report = load(url, "add", log.vkey)
    assert any("is not the one that the tree" in error for error in report["errors"])
    assert report["checked"] == 0


def test_a_checkpoint_of_another_key_is_found_where_the_key_is_known() -> None:
    log = PlainLog(honest)
    log.signer = OTHER
    with serving(log) as url:
        assert load(url, "add", SimulatedLog.of_size(1).vkey)["errors"]
        assert load(url, "add", None)["errors"] == []


def test_a_proof_that_does_not_hold_is_found() -> None:
    log = SimulatedLog.of_size(5)
    with serving(log) as url:
        assert load(url, "entry", log.vkey)["errors"] == []
        log.lies["v1/entries"] = changed(lambda body: flipped(body, body.index(b"proof") + 10))
        errors = load(url, "entry", log.vkey)["errors"]
    assert any("does not lead to the root" in error for error in errors)


def test_a_tile_of_another_tree_is_found() -> None:
    log = SimulatedLog.of_size(300)
    other = Tree([b"other", *log.tree.entries[1:]])
    with serving(log) as url:
        assert load(url, "tile", log.vkey)["errors"] == []
        log.lies["tile/0/000"] = always(200, b"".join(other.mth(at, at + 1) for at in range(256)))
        assert load(url, "tile", log.vkey)["errors"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> object:
    with serving_new_log(tmp_path_factory.mktemp("real") / "log", ballast_bytes=0) as (program, vkey):
        assert load(program.url, "batch", vkey, connections=1)["errors"] == []
        yield program.url, vkey


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_of_a_real_server_is_right(real: tuple[str, str], kind: str) -> None:
    url, vkey = real
    report = load(url, kind, vkey)
    assert report["errors"] == []
    assert report["answers"] > 0
    assert report["verified"] > 0
    assert (report["checked"] > 0) == (kind in ADDING)
    assert report["checked"] == report["acknowledged"]


def test_two_processes_share_the_work(real: tuple[str, str]) -> None:
    url, vkey = real
    part = Part(parse_address(url), "add", new_source(), 3, SECONDS, 0.0, rate=200.0)
    report, acknowledged = hammer(url, part, processes=2, vkey=vkey)
    assert report["errors"] == []
    assert [one.source.process for one in acknowledged] == [0, 1]
    assert sum(len(one.numbers) for one in acknowledged) == report["checked"] == pytest.approx(60, abs=4)


def test_nothing_is_lost_when_the_server_is_killed_under_load(tmp_path: Path) -> None:
    lives = run(tmp_path / "log", kills=2, longest=0.3, connections=16, chance=random.Random(5))
    assert lives.errors == []
    assert lives.kills == 2
    assert lives.checked == lives.total() > 0
