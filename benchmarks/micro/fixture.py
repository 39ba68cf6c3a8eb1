"""What is used of pytest-benchmark, which has no types, and what the functions are fed with."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Protocol, TypeVar

from benchmarks.load.entry import Source

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_SOURCE = Source(0x6D6963726F, 0)


class Benchmark(Protocol):
    """The fixture `benchmark`."""

    def __call__(self, function: Callable[[], T]) -> T:
        """Run a function as often as it takes to time it, and return what it returned."""

    def pedantic(self, function: Callable[[], T], *, rounds: int, warmup_rounds: int) -> T:
        """Run a function that often, and return what it returned."""


def entries(count: int) -> list[bytes]:
    """Return entries of 300 bytes."""
    return [_SOURCE.entry(number) for number in range(count)]


def hashes(count: int) -> list[bytes]:
    """Return hashes of 32 bytes, all different."""
    return [sha256(number.to_bytes(8, "big")).digest() for number in range(count)]
