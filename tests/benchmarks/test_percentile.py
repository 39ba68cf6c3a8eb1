"""Percentiles are those of the definition: the smallest time that so many of all times do not exceed."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.percentile import nearest_rank, summary_ms

TIMES = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=400)


@given(TIMES, st.integers(1, 1000))
def test_it_is_the_smallest_time_that_enough_do_not_exceed(times: list[float], permille: int) -> None:
    def is_enough(time: float) -> bool:
        return Fraction(sum(each <= time for each in times), len(times)) >= Fraction(permille, 1000)

    assert nearest_rank(sorted(times), permille) == min(filter(is_enough, times))


def test_a_summary_is_in_milliseconds_and_in_any_order() -> None:
    times = [number / 1000 for number in range(1000, 0, -1)]
    assert summary_ms(times) == {"p50": 500.0, "p99": 990.0, "p99_9": 999.0, "max": 1000.0}


def test_of_nothing_there_is_no_summary() -> None:
    assert summary_ms([]) == {}


def test_one_slow_answer_of_a_thousand_is_the_maximum_and_nothing_else() -> None:
    assert summary_ms([0.001] * 999 + [5.0]) == pytest.approx({"p50": 1, "p99": 1, "p99_9": 1, "max": 5000})
