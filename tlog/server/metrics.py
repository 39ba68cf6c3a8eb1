"""What a log counts while it runs: plain numbers, cheap to add to, owned by the event loop.

Whoever does the work adds to a `Meter`; what Prometheus reads is made of it when it asks, in `tlog.server.api.metrics`.
Numbers begin at zero with the process, and only ever grow, but for the gauges that the owners of queues are asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for what takes from half a millisecond, one fsync on a fast disk, to ten seconds, an outage."""

ENTRIES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10000.0)
"""Upper bounds for the entries of a commit."""


class Distribution:
    """Values, counted by upper bound.

    Attributes:
        bounds: The upper bounds, each included, ascending.
        counts: How many values fell into each, and above the last one.
        total: The sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with no values."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, *values: float) -> None:
        """Count values."""
        counts, bounds = self.counts, self.bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds that each step of one commit took on its thread; numbers as in `tlog.server.commit`.

    Attributes:
        append: Steps 3 and 4: the root from the edge, and the entries made durable.
        recount: Step 5: read back, counted the second way, consistency verified.
        sign: Step 6: signed, and opened as a client would.
        swap: Step 7: the head made durable in the checkpoint store.
    """

    append: float
    recount: float
    sign: float
    swap: float


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a log is like at one moment.

    Attributes:
        size: Entries of the served head.
        is_ready: Whether it signs in time what it takes.
        is_clock_stopped: Whether it signs nothing because its clock is not believed.
        pool_entries: Entries that were admitted and are not in a commit yet.
        pool_bytes: Their bytes.
        lag: Entries above the follower's position.
        keys: Idempotency keys that are kept.
        free: Free bytes of its disk.
        wal: Bytes of the write-ahead logs of its databases.
    """

    size: int
    is_ready: bool
    is_clock_stopped: bool
    pool_entries: int
    pool_bytes: int
    lag: int
    keys: int
    free: int
    wal: int


def _seconds() -> Distribution:
    return Distribution(SECONDS)


@dataclass(slots=True)
class Meter:
    """What one log counts. Owned by the event loop.

    Attributes:
        entries: Entries that were appended and signed.
        duplicates: Entries that the log had already, and answered with their first index.
        replays: Requests that came again under their Idempotency-Key, and were answered as before.
        clamps: Commits whose clock reading was before that of the commit before.
        clock_stops: How often the clock ceased to be believed.
        advanced_at: Seconds of the monotonic clock at which the head moved last, or the log was opened.
        scrubbed: Entries that were read again and compared with the tree.
        scrubs: How often everything was.
        scrubbed_at: Seconds of the monotonic clock at which everything was last, or the log was opened.
        damages: What was found damaged that way.
        batch: Entries in each commit.
        wait: Seconds that the oldest entry of each commit waited in the pool.
        whole: Seconds from sealing each batch to publishing its head.
        append: See Steps, as are the next three.
        recount: As said.
        sign: As said.
        swap: As said.
    """

    entries: int = 0
    duplicates: int = 0
    replays: int = 0
    clamps: int = 0
    clock_stops: int = 0
    advanced_at: float = 0.0
    scrubbed: int = 0
    scrubs: int = 0
    scrubbed_at: float = field(default_factory=monotonic)
    damages: int = 0
    batch: Distribution = field(default_factory=lambda: Distribution(ENTRIES))
    wait: Distribution = field(default_factory=_seconds)
    whole: Distribution = field(default_factory=_seconds)
    append: Distribution = field(default_factory=_seconds)
    recount: Distribution = field(default_factory=_seconds)
    sign: Distribution = field(default_factory=_seconds)
    swap: Distribution = field(default_factory=_seconds)

    def committed(self, steps: Steps, entries: int, times: tuple[float, float, float]) -> None:
        """Count a commit when its head is published.

        Args:
            steps: What it took on its thread.
            entries: How many it appended.
            times: When its oldest entry came in, it was sealed, and its head published: seconds of the monotonic clock.
        """
        came, sealed, published = times
        self.entries += entries
        self.advanced_at = published
        self.batch.add(entries)
        self.wait.add(sealed - came)
        self.whole.add(published - sealed)
        self.append.add(steps.append)
        self.recount.add(steps.recount)
        self.sign.add(steps.sign)
        self.swap.add(steps.swap)
