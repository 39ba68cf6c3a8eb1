"""What this client trusts of a log, and when it raises an alarm.

Trust is the largest head that was accepted. A larger head must be consistent with it, and replaces it. A smaller one
must be consistent too, never moves trust back, and is no alarm: answers overtake each other. Two heads of one size with
different roots are a fork. So are two heads where the tiles that lead to the larger one hold another root for the
smaller one. Tiles that lead nowhere prove nothing about the heads.

Flows of one client interleave. What an answer proves by itself is settled at once. For the rest one flow at a time
reads tiles, for its own head and for all that wait, while the others yield empty lists of requests. So trust moves only
while nobody reads, or by the one who does, and a burst costs one check.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from tlog.errors import CouldNotCheckError, ForkError, FormatError, NotFoundError, VerificationError
from tlog.fetch import over_http
from tlog.merkle import EMPTY_ROOT, subtree_nodes, subtree_root, verify_consistency
from tlog.reader import TileCache, read_hashes, read_root
from tlog_client.state import KINDS, ForkProvenError, Signed, StateError, StateFile, origin_of, prove_fork, state_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.policy import Policy
    from tlog.reader import Reading

T = TypeVar("T")

SAVE_INTERVAL = 1.0
"""Seconds between two saves of trust, at least."""

_REMEMBERED = 256  # accepted heads that need no second check


def read_log(reading: Reading[T]) -> Fetching[T]:
    """Read parts of a tree that the log has signed; that it lacks one is no answer to what the user asked for.

    Raises:
        FormatError: A part breaks its form.
        VerificationError: A part does not lead to the head.
        CouldNotCheckError: A part is missing.
    """
    try:
        return (yield from over_http(reading))
    except NotFoundError as error:
        raise CouldNotCheckError(f"the log lacks a part of a tree that it signed: {error}") from error


def check_growth(old: Signed, new: Signed, cache: TileCache | None = None) -> Fetching[None]:
    """Check through tiles that the larger head grew out of the smaller one; of equal size, that they are one tree.

    Raises:
        ForkError: It did not: both heads are signed, and the tiles that lead to the new one hold another root.
        FormatError: A tile breaks its form.
        VerificationError: The tiles do not lead to the new head, so nothing is proven about the two.
        CouldNotCheckError: A tile is missing.
    """
    root = new.head.root
    if new.head.size != old.head.size:
        root = yield from read_log(read_root(new.head, old.head.size, cache))
    if root != old.head.root:
        raise _fork(old, new)


def _fork(old: Signed, new: Signed) -> ForkError:
    message = f"{new.head.origin} signed two trees: sizes {old.head.size} and {new.head.size} exclude each other"
    return ForkError(message, first=old.note, second=new.note)


class Trust:
    """The head that one client trusts; every flow of the client goes through it.

    Attributes:
        trusted: The largest accepted head; None before the first. # owned by the flows, between two yields
        cache: Verified full tiles.
    """

    def __init__(self, policy: Policy, state_dir: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Load what was trusted before; None keeps everything in memory.

        Args:
            policy: Whose signature makes a head; it names keys of one origin.
            state_dir: Folder of the state files.
            clock: Seconds that only grow.

        Raises:
            StateError: The state cannot be used.
        """
        self._policy = policy
        self._state_dir = state_dir
        self._clock = clock
        origin = origin_of(policy)
        self._file = (
            None if state_dir is None else StateFile(state_path(state_dir, origin, KINDS["trust"]), "trust", policy)
        )
        saved = self._file.load() if self._file else None
        if self._file:
            self._file.adopt(saved)
        self.trusted: Signed | None = saved.signed if saved else None
        self.cache = TileCache()
        self._opened: Signed | None = None
        self._saved = self.trusted
        self._saved_at = float("-inf")
        self._accepted: deque[tuple[int, bytes]] = deque(maxlen=_REMEMBERED)
        self._waiting: dict[tuple[int, bytes], Signed] = {}
        self._is_checking = False

    @property
    def size(self) -> int:
        """The trusted size, 0 before the first head."""
        return self.trusted.head.size if self.trusted else 0

    def open(self, note: bytes) -> Signed:
        """Return the head of a note that the policy accepts; its place among the others is not checked.

        Raises:
            FormatError: The note breaks its form.
            VerificationError: Another origin, or a signature that is missing or does not hold.
        """
        if self._opened is None or self._opened.note != note:  # answers that come side by side share a head
            self._opened = Signed(self._policy.open_checkpoint(note), note)
        return self._opened

    def accept(self, new: Signed, proof: tuple[int, Sequence[bytes]] | None = None) -> Fetching[None]:
        """Check a head against the trusted one by the rules above, and trust it if it is larger.

        Args:
            new: A head that `open` returned.
            proof: Size and consistency proof from it, where the answer brought one.

        Raises:
            ForkProvenError: The two heads exclude each other.
            FormatError: A tile breaks its form.
            VerificationError: The tiles that the log serves do not lead to the head.
            CouldNotCheckError: A tile is missing.
            StateError: Trust could not be written.
        """
        yield from self._compare(new, proof)
        if self._clock() - self._saved_at >= SAVE_INTERVAL:
            yield from self.save()

    def save(self) -> Fetching[None]:
        """Write the trusted head where it is not written yet; check another process's head before it is replaced.

        Raises:
            As `accept`.
        """
        while self._file and self.trusted and self.trusted is not self._saved:
            self._saved_at = self._clock()
            saving = self.trusted
            if self._file.save(saving):
                self._saved = saving
                return
            theirs = self._file.load()
            if theirs:
                yield from self._compare(theirs.signed, None)
            self._file.adopt(theirs)
            if theirs and self.trusted.head == theirs.signed.head:
                self._saved = self.trusted = theirs.signed

    def close(self) -> Fetching[None]:
        """Write the trusted head for the last time; where another process's head cannot be checked, that one stays.

        Raises:
            ForkProvenError: The two exclude each other.
            StateError: Trust could not be written.
        """
        try:
            yield from self.save()
        except CouldNotCheckError:
            return

    def _compare(self, new: Signed, proof: tuple[int, Sequence[bytes]] | None) -> Fetching[None]:
        """Settle a head: by itself, by another flow's check, or by one of its own."""
        while not self._settle(new, proof):
            self._waiting[new.head.size, new.head.root] = new
            if self._is_checking:
                yield []
                continue
            self._is_checking = True
            try:
                yield from self._check(new)
            finally:
                self._is_checking = False

    def _settle(self, new: Signed, proof: tuple[int, Sequence[bytes]] | None) -> bool:
        """Accept a head if that takes no reading."""
        old, head = self.trusted, new.head
        if (head.size, head.root) in self._accepted:
            return True
        if old and head.size == old.head.size:
            if head.root != old.head.root:
                raise self._alarm(_fork(old, new), old, new)
        elif self._is_checking or (old and not _is_proven(old.head, head, proof)):
            return False
        else:
            self.trusted = new
        self._accepted.append((head.size, head.root))
        return True

    def _check(self, new: Signed) -> Fetching[None]:
        """Read tiles once for all heads that wait; where that fails, for the one alone: that says what is wrong."""
        heads, self._waiting = list(self._waiting.values()), {}
        old = self.trusted
        if old is None:
            return
        top = max((*heads, old), key=lambda signed: signed.head.size)
        try:
            roots = yield from read_log(_read_roots(top.head, [old, *heads], self.cache))
            is_good = roots == [signed.head.root for signed in (old, *heads)]
        except (FormatError, VerificationError, CouldNotCheckError):
            is_good = False
        if not is_good:
            top, heads = max(old, new, key=lambda signed: signed.head.size), [new]
            small, large = sorted((old, new), key=lambda signed: signed.head.size)
            try:
                yield from check_growth(small, large, self.cache)
            except ForkError as error:
                raise self._alarm(error, small, large) from error
        self.trusted = top
        self._accepted.extend((signed.head.size, signed.head.root) for signed in heads)

    def _alarm(self, error: ForkError, first: Signed, second: Signed) -> ForkProvenError:
        """Save both notes, then trust; the alarm is raised whatever becomes of either."""
        alarm = prove_fork(error, self._state_dir, (first.head, second.head))
        try:
            if self._file and self.trusted and self.trusted is not self._saved and self._file.save(self.trusted):
                self._saved = self.trusted
        except StateError as trouble:
            alarm.add_note(str(trouble))
        return alarm


def _read_roots(head: Checkpoint, olds: Sequence[Signed], cache: TileCache) -> Reading[list[bytes]]:
    """Return the root that the head's tree had at the size of each old head, after one request."""
    nodes = [subtree_nodes(0, old.head.size) if old.head.size else [] for old in olds]
    hashes = iter((yield from read_hashes(head, [node for row in nodes for node in row], cache)))
    rows = [list(islice(hashes, len(row))) for row in nodes]
    return [subtree_root(0, old.head.size, row) if row else EMPTY_ROOT for old, row in zip(olds, rows, strict=True)]


def _is_proven(old: Checkpoint, new: Checkpoint, proof: tuple[int, Sequence[bytes]] | None) -> bool:
    """Say whether the answer's own proof leads from one head to the other; if not, the tiles decide."""
    if proof is None or proof[0] != old.size:
        return old.size == 0
    try:
        verify_consistency(old.size, new.size, proof[1], old.root, new.root)
    except VerificationError:
        return False
    return True
