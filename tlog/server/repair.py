"""Bringing damaged or missing entries of log.db back from a mirror or a copy, up to the signed head S.

1  log.db is whole: nothing to do
2  what is behind S is nothing, or one segment; one that cannot be signed goes only where that is asked for (`discard`)
3  hash what can be read of log.db, block by block; blocks that are not those of S, by verified tiles, are damaged
4  write a draft beside it: segments that are whole, row for row; the others anew, with damaged blocks from the source,
   each entry verified up to S; then the segment behind S
5  check the draft as `tlogd fsck --deep` would
6  the draft takes the place of log.db, in one step; the old one is kept; tiles.db goes, and the next start builds it

A segment that is made anew has the bounds of the damaged one, or of a bundle where that is lost; the time of the
segment before, and no idempotency keys: a request that comes again is then known by its entries alone. Only bytes that
lead to the root of S are taken, so a source can withhold entries, and never bring in others.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError
from tlog.genesis import parse_genesis
from tlog.server.backup import check_copy, write_segments
from tlog.server.discard import find_tail, open_damaged
from tlog.server.disk import remove_database, swapped
from tlog.server.errors import CreateError, DamageFoundError, StartRefusedError, UnusableNameError
from tlog.server.head import log_verifier, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.recount import Recount
from tlog.server.salvage import Blocks, block_bounds, is_whole, read_pieces
from tlog.server.source import open_source
from tlog.server.storage import Segment
from tlog.server.storage.segments import SCHEMA, empty_wal
from tlog.server.stray import check_strays
from tlog.server.supply import Supply, find_damaged
from tlog.server.unseen import check_derived, check_unseen
from tlog.server.verify import LOG, TILES, check_entries
from tlog.tile import TILE_WIDTH, format_bundle

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from tlog.note import Verifier
    from tlog.server.backup import Steps
    from tlog.server.config import Config
    from tlog.server.salvage import Piece
    from tlog.server.storage import SignedHead

_MAX_TOLD = 100  # blocks that are missing, and told one by one


@dataclass(slots=True)
class Repaired:
    """What a repair has done.

    Attributes:
        head: The signed head.
        is_whole: Whether log.db was whole, and nothing was changed.
        fetched: Entries that came from the source.
        rebuilt: Segments that were made anew.
        kept: Segments that were kept, row for row.
        discarded: Why the commit behind the signed head was discarded; empty where it was not.
        aside: Where the old log.db is now; None where there was none.
    """

    head: SignedHead
    is_whole: bool = False
    fetched: int = 0
    rebuilt: int = 0
    kept: int = 0
    discarded: str = ""
    aside: Path | None = None


def repair(config: Config, name: str, steps: Steps, *, discard: bool = False) -> Repaired:
    """Bring entries back from a source.

    Args:
        config: The configuration of the log.
        name: A URL, a folder or a file; see `tlog.server.source`.
        steps: Told what is being done.
        discard: Whether a segment behind the signed head that cannot be signed is discarded; see `discard`.

    Raises:
        StartRefusedError: The source does not lead to the signed head, what is behind that does not fit, something has
            seen more, or the log is in use. Nothing was changed.
        DamageFoundError: The source lacks some of the entries; each block is named. Nothing was changed.
        UnusableNameError: The source is none.
        SourceError: The source cannot be reached. Nothing was changed.
        CreateError: The disk refuses.
    """
    verifier, target = log_verifier(config), config.path(LOG)
    _check_apart(config, name)
    with Lock(config.path(LOCK_NAME)), ExitStack() as stack:
        check_strays(config)
        head = stored_head(config, config.path(config.checkpoints))
        done = Repaired(head)
        if not check_entries(target, SCHEMA, head, verifier, steps("checking what is there")).total:
            done.is_whole = True
            return done
        check_derived(config, head.size)
        old = open_damaged(target)
        if old is not None:
            stack.enter_context(closing(old))
        draft = _Draft(config, old, done, discard=discard)
        draft.check_tail_alone()
        supply = _open_supply(stack, name, old, head, verifier, steps)
        done.aside = _replace(config, draft.segments(supply), head, verifier, steps)
    done.fetched = supply.fetched
    return done


def _check_apart(config: Config, name: str) -> None:
    """Refuse a source that is the log itself."""
    path = Path(name)
    if path.exists() and any(own.exists() and own.samefile(path) for own in (config.path(""), config.path(LOG))):
        raise UnusableNameError(f"{name} is the log itself, and cannot be repaired from itself")


def _open_supply(
    stack: ExitStack, name: str, old: sqlite3.Connection | None, head: SignedHead, verifier: Verifier, steps: Steps
) -> Supply:
    """Take step 3: the source is not even asked where the entries have the signed root."""
    checkpoint = Checkpoint(head.origin, head.size, head.root)
    blocks = Blocks(read_pieces(old, head.size), head.size, steps("hashing"))
    if blocks.root() == head.root:
        return Supply(None, checkpoint, [], steps("fetching"))
    source = open_source(name, head.size, steps)
    stack.callback(source.close)
    return Supply(source, checkpoint, find_damaged(blocks, source, checkpoint, verifier), steps("fetching"))


def _replace(
    config: Config, segments: Iterator[Segment], head: SignedHead, verifier: Verifier, steps: Steps
) -> Path | None:
    """Take steps 4 to 6, and return where the old log.db is now."""
    target = config.path(LOG)
    try:
        with swapped(target) as swap:
            progress = steps("writing")
            write_segments(segments, swap.draft, SCHEMA, lambda end: progress(end, head.size))
            check_copy(swap.draft, SCHEMA, head, verifier, steps("checking"))
            empty_wal(target)
        remove_database(config.path(TILES))
    except OSError as error:
        raise CreateError(f"{target} could not be written: {error.strerror}") from error
    return swap.aside


class _Draft:
    """The segments of the new log.db. Owned by one repair."""

    def __init__(self, config: Config, old: sqlite3.Connection | None, done: Repaired, *, discard: bool) -> None:
        """Find what is behind the signed head.

        Raises:
            StartRefusedError: It is more than one segment.
        """
        self._config = config
        self._old = old
        self._done = done
        self._discard = discard
        self._head = done.head
        self._tail = None if old is None else find_tail(old, done.head)
        self._time_ms = 0  # of the segment before

    def check_tail_alone(self) -> None:
        """Refuse a segment behind the signed head that cannot be signed, where that can be told before all is fetched.

        Raises:
            StartRefusedError: It cannot, and is not to be discarded, or must not be.
        """
        if self._tail and (reason := self._tail.why_not_alone()):
            self._discard_tail(reason)

    def _discard_tail(self, reason: str) -> None:
        if not self._discard:
            raise StartRefusedError(
                f"the commit behind the signed head {self._head.size} cannot be signed: {reason}. Nothing was "
                "changed. Where that head is the newest that anybody was shown, the commit goes with: "
                "tlogd repair --from URL|DIR --discard-unsigned"
            )
        check_unseen(self._config, self._head)
        self._tail, self._done.discarded = None, reason

    def segments(self, supply: Supply) -> Iterator[Segment]:
        """Yield the segments of the new log.db, with what is lost from the supply.

        Raises:
            StartRefusedError: The commits of log.db are not those of the signed head.
            DamageFoundError: Entries are missing.
        """
        tree = Recount(0, ())
        for piece in read_pieces(self._old, self._head.size):
            self._check_bounds(piece)
            entries = _filled(piece, supply, self._head.size)
            if entries is None or supply.missing:
                continue  # what else is missing is to be told, too
            segment, tree = self._segment(piece, entries, tree)
            yield segment
        self._check_missing(supply)
        if self._tail and (reason := self._tail.why_not(tree)):
            self._discard_tail(reason)
        if self._tail and self._tail.segment:
            self._done.kept += 1
            yield self._tail.segment

    def _check_bounds(self, piece: Piece) -> None:
        segment, size = piece.segment, self._head.size
        if segment and segment.end > size and is_whole(segment):
            raise StartRefusedError(
                f"the signed size {size} is within a commit of log.db: they are of different logs. Nothing was "
                f"changed. If log.db is the wrong one, move it away: all {size} entries then come from the source"
            )

    def _segment(self, piece: Piece, entries: list[bytes], tree: Recount) -> tuple[Segment, Recount]:
        """Return the segment of a piece, as it is where it is whole, and the tree with it."""
        framed, old = format_bundle(entries), piece.segment
        grown, leaf_digest = tree.add(framed)
        if (
            old
            and (old.end, old.root) == (grown.size, grown.root())
            and piece.entries == entries
            and old.time_ms >= self._time_ms
            and is_whole(old)
        ):
            self._done.kept += 1
            self._time_ms = old.time_ms
            return old, grown
        self._done.rebuilt += 1
        if piece.first == 0:
            self._time_ms = _created_ms(entries[0])
        return (
            Segment(piece.first, len(entries), framed, grown.root(), leaf_digest, self._time_ms).sealed(),
            grown,
        )

    def _check_missing(self, supply: Supply) -> None:
        if not supply.missing:
            return
        spans = {number: block_bounds(number, self._head.size) for number in supply.missing}
        lines = [f"entries {start} to {end - 1}: {supply.missing[number]}" for number, (start, end) in spans.items()]
        raise DamageFoundError(
            f"the source lacks {len(lines)} of the damaged bundles of {TILE_WIDTH} entries. Nothing was changed; name "
            "another source, or mend that one first, from a third",
            damages=lines[:_MAX_TOLD],
        )


def _created_ms(entry: bytes) -> int:
    """Return when a log was created, for a first segment whose time is lost."""
    try:
        return parse_genesis(entry).created_ms
    except FormatError:
        return 0


def _filled(piece: Piece, supply: Supply, size: int) -> list[bytes] | None:
    """Return the entries of a piece, those of damaged blocks from the supply; None where one is missing."""
    entries: list[bytes | None] = [None] * (piece.end - piece.first)
    if piece.entries is not None:
        entries[:] = piece.entries
    for number in range(piece.first // TILE_WIDTH, -(-piece.end // TILE_WIDTH)):
        if supply.is_damaged(number):
            start, end = block_bounds(number, size)
            low, high = max(start, piece.first), min(end, piece.end)
            block = supply.entries(number)
            part: list[bytes | None] = [None] * (high - low)
            if block is not None:
                part[:] = block[low - start : high - start]
            entries[low - piece.first : high - piece.first] = part
    known = [entry for entry in entries if entry is not None]
    return known if len(known) == len(entries) else None
