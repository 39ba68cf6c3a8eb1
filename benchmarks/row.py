"""The rows of the table: what is measured, in which unit, and what is aimed at (300-byte entries).

The goals are those of a machine of two cores with a Python built with profile-guided optimization, the load generator
on the same two cores.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        name: What `./dev bench` calls it; the part before the dash names its group.
        title: What a table calls it.
        unit: Of its figure.
        goal: What the figure should reach.
        p99_goal: Milliseconds that the 99th percentile should not pass; 0 for none.
        kind: Kind of request; empty where the row is no load.
        connections: Number of connections of the load.
        is_less_better: Whether a smaller figure is the better one.
    """

    name: str
    title: str
    unit: str
    goal: float
    p99_goal: float = 0.0
    kind: str = ""
    connections: int = 1
    is_less_better: bool = False


ROWS = (
    Row("adds-1", "durable adds, 1 client", "adds/s", 1300, 0.0, "add", 1),
    Row("adds-16", "durable adds, 16 clients", "adds/s", 9000, 0.0, "add", 16),
    Row("adds-64", "durable adds, 64 clients", "adds/s", 30_000, 7.0, "add", 64),
    Row("adds-256", "durable adds, 256 clients", "adds/s", 50_000, 10.0, "add", 256),
    Row("adds-1024", "durable adds, 1,024 clients", "adds/s", 55_000, 0.0, "add", 1024),
    Row("entries-256", "adds with a proof in each answer, 256 clients", "adds/s", 30_000, 0.0, "entry", 256),
    Row("batch-16", "batch adds, 1,000 a request, 16 clients", "entries/s", 250_000, 0.0, "batch", 16),
    Row("proof-64", "inclusion proofs, one a request", "proofs/s", 40_000, 0.0, "proof", 64),
    Row("proofs-16", "inclusion proofs, 100 a request", "proofs/s", 150_000, 0.0, "proofs", 16),
    Row("checkpoint-64", "checkpoint reads", "requests/s", 60_000, 0.0, "checkpoint", 64),
    Row("tile-64", "full tile reads", "requests/s", 60_000, 0.0, "tile", 64),
    Row("bundle-64", "full entry bundle reads", "requests/s", 0, 0.0, "bundle", 64),
    Row("fresh", "add to head served, 1 client, p50", "ms", 1.0, is_less_better=True),
    Row("start", "start to first add", "ms", 500, is_less_better=True),
    Row("rebuild", "rebuild of derived data, with the start", "s", 60, is_less_better=True),
    Row("grown", "adds on the large log against 10,000 entries", "share", 0.9),
    Row("fsck", "fsck over HTTP, all cores", "entries/s", 350_000),
)
"""All rows, in the order of the table."""


def rows_named(names: list[str]) -> list[Row]:
    """Return the rows of names or groups, all where none is given.

    Raises:
        ValueError: There is no such row.
    """
    for name in names:
        if not any(name in (row.name, group_of(row)) for row in ROWS):
            groups = ", ".join(dict.fromkeys(map(group_of, ROWS)))
            raise ValueError(f"no row or group {name}; there are {groups}, and micro")
    return [row for row in ROWS if not names or row.name in names or group_of(row) in names]


def group_of(row: Row) -> str:
    """Return the group of a row."""
    return row.name.partition("-")[0]
