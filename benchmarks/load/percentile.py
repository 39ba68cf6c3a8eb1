"""Percentiles of measured times, by nearest rank: each is a time that was measured, and none lies between two."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PERMILLES = {"p50": 500, "p99": 990, "p99_9": 999, "max": 1000}
"""What is reported, by its name: the thousandths of all times that are not above it."""


def nearest_rank(ordered: Sequence[float], permille: int) -> float:
    """Return the smallest of the times such that at least permille/1000 of them are not above it.

    Args:
        ordered: At least one, ascending.
        permille: 1 to 1000.
    """
    return ordered[ceil(len(ordered) * permille / 1000) - 1]


def summary_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Return the percentiles of times in seconds, in milliseconds; empty where there is no time."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {name: round(nearest_rank(ordered, permille) * 1e3, 3) for name, permille in PERMILLES.items()}
