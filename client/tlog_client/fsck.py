"""The check of a whole log, on all cores, that can be interrupted at any moment and goes on where it was.

    1  fetch the served head, or take the one that is given, and compare it with the trusted one
    2  take what an earlier run has checked of this head, or of an older one that grew into this one
    3  read the hash that each range must have
    4  check the other ranges in worker processes, and keep each result
    5  check everything above the ranges, and the genesis entry
    6  trust the head, where nothing was wrong and nothing missing

**What is kept** (`<SHA-256 of the origin>.fsck.json`, saved once a second and at the end): the head, and the result of
each range that was read in full, damage included, so a run that was interrupted reports what one without a break does.
Of an older head only whole ranges count, and only once the new head is proven to have grown out of it. When a run has
read everything, its state is removed, and the next one begins anew. When something could not be read, what was good is
kept, so that the next run needs to read only the rest.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from tlog.damage import Checked, Damage, Unread
from tlog.errors import CouldNotCheckError, ForkError, FormatError, TreeheadError, VerificationError
from tlog.fetch import fetch_checkpoint, over_http
from tlog.fsck import (
    RANGE_HEIGHT,
    check_genesis,
    check_top,
    count_ranges,
    fetch_each,
    range_bounds,
    read_expected,
    read_genesis,
)
from tlog.tile import TILE_WIDTH, Bundle, width_at
from tlog_client.finding import format_checked, parse_checked
from tlog_client.pool import Pool, Task, check_here
from tlog_client.run import SyncRunner
from tlog_client.state import Signed, StateError, StateFile, locked, origin_of, prove_fork, state_path
from tlog_client.trust import Trust, check_growth, read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.policy import Policy
    from tlog_client.pool import Done

SAVE_INTERVAL = 1.0
"""Seconds between two saves of what was checked."""

MAX_SHOWN = 1000
"""Most findings of a kind in a report; all are counted."""

Working: TypeAlias = Generator["Done | int", None, None]
"""Results of tasks in any order, and in between numbers of bundles that were read."""

_UNPROVEN = (CouldNotCheckError, FormatError, VerificationError)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check has found.

    Attributes:
        head: The head whose tree was checked.
        damage: The first things that are proven wrong, from the first entry to the last, then upwards.
        damaged: Number of all.
        unread: The first that could not be read, in the same order.
        missing: Number of all.
        genesis: Whether the log names itself in entry 0: "fits", "none", "wrong", or "unchecked" where damage, or what
            could not be read, is in the way.
    """

    head: Checkpoint
    damage: tuple[Damage, ...]
    damaged: int
    unread: tuple[Unread, ...]
    missing: int
    genesis: str


@dataclass(frozen=True, slots=True)
class Start:
    """What is known before ranges are checked.

    Attributes:
        signed: The head to check.
        known: Results of ranges that need not be checked again.
        expected: The hash that each range must have; None where that could not be read.
        doubt: Why the head could not be compared with the trusted one, or these hashes not be read.
    """

    signed: Signed
    known: dict[int, Checked]
    expected: list[bytes] | None
    doubt: TreeheadError | None


class Fsck:
    """The check of one log, and what is kept of it on disk."""

    def __init__(
        self,
        policy: Policy,
        state_dir: Path,
        *,
        note: bytes | None = None,
        progress: Callable[[int, int], None] = lambda *_: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take whose signature makes a head, and where state is kept.

        Args:
            policy: It names keys of one origin.
            state_dir: Folder of the state files.
            note: Signed note of the head to check; None for the one that the log serves.
            progress: Is called with the number of entries that are checked, and of all.
            tell: Is called with a sentence for people where the check does not begin at the beginning.

        Raises:
            StateError: The kept trust cannot be used.
        """
        self._policy = policy
        self._state_dir = state_dir
        self._note = note
        self._progress = progress
        self._tell = tell
        self._path = state_path(state_dir, origin_of(policy), ".fsck.json")
        self._file = StateFile(self._path, "fsck", policy)
        self._trust = Trust(policy, state_dir)

    def run(self, url: str, token: str | None, workers: int, *, resume: bool) -> Report:
        """Check the log.

        Args:
            url: Address of the log.
            token: Bearer token.
            workers: Number of processes.
            resume: Whether to go on where an earlier run was interrupted.

        Raises:
            ForkProvenError: The head excludes the trusted one.
            VerificationError: The head is not signed as it must be.
            CouldNotCheckError: The log does not answer.
            StateError: State cannot be used.
        """
        busy = f"another check of this log runs with {self._path}; end it, or pass another --state-dir"
        with locked(self._path.with_suffix(".lock"), busy), SyncRunner(url, token=token) as runner:
            start = runner.run(self.begin(resume=resume))
            ranges = self.check_ranges(start, partial(_in_workers, url, token, workers))
            return runner.run(self.finish(start, ranges))

    # Before.

    def begin(self, *, resume: bool = True) -> Fetching[Start]:
        """Take steps 1 to 3; see `run`."""
        note = self._note if self._note is not None else (yield from fetch_checkpoint())
        signed = self._trust.open(note)
        doubt: TreeheadError | None = None
        try:
            yield from self._trust.accept(signed)
        except ForkError:
            raise
        except _UNPROVEN as error:
            doubt = error  # what is wrong with the tiles is what this run finds out
        known = yield from self._resume(signed, resume=resume)
        expected: list[bytes] | None = None
        try:
            expected = yield from over_http(read_expected(signed.head))
        except (FormatError, VerificationError) as error:
            doubt = error
        except CouldNotCheckError:
            pass
        return Start(signed, known, expected, doubt)

    def _resume(self, signed: Signed, *, resume: bool) -> Fetching[dict[int, Checked]]:
        """Return the results of an earlier run that hold for this head."""
        if not resume:
            self._path.unlink(missing_ok=True)
        saved = self._file.load()
        self._file.adopt(saved)
        if saved is None:
            return {}
        size = min(saved.signed.head.size, signed.head.size)
        try:
            known = dict(map(parse_checked, saved.more.get("ranges", [])))
        except FormatError as error:
            raise StateError(f"{self._path} is of another version; --no-resume begins anew") from error
        if saved.signed.head != signed.head:
            if not (yield from self._is_growth(saved.signed, signed)):
                self._tell("what was checked before is of a head that cannot be compared with this one: beginning anew")
                return {}
            known = {number: checked for number, checked in known.items() if number < size >> RANGE_HEIGHT}
        if known:
            entries = sum(_length(signed.head, number) for number in known)
            self._tell(
                f"going on: {entries} of {signed.head.size} entries were checked before; --no-resume begins anew"
            )
        return known

    def _is_growth(self, old: Signed, new: Signed) -> Fetching[bool]:
        small, large = sorted((old, new), key=lambda signed: signed.head.size)
        try:
            yield from check_growth(small, large, self._trust.cache)
        except ForkError as error:
            raise prove_fork(error, self._state_dir, (small.head, large.head)) from error
        except _UNPROVEN:
            return False
        return True

    # The ranges.

    def check_ranges(self, start: Start, work: Callable[[list[Task]], Working]) -> list[Checked]:
        """Return the result of each range, in order; whatever happens, keep what there is (step 4).

        Args:
            start: What is known.
            work: Does tasks.
        """
        head, known = start.signed.head, dict(start.known)
        numbers = range(count_ranges(head.size))
        hashes: Sequence[bytes | None] = start.expected or [None] * len(numbers)
        tasks = [Task(head.size, number, hashes[number]) for number in numbers if number not in known]
        done = sum(_length(head, number) for number in known)
        saved_at = float("-inf")
        try:
            with closing(work(tasks)) as messages:
                for message in messages:
                    if isinstance(message, int):
                        done = min(head.size, done + message * TILE_WIDTH)
                        self._progress(done, head.size)
                        continue
                    known[message.number] = message.checked
                    if time.monotonic() - saved_at >= SAVE_INTERVAL:
                        self._save(start.signed, known)
                        saved_at = time.monotonic()
        finally:
            self._save(start.signed, known)
        return [known[number] for number in numbers]

    def _save(self, signed: Signed, known: dict[int, Checked]) -> None:
        """Keep the results of ranges that were read in full."""
        rows = [format_checked(number, checked) for number, checked in sorted(known.items()) if not checked.missing]
        with _undisturbed():
            if not self._file.save(signed, ranges=rows):
                raise StateError(f"{self._path} was changed by somebody else; run the same command again")

    # After.

    def finish(self, start: Start, ranges: list[Checked]) -> Fetching[Report]:
        """Take steps 5 and 6; see `run`."""
        head = start.signed.head
        top = yield from fetch_each(check_top(head, start.expected, ranges))
        parts = [*ranges, top]
        missing = sum(part.missing for part in parts)
        is_whole = not missing and not any(part.damaged for part in parts)
        genesis, wrong = yield from self._check_genesis(head, is_whole=is_whole)
        if start.doubt is not None and is_whole:  # what was wrong at first is right now
            yield from self._trust.accept(start.signed)
        yield from self._trust.close()
        if missing:
            self._save(start.signed, {number: each for number, each in enumerate(ranges) if not each.damaged})
        else:
            self._path.unlink(missing_ok=True)
        damage = [*(found for part in parts for found in part.damage), *wrong]
        damaged = sum(part.damaged for part in parts) + len(wrong)
        unread = [lack for part in parts for lack in part.unread]
        return Report(head, tuple(damage[:MAX_SHOWN]), damaged, tuple(unread[:MAX_SHOWN]), missing, genesis)

    def _check_genesis(self, head: Checkpoint, *, is_whole: bool) -> Fetching[tuple[str, list[Damage]]]:
        """Return what entry 0 says of the log, and what is wrong with that."""
        if head.size == 0:
            return "none", []
        try:
            genesis = yield from read_log(read_genesis(head))
        except _UNPROVEN:
            if is_whole:
                raise
            return "unchecked", []
        if genesis is None:
            return "none", []
        try:
            check_genesis(genesis, head.origin, [verifier.vkey for verifier in self._policy.logs])
        except VerificationError as error:
            path = Bundle(0, width_at(0, 0, head.size)).path
            return "wrong", [Damage(path, 0, 1, (0,), b"", b"", str(error))]
        return "fits", []


def _in_workers(url: str, token: str | None, workers: int, tasks: list[Task]) -> Working:
    if len(tasks) == 1:
        yield check_here(url, token, tasks[0])
        return
    with Pool(url, token, min(workers, len(tasks))) as pool:
        yield from pool.run(tasks)


def _length(head: Checkpoint, number: int) -> int:
    start, end = range_bounds(head.size, number)
    return end - start


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the context ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
