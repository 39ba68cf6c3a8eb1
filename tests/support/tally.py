"""Counts of a long test."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Tally:
    """What was done, and what came of it."""

    steps: int = 0
    starts: int = 0
    crashes: int = 0
    stops: int = 0
    faults: int = 0
    restores: int = 0
    refused_starts: int = 0
    resumed: int = 0
    answers: int = 0
    refusals: int = 0
    entries: int = 0
    heads: int = 0
    reads: int = 0
    proofs: int = 0

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, each.name):,} {each.name.replace('_', ' ')}" for each in fields(self))
