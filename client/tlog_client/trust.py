"""What this client trusts of a log, and when it raises an alarm; neither disk nor network is touched here.

Trust is the largest head that was accepted. A larger head must be consistent with it, and replaces it. A smaller one
must be consistent too, never moves trust back, and is no alarm: answers overtake each other. Two heads of one size with
different roots are a fork. So are two heads where the tiles that lead to the larger one hold another root for the
smaller one. Tiles that lead nowhere prove nothing about the heads.

Flows of one client interleave, so trust is read anew after every yield.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, ForkError, VerificationError
from tlog.fetch import over_http
from tlog.merkle import verify_consistency
from tlog.reader import TileCache, read_root
from tlog_client.state import Signed, StateFile, origin_of, prove_fork, state_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.policy import Policy

SAVE_INTERVAL = 1.0
"""Seconds between two saves of trust, at least."""

_REMEMBERED = 64  # accepted heads that need no second check


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
        root = yield from over_http(read_root(new.head, old.head.size, cache))
    if root != old.head.root:
        raise ForkError(
            f"{new.head.origin} signed two trees: heads of size {old.head.size} and {new.head.size} exclude each other",
            first=old.note,
            second=new.note,
        )


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
        self._file = None if state_dir is None else StateFile(state_path(state_dir, origin, ".json"), "trust", policy)
        saved = self._file.load() if self._file else None
        if self._file:
            self._file.adopt(saved)
        self.trusted: Signed | None = saved.signed if saved else None
        self.cache = TileCache()
        self._saved = self.trusted
        self._saved_at = float("-inf")
        self._accepted: deque[tuple[int, bytes]] = deque(maxlen=_REMEMBERED)

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
        return Signed(self._policy.open_checkpoint(note), note)

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
        seen = (new.head.size, new.head.root)
        while seen not in self._accepted:
            old = self.trusted
            if old and new.head.size <= old.head.size:
                yield from self._check(*((old, new) if new.head.size == old.head.size else (new, old)))
                break
            if old and not _is_proven(old.head, new.head, proof):
                yield from self._check(old, new)
            if self.trusted is old:
                self.trusted = new
                break
            # another flow moved trust meanwhile: the head must fit that one too
        if seen not in self._accepted:
            self._accepted.append(seen)

    def _check(self, old: Signed, new: Signed) -> Fetching[None]:
        try:
            yield from check_growth(old, new, self.cache)
        except ForkError as error:
            if self._file and self.trusted and self.trusted is not self._saved and self._file.save(self.trusted):
                self._saved = self.trusted
            raise prove_fork(error, self._state_dir, (old.head, new.head)) from error


def _is_proven(old: Checkpoint, new: Checkpoint, proof: tuple[int, Sequence[bytes]] | None) -> bool:
    """Say whether the answer's own proof leads from one head to the other; if not, the tiles decide."""
    if proof is None or proof[0] != old.size:
        return old.size == 0
    try:
        verify_consistency(old.size, new.size, proof[1], old.root, new.root)
    except VerificationError:
        return False
    return True
