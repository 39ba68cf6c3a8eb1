"""Making a lost checkpoint store anew, from a signed head that was kept outside: the last resort of an operator.

The checkpoint store says which head is the newest that was signed. When it is lost, nothing on the machine knows that:
the segments of log.db behind the newest head that anybody has may have been signed and seen, and the newest segments of
all may be lost as well. So the new store begins at the head that is given, and every segment behind it is signed by
the steps that sign every segment, which gives exactly the heads that were signed before. What remains is the risk that
somebody has seen a head beyond the end of log.db. Then the log forks, and whoever has seen it can prove that.

1  nothing lies beside the databases that SQLite would apply to them; the store is missing or damaged: one that can be
   read is never replaced, and the refusal says whether it is old
2  the head is of this log, under the pinned key; a signer process may know a newer one, which then takes its place
3  log.db is whole by itself, and has the root of the head at the end of a segment; or it ends before the head, or is
   missing, so that nothing behind the head can be there
4  no anchor, nor what is left of the store, has seen a head that log.db does not have
5  a new store beside its name begins at the head, in an epoch that no process can hold
6  each segment behind the head goes through steps 5 to 7 of its commit, up to the end that step 3 found
7  the store gets its name, in one step; a damaged one is kept under another

Where log.db ends before the head, the entries come back afterwards, by `tlogd repair --from` or `tlogd restore`: both
take exactly what leads to the head of the store, so a log that lost both is recovered store first.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.edge import Edge, extend
from tlog.errors import TreeheadError
from tlog.merkle import leaf_hash
from tlog.server.anchor import read_anchors
from tlog.server.commit import Commit
from tlog.server.disk import swapped
from tlog.server.errors import (
    CreateError,
    DamagedFileError,
    DamageFoundError,
    MissingFileError,
    StartRefusedError,
)
from tlog.server.head import log_verifier, open_head, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.signer import open_signer
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.reading import open_reading, read_segments
from tlog.server.storage.segments import SCHEMA, SqliteStorage, open_segments
from tlog.server.stray import check_strays
from tlog.server.verify import LOG, check_entries
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.note import Verifier
    from tlog.server.backup import Steps
    from tlog.server.config import Config
    from tlog.server.signer import HeadSigner
    from tlog.server.verify import Progress

FIRST_EPOCH = 1 << 40
"""Least epoch of a recovered store: no log was ever taken over that often."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A checkpoint store that was made anew.

    Attributes:
        start: The head that it began with.
        head: The signed head now: that of the end of log.db, or the same as `start`.
        stored: Entries that log.db has: fewer than the head where they have to be brought back.
        aside: Where the damaged store is now; None where there was none.
    """

    start: Checkpoint
    head: SignedHead
    stored: int
    aside: Path | None


def recover_checkpoints(config: Config, note: bytes, now_ms: int, steps: Steps) -> Recovered:
    """Make a lost checkpoint store anew.

    Args:
        config: The configuration of the log.
        note: A signed head that was kept outside, the newest that anybody has.
        now_ms: Milliseconds since 1970.
        steps: Told what is being done.

    Raises:
        StartRefusedError: The store can be read, the head is not one of this log, something has seen more than log.db
            holds, or the log is in use. Nothing was changed.
        DamageFoundError: log.db is damaged. Nothing was changed.
        SigningError: The signer process refuses. Nothing was changed.
        CommitError: A segment behind the head cannot be signed. Nothing was changed.
        CreateError: The disk refuses.
    """
    verifier, store = log_verifier(config), config.path(config.checkpoints)
    with Lock(config.path(LOCK_NAME)):
        check_strays(config)
        noted = _open_note(note, verifier)
        seen = _check_lost(config, store, noted)
        stored = _check_log(config.path(LOG), verifier, steps("checking log.db"))
        with closing(open_signer(config, noted)) as signer:
            start = _newest(signer, noted)
            seen += [("the note", noted), ("the signer", start)]
            seen += [(f"the anchor {name}", checkpoint) for name, checkpoint in read_anchors(config)]
            _check_seen(config.path(LOG), seen, max(stored, start.size), stored)
            try:
                with swapped(store) as swap:
                    head = _fill(config, swap.draft, signer, start, max(now_ms, FIRST_EPOCH), steps("signing"))
                    _check_end(head, max(stored, start.size))
            except OSError as error:
                raise CreateError(f"{store} could not be written: {error.strerror}") from error
    return Recovered(start, head, stored, swap.aside)


def _check_lost(config: Config, store: Path, noted: Checkpoint) -> list[tuple[str, Checkpoint]]:
    """Take step 1, and return the heads that are left in a damaged store: it contradicts them, but they were signed."""
    try:
        head = stored_head(config, store)
    except MissingFileError:
        return []
    except DamagedFileError:
        return _remains(store, log_verifier(config))
    known = [("the note", noted)]
    with suppress(StartRefusedError):  # then the note alone may know better
        known += [(f"the anchor {name}", checkpoint) for name, checkpoint in read_anchors(config)]
    who, newest = max(known, key=lambda one: one[1].size)
    if newest.size > head.size:
        raise StartRefusedError(
            f"{store} can be read, and its head of size {head.size} is older than that of {who}, of size "
            f"{newest.size}: it was taken back. Nothing was changed. Bring the newest checkpoints.db; where that is "
            "lost, move this one away, and do this again, with the largest head that anybody has"
        )
    raise StartRefusedError(
        f"{store} can be read, and its head of size {head.size} is the newest: nothing is to be recovered. Start the "
        "log with: tlogd serve"
    )


def _remains(store: Path, verifier: Verifier) -> list[tuple[str, Checkpoint]]:
    found = []
    try:
        with closing(open_reading(store, None, alone=True)) as connection:
            for (note,) in connection.execute("SELECT note FROM head"):
                found.append((f"the damaged store {store}", open_head(note, verifier)))
    except (sqlite3.Error, TreeheadError, TypeError, AttributeError):  # whatever stands where the note was
        pass
    return found


def _open_note(note: bytes, verifier: Verifier) -> Checkpoint:
    """Take the first half of step 2."""
    try:
        noted = open_head(note, verifier)
    except TreeheadError as error:
        raise StartRefusedError(
            f"the note is no signed head of {verifier.name}: {error}. It has to be what GET /checkpoint answered with, "
            "byte for byte"
        ) from error
    if noted.size == 0:
        raise StartRefusedError("the note is the head of the empty log, before its first entry; bring a newer one")
    return noted


def _newest(signer: HeadSigner, noted: Checkpoint) -> Checkpoint:
    """Take the second half of step 2."""
    newest = signer.newest()
    if newest.size < noted.size:
        raise StartRefusedError(
            f"the signer process has signed up to {newest.size}, and the note has size {noted.size}: its state was "
            "taken back. Bring that in order first"
        )
    return newest


def _check_log(path: Path, verifier: Verifier, progress: Progress) -> int:
    """Take the first half of step 3, and return the number of entries; 0 where log.db is missing."""
    if not path.exists():
        return 0
    findings = check_entries(path, SCHEMA, None, verifier, progress)
    if findings.total:
        damages = [f"{damage.file}: {damage.what}" for damage in findings.damages]
        raise DamageFoundError(
            f"log.db is damaged, and what of it was signed cannot be told: {damages[0]}. Nothing was changed. Bring "
            "the newest head that anybody has, and the entries from a copy of the disk. Only where log.db is lost for "
            "good, move it away: then the store begins at the head, and the entries up to it come back from a mirror",
            damages=damages,
        )
    with closing(open_reading(path, SCHEMA, alone=True)) as connection:
        return SqliteStorage(connection).size()


def _check_seen(path: Path, seen: list[tuple[str, Checkpoint]], end: int, stored: int) -> None:
    """Take steps 3 and 4: everything that was seen is in log.db, or at the head to begin with."""
    for who, checkpoint in seen:
        if checkpoint.size > end:
            raise StartRefusedError(
                f"{who} has seen the log at size {checkpoint.size}, and here it ends at {end}: to sign on would fork "
                "it. Nothing was changed; give that head to --from"
            )
    inside = [(who, checkpoint) for who, checkpoint in seen if 0 < checkpoint.size <= stored]
    if not inside:
        return
    with closing(open_reading(path, SCHEMA, alone=True)) as connection:
        storage = SqliteStorage(connection)
        for who, checkpoint in inside:
            segment = storage.segment_at(checkpoint.size - 1)
            if segment is None or (segment.end, segment.root) != (checkpoint.size, checkpoint.root):
                raise StartRefusedError(
                    f"{who} is a signed head of size {checkpoint.size}, and log.db has no commit that ends there with "
                    "its root: they are of different logs, or the log has forked. Nothing was changed"
                )


def _check_end(head: SignedHead, end: int) -> None:
    """Refuse a store that ends elsewhere than what was checked: log.db is not what it was, whoever changed it."""
    if head.size != end:
        raise StartRefusedError(
            f"log.db changed meanwhile: the new store would end at {head.size}, and {end} entries were checked. No "
            "store was made. Find out what else writes to log.db, and check it with: tlogd fsck --deep"
        )


def _fill(
    config: Config, draft: Path, signer: HeadSigner, start: Checkpoint, epoch: int, progress: Progress
) -> SignedHead:
    """Take steps 5 and 6."""
    note = signer.sign(start, start, ())
    if open_head(note, signer.verifier) != start:
        raise StartRefusedError("the signer has signed another head than it was asked for")
    head = SignedHead(start.origin, epoch, start.size, start.root, note)
    with closing(open_checkpoints(draft, create=True)) as connection:
        store = SqliteCheckpointStore(connection)
        store.create(head)
        if config.path(LOG).exists():
            head = _sign_on(config.path(LOG), store, signer, head, progress)
    return head


def _sign_on(
    path: Path, store: SqliteCheckpointStore, signer: HeadSigner, head: SignedHead, progress: Progress
) -> SignedHead:
    """Sign the head of every segment behind the one to begin with."""
    with closing(open_segments(path)) as segments:
        storage, edge, last_ms = SqliteStorage(segments), Edge(), 0
        end = storage.size()
        for segment in read_segments(segments, end=head.size):
            edge = extend(edge, list(map(leaf_hash, parse_bundle(segment.entries, segment.count)))).new
            last_ms = segment.time_ms
            progress(edge.size, end)
        if edge.size < head.size:
            return head  # the entries are to be brought back first
        commit = Commit(storage, store, signer, head, edge, last_ms)
        for segment in read_segments(segments, head.size):
            leaf_hashes = list(map(leaf_hash, parse_bundle(segment.entries, segment.count)))
            head = commit.finish(leaf_hashes).head
            progress(head.size, end)
    return head
