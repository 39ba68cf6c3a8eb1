"""What a start does with the mark of a scrub: it reads again exactly what the mark names, and nothing is signed before.

    log.db      the segments with the entries that it names, up to the next one; damaged still: the start is refused
    tiles.db    is built anew from the entries, all of which are hashed for that, before this is called

When everything is whole again, the mark is removed. A log that is only read is served with its mark: what it answers is
verified, and damage is an error of the server.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from tlog.server.errors import DamageFoundError
from tlog.server.mark import Spot, remove_mark
from tlog.server.stretch import read_stretch, segment_start
from tlog.server.verify.finding import LOG

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tlog.server.stretch import Source

log = structlog.get_logger()

REMEDY = "bring the entries back with: tlogd repair --from URL|DIR, or tlogd restore FILE. Until then: --read-only"


async def recheck(mark: Path, spots: Sequence[Spot], source: Source, *, read_only: bool) -> None:
    """Read again what a scrub found damaged.

    Args:
        mark: The mark.
        spots: What it says.
        source: Where the log is read.
        read_only: Whether nothing is to be signed.

    Raises:
        DamageFoundError: Something is damaged still.
    """
    if not spots:
        return
    if read_only:
        log.warning("mark.kept", spots=len(spots), reason=str(spots[0]))
        return
    damaged: dict[str, None] = {}
    for spot in spots:
        if spot.file == LOG:
            damaged |= {str(found): None for found in await _look(spot, source)}
    if damaged:
        raise DamageFoundError(
            f"a scrub found damage that is still there, so the log is not opened: {next(iter(damaged))}; {REMEDY}",
            damages=list(damaged),
        )
    remove_mark(mark)
    log.info("mark.removed", spots=len(spots), reason=str(spots[0]))


async def _look(spot: Spot, source: Source) -> list[Spot]:
    """Return what is damaged where a spot was found, in log.db."""
    size = source.overlay.size
    if spot.first >= size:
        return []
    start = await source.log.run(partial(segment_start, spot.first))
    place, found = (start, start), list[Spot]()
    while place[1] <= min(spot.end, size - 1):
        stretch = await read_stretch(source, *place, size)
        found += [each for each in stretch.spots if each.file == LOG]
        if stretch.is_cut or not stretch.entries:
            break
        place = stretch.next, stretch.end
    return found
