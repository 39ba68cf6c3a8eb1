"""Discarding the commit behind the signed head: entries that were stored, are signed nowhere, and cannot be.

A start signs such a commit if it can. Where the entries disagree with what came in, with their framing or with the root
that was computed, it refuses for ever; then exactly this one segment may go, because nobody was promised anything. That
holds as long as S is the newest head that was signed. A checkpoint store that is one commit old looks the same, so all
that may know better is asked first; where nothing does, the operator has to.

1  log.db is ahead of the signed head S by one segment, which cannot be signed; up to S it is whole; else refuse
2  neither an anchor, nor the signer process, nor tiles.db has seen a head beyond S (`unseen`): a signature that may be
   out is never taken back
3  copy log.db up to S, and check the copy as `tlogd fsck --deep` would
4  the copy takes the place of log.db, in one step; the old one is kept, with the segment
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.errors import FormatError, VerificationError
from tlog.server.backup import check_copy, copy_entries
from tlog.server.disk import swapped
from tlog.server.errors import CreateError, DamagedFileError, DamageFoundError, MissingFileError, StartRefusedError
from tlog.server.head import log_verifier, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.recount import Recount
from tlog.server.salvage import are_commits, is_whole, read_behind
from tlog.server.storage.reading import open_reading, read_segments
from tlog.server.storage.segments import SCHEMA, empty_wal
from tlog.server.stray import check_strays
from tlog.server.unseen import check_unseen
from tlog.server.verify import LOG
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.server.backup import Steps
    from tlog.server.config import Config
    from tlog.server.storage import Segment, SignedHead
    from tlog.server.verify import Progress


@dataclass(frozen=True, slots=True)
class Tail:
    """What is stored behind the signed head.

    Attributes:
        segment: The one segment; None where what is there is none that follows the head, or cannot be read.
        is_lost: Whether SQLite finds its way to nothing there, so that it cannot even be told that there is something.
    """

    segment: Segment | None
    is_lost: bool = False

    def why_not_alone(self) -> str:
        """Return why it cannot be signed, as far as it says so by itself; empty where it does not."""
        if self.segment and is_whole(self.segment):
            return ""
        return "what is stored there cannot be read, or is not what came in"

    def why_not(self, tree: Recount) -> str:
        """Return why it cannot be signed; empty where it can.

        Args:
            tree: The tree of the signed head.
        """
        segment = self.segment
        if segment is None:
            return self.why_not_alone()
        try:
            parse_bundle(segment.entries, segment.count)
            grown, leaf_digest = tree.add(segment.entries)
        except (FormatError, VerificationError) as error:
            return f"its framing is broken: {error}"
        if leaf_digest != segment.leaf_digest or not segment.is_whole:
            return "its entries, or what is kept of them, are not what came in"
        if (grown.size, grown.root()) != (segment.end, segment.root):
            return "its root is not that of its entries"
        return ""


@dataclass(frozen=True, slots=True)
class Discarded:
    """A log whose unsigned commit was discarded.

    Attributes:
        head: Its signed head.
        count: How many entries the segment said that it has; 0 where it could not be read.
        reason: Why it could not be signed.
        aside: The old log.db, with the segment.
    """

    head: SignedHead
    count: int
    reason: str
    aside: Path


def discard_unsigned(config: Config, steps: Steps) -> Discarded:
    """Remove the segment behind the signed head, where it cannot be signed.

    Raises:
        StartRefusedError: There is no such segment, or it may be signed one day, or was; or a file is missing, or the
            log is in use. Nothing was changed.
        DamageFoundError: What is signed is damaged. Nothing was changed.
        SigningError: The signer process does not say what it has signed. Nothing was changed.
        CreateError: The disk refuses.
    """
    verifier, target = log_verifier(config), config.path(LOG)
    with Lock(config.path(LOCK_NAME)):
        check_strays(config)
        head = stored_head(config, config.path(config.checkpoints))
        with closing(_open(target)) as connection:
            tail = find_tail(connection, head)
            if tail is None:
                raise StartRefusedError(
                    f"{target} holds nothing behind the signed head {head.size}: nothing to discard"
                )
            reason = tail.why_not(_count(connection, head, steps("hashing")))
            if not reason:
                raise StartRefusedError(
                    f"the commit behind the signed head {head.size} is whole: the next start signs it. "
                    "Nothing was changed; start the log with: tlogd serve"
                )
            check_unseen(config, head)
            try:
                with swapped(target) as swap:
                    copy_entries(connection, swap.draft, SCHEMA, head.size, steps("copying"))
                    check_copy(swap.draft, SCHEMA, head, verifier, steps("checking"))
                    empty_wal(target)
            except OSError as error:
                raise CreateError(f"{target} could not be written: {error.strerror}") from error
    count = tail.segment.count if tail.segment else 0
    return Discarded(head, count, reason, swap.aside or target)


def _open(target: Path) -> sqlite3.Connection:
    try:
        return open_reading(target, SCHEMA, alone=True)
    except DamagedFileError as error:
        raise DamageFoundError(f"{error}; bring the entries back with: tlogd repair --from URL|DIR") from error


def find_tail(connection: sqlite3.Connection, head: SignedHead) -> Tail | None:
    """Return what is behind a signed head; None where there is nothing.

    Raises:
        StartRefusedError: There is more than the one segment that follows the head.
    """
    found: list[tuple[int, Segment | None]] = []
    is_cut = False
    try:
        for row in read_behind(connection, head.size):
            found.append(row)
            if are_commits(found, head.size):
                raise _ahead(head)
    except sqlite3.DatabaseError:
        is_cut = True  # there is something, or was
    if is_cut:
        if found and found[0][0] == head.size:
            raise _ahead(head)
        return Tail(None, is_lost=not found)
    if not found:
        return None
    first, segment = found[0]
    return Tail(segment if first == head.size else None)


def _ahead(head: SignedHead) -> StartRefusedError:
    return StartRefusedError(
        f"log.db is ahead of the signed head {head.size} by more than one commit: those before the last were signed, "
        "so the checkpoint store was taken back. Nothing was changed. Bring the newest checkpoints.db; where that is "
        "lost, move this one away, and see: tlogd recover-checkpoints"
    )


def open_damaged(target: Path) -> sqlite3.Connection | None:
    """Open a log.db for reading, whatever its schema is; None where it is lost altogether."""
    try:
        connection = open_reading(target, None, alone=True)
    except (MissingFileError, DamagedFileError):
        return None
    if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'segment'").fetchone() == (0,):
        connection.close()
        return None
    return connection


def signed_tree(connection: sqlite3.Connection, head: SignedHead, progress: Progress) -> Recount:
    """Count the entries up to a signed head.

    Raises:
        VerificationError: They do not have its root, or cannot be read.
    """
    tree = Recount(0, ())
    try:
        for segment in read_segments(connection, end=head.size):
            tree, _ = tree.add(segment.entries)
            progress(tree.size, head.size)
    except sqlite3.Error as error:
        raise VerificationError(str(error)) from error
    if (tree.size, tree.root()) != (head.size, head.root):
        raise VerificationError("they do not have the signed root")
    return tree


def _count(connection: sqlite3.Connection, head: SignedHead, progress: Progress) -> Recount:
    """Count the entries up to the signed head.

    Raises:
        DamageFoundError: They do not have its root.
    """
    try:
        return signed_tree(connection, head, progress)
    except VerificationError as error:
        raise DamageFoundError(
            f"the entries up to the signed head {head.size} are damaged: {error}. Nothing was changed; bring them "
            "back, and discard the commit behind them, with: tlogd repair --from URL|DIR --discard-unsigned"
        ) from error
