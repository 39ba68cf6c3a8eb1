"""Damaged blocks of a log, fetched from a source in the order in which a repair needs them, each entry verified."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.fetch import fetch_checkpoint
from tlog.reader import TileCache, read_entries
from tlog.server.errors import SourceError, StartRefusedError
from tlog.server.head import open_head
from tlog.server.salvage import block_bounds
from tlog.server.source import read, run
from tlog.tile import TILE_WIDTH

if TYPE_CHECKING:
    from tlog.checkpoint import Checkpoint
    from tlog.note import Verifier
    from tlog.server.salvage import Blocks
    from tlog.server.source import Source
    from tlog.server.verify import Progress

_AHEAD = 16  # blocks that are fetched at once
_AHEAD_BYTES = 8 << 20  # fewer where entries are large, by the size of those before


class Supply:
    """The damaged blocks of one log. Owned by one repair.

    Attributes:
        fetched: Entries that the source had.
        missing: Numbers of the blocks that it has not, or damaged as well, each with the reason.
    """

    def __init__(self, source: Source | None, head: Checkpoint, numbers: list[int], progress: Progress) -> None:
        """Take what is damaged, ascending; without a source nothing may be."""
        self.fetched = 0
        self.missing: dict[int, str] = {}
        self._source = source
        self._head = head
        self._numbers = numbers
        self._progress = progress
        self._cache = TileCache()
        self._ahead: dict[int, list[bytes]] = {}
        self._most = _AHEAD

    def is_damaged(self, number: int) -> bool:
        """Return whether a block is damaged."""
        at = bisect_left(self._numbers, number)
        return at < len(self._numbers) and self._numbers[at] == number

    def entries(self, number: int) -> list[bytes] | None:
        """Return the entries of a damaged block, never of one before the last asked for; None where it is missing.

        Raises:
            SourceError: The source cannot be reached.
        """
        if number not in self._ahead and number not in self.missing:
            self._fetch(number)
        return self._ahead.get(number)

    def _fetch(self, number: int) -> None:
        """Fetch a block, and those that follow it and are damaged as well."""
        at = bisect_left(self._numbers, number)
        run_of = [each for ahead, each in enumerate(self._numbers[at : at + self._most]) if each == number + ahead]
        self._ahead = {old: entries for old, entries in self._ahead.items() if old >= number}
        if not self._read(run_of):
            for each in run_of if len(run_of) > 1 else ():
                self._read([each])
        size = sum(len(entry) for entries in self._ahead.values() for entry in entries)
        self._most = max(1, min(_AHEAD, _AHEAD_BYTES * len(run_of) // (size + 1)))
        self._progress(at + len(run_of), len(self._numbers))

    def _read(self, numbers: list[int]) -> bool:
        """Read blocks in a row; return whether the source had them."""
        if self._source is None:
            raise StartRefusedError("log.db changed while it was repaired; start again")
        start, end = block_bounds(numbers[0], self._head.size)[0], block_bounds(numbers[-1], self._head.size)[1]
        try:
            entries = read(self._source, read_entries(self._head, start, end, self._cache))
        except SourceError:
            raise
        except TreeheadError as error:
            if len(numbers) == 1:
                self.missing[numbers[0]] = str(error)
            return False
        for number in numbers:
            at = number * TILE_WIDTH - start
            self._ahead[number] = entries[at : at + TILE_WIDTH]
        self.fetched += len(entries)
        return True


def find_damaged(blocks: Blocks, source: Source, head: Checkpoint, verifier: Verifier) -> list[int]:
    """Return the blocks that are not those of a signed head, as the verified tiles of a source say.

    Raises:
        StartRefusedError: The source does not lead to the head, or has seen a newer one.
        SourceError: It cannot be reached.
    """
    _check_newest(source, head, verifier)
    try:
        return read(source, blocks.read_damaged(head, TileCache()))
    except SourceError:
        raise
    except TreeheadError as error:
        raise StartRefusedError(
            f"the source does not lead to the signed head {head.size}: {error}. It is smaller, damaged, or of another "
            "log. Nothing was changed; name another source"
        ) from error


def _check_newest(source: Source, head: Checkpoint, verifier: Verifier) -> None:
    """Refuse where the source shows a signed head that the checkpoint store does not know."""
    try:
        seen = open_head(run(source, fetch_checkpoint()), verifier)
    except SourceError:
        raise
    except TreeheadError:
        return  # it shows no head of this log, which it need not
    if seen.size > head.size:
        raise StartRefusedError(
            f"the source has a signed head of size {seen.size}, and the checkpoint store is at {head.size}: it was "
            "taken back, and the log would fork. Nothing was changed. Bring the newest checkpoints.db; where that is "
            "lost, move it away, and begin at the newest head with: tlogd recover-checkpoints"
        )
    if seen.size == head.size and seen.root != head.root:
        raise StartRefusedError(
            f"the source has another signed head of size {seen.size} than the checkpoint store: the log has forked. "
            "Nothing was changed; keep both as evidence"
        )
