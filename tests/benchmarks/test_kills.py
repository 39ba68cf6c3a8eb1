"""What is compared after a kill: a log that lost, moved or took back anything is found."""

from __future__ import annotations

import pytest

from benchmarks.contestant import Server
from benchmarks.kills import Lives, compare
from benchmarks.load.entry import Source
from benchmarks.load.part import Acknowledged
from benchmarks.session import FailedError, Load
from tests.support.simulated_log import SimulatedLog, changed, flipped, serving

SOURCE = Source(3, 4)


def acknowledged(*places: tuple[int, int]) -> Acknowledged:
    one = Acknowledged(SOURCE)
    for index, number in places:
        one.indexes.append(index)
        one.numbers.append(number)
    return one


def log_of(*numbers: int) -> SimulatedLog:
    return SimulatedLog([b"genesis", *map(SOURCE.entry, numbers)])


def errors_of(log: SimulatedLog, lives: Lives) -> list[str]:
    with serving(log) as url:
        compare(lives, url, log.vkey)
    return lives.errors


def test_what_is_there_is_counted() -> None:
    lives = Lives(acknowledged=[acknowledged((1, 0), (3, 2)), acknowledged((2, 1))])
    assert errors_of(log_of(0, 1, 2), lives) == []
    assert lives.checked == lives.total() == 3


@pytest.mark.parametrize("numbers", [(0, 1), (0, 2, 1), (0, 1, 3), ()])
def test_an_entry_that_is_gone_or_elsewhere_is_found(numbers: tuple[int, ...]) -> None:
    assert errors_of(log_of(*numbers), Lives(acknowledged=[acknowledged((1, 0), (2, 1), (3, 2))]))


def test_a_checkpoint_that_was_taken_back_is_found() -> None:
    newer = log_of(0, 1, 2)
    lives = Lives(acknowledged=[acknowledged((1, 0))], note=newer.note())
    assert errors_of(log_of(0, 1), lives)


def test_a_checkpoint_of_another_history_is_found() -> None:
    lives = Lives(note=log_of(0, 1).note())
    assert errors_of(log_of(0, 2, 3), lives)


def test_a_run_with_a_wrong_answer_gives_no_figure() -> None:
    log = SimulatedLog.of_size(300)
    log.lies["tile/entries"] = changed(flipped)
    with serving(log) as url:
        server = Server(url, "full", log.vkey)
        assert Load(0.2).hammer(server, "checkpoint", 1)["answers"] > 0
        with pytest.raises(FailedError, match="bundle"):
            Load(0.2).hammer(server, "bundle", 1)
