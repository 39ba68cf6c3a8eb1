"""What checks a log after faults: it knows every acknowledgement, every head that left a commit, and every signature.

They are of one chain; nothing acknowledged is lost; a process in which something failed signs nothing more.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.nth_call import Crash, Faults, Kind
from tests.support.witness import Seen
from tests.support.writing import leaves
from tlog.errors import TreeheadError
from tlog.note import sign_note
from tlog.server import signer as signing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tlog.note import Signer
    from tlog.server.commit import Commit, Committed
    from tlog.server.storage import SignedHead

REFUSALS = (TreeheadError, sqlite3.Error, OSError)
"""What the command line turns into one line and an exit code."""


class History(Seen):
    """What was seen, and what must not be: signatures of a process in which something has failed."""

    def __init__(self, vkey: str) -> None:
        super().__init__(vkey)
        self.vkey = vkey
        self.offered: set[bytes] = set()
        self.too_late = 0

    def fork(self) -> History:
        """Return a history that goes on from here."""
        other = History(self.vkey)
        other.heads, other.acknowledged = dict(self.heads), dict(self.acknowledged)
        other.offered = set(self.offered)
        return other

    def committed(self, committed: Committed, entries: Sequence[bytes], in_store: SignedHead | None) -> None:
        """Note what a commit answered; by then its head is in the checkpoint store."""
        assert in_store == committed.head, "acknowledged, and not in the checkpoint store"
        self.head(committed.head.note)
        for index, entry in enumerate(entries, committed.growth.old.size):
            self.acknowledgement(index, entry)

    @contextmanager
    def watching(self, faults: Faults) -> Iterator[None]:
        """Note every signature, whatever becomes of it."""

        def sign(text: bytes, signers: Iterable[Signer]) -> bytes:
            note = sign_note(text, signers)
            self.head(note)
            self.too_late += faults.are_fatal
            return note

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(signing, "sign_note", sign)
            yield

    def verdict(self, entries: Sequence[bytes]) -> None:
        """Check everything against the entries that the log turned out to hold."""
        assert not self.too_late, "a process in which something had failed signed on"
        assert max(self.heads) <= len(entries), "a head was signed over entries that are not there"
        assert len(set(entries)) == len(entries), "an entry was appended twice"
        assert set(entries[1:]) <= self.offered, "an entry that nobody sent"
        self.check(entries)


@dataclass
class Count:
    """What became of it all."""

    tried: int = 0
    recovered: int = 0
    refused: int = 0
    resumed: int = 0

    def __str__(self) -> str:
        started = f"{self.refused} starts refused first, {self.resumed} finished a commit"
        return f"{self.tried} tried, {self.recovered} recovered, {started}"


def plans(calls: int) -> Iterator[dict[int, Kind]]:
    """Yield every single fault among so many calls."""
    return ({number: kind} for number in range(1, calls + 1) for kind in Kind)


def attempt(
    commit: Commit, batch: Sequence[bytes], history: History, faults: Faults, latest: Callable[[], SignedHead | None]
) -> None:
    """Commit under faults; after a failure ask again, which nothing good comes of."""
    history.offered |= set(batch)
    try:
        committed = commit.run(batch, leaves(batch), 2)
    except Crash:
        return
    except REFUSALS:
        for _ in range(2):
            with suppress(*REFUSALS):
                commit.run([b"later"], leaves([b"later"]), 3)
            with suppress(*REFUSALS):
                commit.finish(leaves(batch))
    else:
        faults.armed = False
        history.committed(committed, batch, latest())
