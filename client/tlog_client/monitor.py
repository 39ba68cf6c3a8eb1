"""A monitor: it follows a log, re-hashes every entry up to the signed root, and raises an alarm when that fails.

One round:

1. fetch the served head; the policy decides whether it is one
2. of the known size or smaller: it must be the known head, or consistent with it; older is no alarm
3. larger: re-hash the bundles of the new entries onto the edge of the tree that was checked before
4. the edge has the head's root: save head and edge. It has not: fork, if the tiles that lead to the new head hold
   another root for the old one; else bad entry, if one is not what the tiles say

The edge is the whole memory: a few dozen hashes. What is missing, cut off or garbled means "could not check", and never
raises an alarm.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tlog.edge import Edge, extend
from tlog.errors import CouldNotCheckError, ForkError, FormatError, PushbackError, VerificationError
from tlog.fetch import fetch_checkpoint
from tlog.merkle import leaf_hash
from tlog.reader import TileCache, read_bundles, read_entries, read_root
from tlog.strict import parse_decimal
from tlog_client.flow import chunks
from tlog_client.state import (
    KINDS,
    BadEntryError,
    Saved,
    Signed,
    StateError,
    StateFile,
    alone,
    origin_of,
    prove_fork,
    state_path,
)
from tlog_client.trust import check_growth, read_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.policy import Policy
    from tlog_client.run import AsyncRunner

BUNDLES = 64
"""Bundles that are read at once, and then hashed."""

MAX_DELAY = 300.0
"""Most seconds between two rounds after failures."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found; nothing bad.

    Attributes:
        head: The head that was checked.
        new: Entries that were re-hashed, ≥ 0.
        is_older: The log served a smaller head than was known.
        idle: Seconds since this monitor found the largest head that it knows, by its own clock, ≥ 0.
    """

    head: Checkpoint
    new: int
    is_older: bool
    idle: float = field(default=0.0, compare=False)


class Monitor:
    """What has been checked of one log, kept on disk. One process at a time."""

    def __init__(
        self,
        policy: Policy,
        state_dir: Path,
        progress: Callable[[int, int], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Load what was checked before.

        Args:
            policy: Whose signature makes a head; it names keys of one origin.
            state_dir: Folder of the state files.
            progress: Is called with the size that is checked and the size to reach.
            clock: Seconds since 1970.

        Raises:
            StateError: The state cannot be used.
        """
        self._policy = policy
        self._state_dir = state_dir
        self._progress = progress
        self._clock = clock
        self._grown = clock()  # when the known head was found
        self._path = state_path(state_dir, origin_of(policy), KINDS["monitor"])
        self._file = StateFile(self._path, "monitor", policy)
        self._cache = TileCache()
        self._known: Signed | None = None
        self._edge = Edge()
        self.load()

    def load(self) -> None:
        """Read the state.

        Raises:
            StateError: It cannot be used.
        """
        saved = self._file.load()
        if saved:
            self._known, self._edge = saved.signed, self._edge_of(saved)
            self._grown = _seconds_of(saved, self._grown)
        self._file.adopt(saved)

    def _edge_of(self, saved: Saved) -> Edge:
        size = saved.signed.head.size
        try:
            edge = Edge(size, tuple(bytes.fromhex(peak) for peak in saved.more.get("peaks", [])))
        except ValueError:
            edge = Edge()
        if len(edge.peaks) != size.bit_count() or edge.root() != saved.signed.head.root:
            raise StateError(f"{self._path} does not fit its own head; restore it, or remove it on purpose")
        return edge

    def alone(self) -> AbstractContextManager[None]:
        """Keep other monitors of this log with this state away, until the context ends.

        Raises:
            StateError: There is one already.
        """
        return alone(self._state_dir, origin_of(self._policy))

    def check(self) -> Fetching[Round]:
        """Do one round.

        Raises:
            ForkProvenError: Alarm: two heads exclude each other.
            BadEntryError: Alarm: an entry is not the one in the tree.
            VerificationError: Alarm: a signature does not hold, or the tiles do not lead to the head.
            CouldNotCheckError: Something is missing, or is not in its format.
            StateError: The state cannot be written.
        """
        try:
            return (yield from self._check())
        except FormatError as error:
            raise CouldNotCheckError(f"the log answered in another format: {error}") from error
        except ForkError as error:
            sizes = [self._policy.open_checkpoint(note) for note in (error.first, error.second)]
            raise prove_fork(error, self._state_dir, sizes) from error

    def _check(self) -> Fetching[Round]:
        note = yield from fetch_checkpoint()
        new, known = Signed(self._policy.open_checkpoint(note), note), self._known
        if known and new.head.size <= known.head.size:
            is_older = new.head.size < known.head.size
            yield from check_growth(*((new, known) if is_older else (known, new)), self._cache)
            return Round(new.head, 0, is_older, max(0.0, self._clock() - self._grown))
        edge = yield from self._rehash(new.head)
        if edge.root() != new.head.root:
            yield from self._explain(new)
        grown = self._clock()
        if not self._file.save(new, peaks=[peak.hex() for peak in edge.peaks], grown=[str(int(grown))]):
            raise StateError(f"{self._path} was changed by somebody else; end that monitor, then start this one again")
        added = edge.size - self._edge.size
        self._known, self._edge, self._grown = new, edge, grown
        return Round(new.head, added, is_older=False)

    def _rehash(self, head: Checkpoint) -> Fetching[Edge]:
        """Return the edge after all entries of the head, as they are served."""
        edge = self._edge
        for start, end in chunks(edge.size, head.size, BUNDLES):
            entries = yield from read_log(read_bundles(start, end, head.size))
            edge = extend(edge, [leaf_hash(entry) for entry in entries]).new
            self._progress(edge.size, head.size)
        return edge

    def _explain(self, new: Signed) -> Fetching[None]:
        """Find out why the entries do not lead to the head; never returns.

        Raises:
            ForkError, VerificationError, CouldNotCheckError: As `check`.
        """
        if self._known:
            yield from check_growth(self._known, new, self._cache)
        yield from read_log(read_root(new.head, new.head.size, self._cache))
        for start, end in chunks(self._edge.size, new.head.size, BUNDLES):
            try:
                yield from read_log(read_entries(new.head, start, end, self._cache))
            except VerificationError as error:
                raise BadEntryError(str(error)) from error
        raise CouldNotCheckError("the log served other entries a moment ago; the next round decides")


def _seconds_of(saved: Saved, now: float) -> float:
    """Return when the head of a state was found; now where it does not say, or where the clock was set back."""
    try:
        (text,) = saved.more["grown"]
        return min(now, parse_decimal(text.encode()))
    except (KeyError, ValueError, FormatError):
        return now


async def watch(
    runner: AsyncRunner,
    monitor: Monitor,
    interval: float | None,
    report: Callable[[Round | VerificationError | CouldNotCheckError], None],
) -> None:
    """Do a round each `interval` seconds, less often after failures, until cancelled; without an interval, do one.

    Raises:
        StateError: The state cannot be written.
    """
    failures = 0
    while True:
        asked = 0
        try:
            report(await runner.run(monitor.check()))
            failures = 0
        except (VerificationError, CouldNotCheckError) as error:
            report(error)
            failures += 1
            asked = (error.retry_after or 0) if isinstance(error, PushbackError) else 0
        if interval is None:
            return
        delay = min(interval * 2 ** min(failures, 16), max(interval, MAX_DELAY))
        await asyncio.sleep(max(delay, min(asked, MAX_DELAY)))
