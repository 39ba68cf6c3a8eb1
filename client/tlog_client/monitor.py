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
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.edge import Edge, extend
from tlog.errors import CouldNotCheckError, ForkError, FormatError, PushbackError, VerificationError
from tlog.fetch import fetch_checkpoint, over_http
from tlog.merkle import leaf_hash
from tlog.reader import TileCache, read_bundles, read_entries, read_root
from tlog.tile import TILE_WIDTH
from tlog_client.state import (
    BadEntryError,
    Saved,
    Signed,
    StateError,
    StateFile,
    locked,
    origin_of,
    prove_fork,
    state_path,
)
from tlog_client.trust import check_growth

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
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
    """

    head: Checkpoint
    new: int
    is_older: bool


class Monitor:
    """What has been checked of one log, kept on disk. One process at a time."""

    def __init__(self, policy: Policy, state_dir: Path, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Load what was checked before.

        Args:
            policy: Whose signature makes a head; it names keys of one origin.
            state_dir: Folder of the state files.
            progress: Is called with the size that is checked and the size to reach.

        Raises:
            StateError: The state cannot be used.
        """
        self._policy = policy
        self._state_dir = state_dir
        self._progress = progress
        self._path = state_path(state_dir, origin_of(policy), ".monitor.json")
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
        path = self._path.with_suffix(".lock")
        return locked(path, f"another monitor of this log runs with {self._path}; end it, or pass another --state-dir")

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
            return Round(new.head, 0, is_older)
        edge = yield from self._rehash(new.head)
        if edge.root() != new.head.root:
            yield from self._explain(new)
        if not self._file.save(new, peaks=[peak.hex() for peak in edge.peaks]):
            raise StateError(f"{self._path} was changed by somebody else; end that monitor, then start this one again")
        added = edge.size - self._edge.size
        self._known, self._edge = new, edge
        return Round(new.head, added, is_older=False)

    def _rehash(self, head: Checkpoint) -> Fetching[Edge]:
        """Return the edge after all entries of the head, as they are served."""
        edge = self._edge
        for start, end in _chunks(edge.size, head.size):
            entries = yield from over_http(read_bundles(start, end, head.size))
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
        yield from over_http(read_root(new.head, new.head.size, self._cache))
        for start, end in _chunks(self._edge.size, new.head.size):
            try:
                yield from over_http(read_entries(new.head, start, end, self._cache))
            except VerificationError as error:
                raise BadEntryError(str(error)) from error
        raise CouldNotCheckError("the log served other entries a moment ago; the next round decides")


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of entries where bundles end, 64 at a time."""
    while start < end:
        until = min(end, (start // TILE_WIDTH + BUNDLES) * TILE_WIDTH)
        yield start, until
        start = until


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


async def stoppable(work: Coroutine[None, None, None]) -> bool:
    """Run until the end, or until SIGTERM or SIGINT; say whether it was the end."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
        return True
    return False
