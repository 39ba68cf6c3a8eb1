"""The scrub: reads the whole log again and again while it is served, and stops the signing where something is damaged.

A *pass* is everything once:

    1  the schemas of log.db and tiles.db, the position of the tiles
    2  the leaf index: its runs, filters and buckets, by their checksums
    3  stretches of entries with their tiles and bundles (`tlog.server.stretch`), from a segment chosen by lot to the
       end, and from the first to there: whatever ends a process, nothing stays unread for ever

It has connections and threads of its own, reads a little at a time, and rests in between: at most `limits.scrub_bytes`
are read a second, and at most a tenth of the time is spent on it. What is damaged counts when it is damaged again at a
second look. Then nothing more is signed, the mark is written (`tlog.server.mark`), and the scrub goes on, to tell all.

Pages that the operating system keeps in memory are read from there: of those, damage on the medium shows later.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

import structlog

from tlog.server.errors import DamagedFileError, DamageError, StartRefusedError
from tlog.server.mark import MAX_SPOTS, Spot, add_to_mark
from tlog.server.storage.database import check_schema, running
from tlog.server.storage.leaves import LeafStore
from tlog.server.storage.reading import open_reading
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.tiles import SCHEMA as TILES_SCHEMA
from tlog.server.storage.tiles import TileStore
from tlog.server.stretch import Source, read_stretch, reason, segment_start
from tlog.server.verify.finding import LOG, TILES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tlog.server.metrics import Meter
    from tlog.server.overlay import Overlay

FIRST_S = 1.0
"""Seconds from the start of a log to its first pass: a start has enough to do."""

AGAIN_S = 60.0
"""Seconds after which a pass is tried again that could not read."""

LOOK_AGAIN_S = 0.25
"""Seconds between the two looks at something damaged."""

PASS_BYTES = 256 << 20
"""Bytes that a pass counts for at least, so that a small log is not read all the time: a minute at the usual pace."""

DUTY = 0.1
"""Share of the time that is spent on it at most, however fast it may read."""

_SLICE_S = 0.002  # shorter rests are put together
_LOWEST = -(1 << 63)  # the smallest index that a damaged file may have

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Files:
    """What a scrub reads, and where it leaves its mark.

    Attributes:
        log: log.db.
        tiles: tiles.db.
        mark: The mark.
    """

    log: Path
    tiles: Path
    mark: Path


class Scrub:
    """The scrub of one log. Owned by the event loop."""

    def __init__(
        self,
        files: Files,
        overlay: Overlay,
        pace: int,
        meter: Meter,
        *,
        now_ms: Callable[[], int],
        halt: Callable[[str], None],
    ) -> None:
        """Take what to read.

        Args:
            files: Its files.
            overlay: The newest part of its tree.
            pace: Bytes a second, at least 1.
            meter: Where it counts.
            now_ms: Milliseconds since 1970.
            halt: Called with a reason when something is damaged.
        """
        self._files = files
        self._overlay = overlay
        self._pace = pace
        self._meter = meter
        self._now_ms = now_ms
        self._halt = halt
        self._rest_s = 0.0  # what it has not rested yet
        self._read = 0  # bytes, in this pass
        self._told: set[tuple[str, int, int, str]] = set()

    async def run(self) -> None:
        """Make pass after pass, until cancelled."""
        await asyncio.sleep(FIRST_S)
        refused = 0
        while True:
            try:
                await self._run()
            except DamagedFileError as error:
                refused += 1
                if refused > 1:
                    await self._tell([Spot(self._blame(error), 0, 0, str(error))])
            except (StartRefusedError, sqlite3.OperationalError) as error:
                log.warning("scrub.failed", reason=str(error))
            await asyncio.sleep(AGAIN_S if refused != 1 else LOOK_AGAIN_S)

    def _blame(self, error: DamagedFileError) -> str:
        return TILES if str(error).startswith(str(self._files.tiles)) else LOG

    async def _run(self) -> None:
        """Open the files, and make pass after pass.

        Raises:
            DamagedFileError: One is no database, or has another schema.
            StartRefusedError: One cannot be opened now.
            sqlite3.OperationalError: One cannot be read now.
        """
        async with AsyncExitStack() as stack:
            entries = await stack.enter_async_context(running(partial(open_reading, self._files.log, LOG_SCHEMA)))
            tiles = await stack.enter_async_context(running(partial(open_reading, self._files.tiles, TILES_SCHEMA)))
            store = await tiles.run(TileStore)
            source = Source(entries, tiles, store, self._overlay, self._pause)
            while True:
                self._read = 0
                if await self._pass(source):
                    self._meter.scrubs += 1
                    self._meter.scrubbed_at = monotonic()
                await asyncio.sleep(max(0, PASS_BYTES - self._read) / self._pace)

    async def _pass(self, source: Source) -> bool:
        """Look at everything once; return whether all of it could be read."""
        size = self._overlay.size
        for check in (self._check_schemas, self._check_position, self._check_leaves):
            await self._look(partial(check, source))
        start = await source.log.run(partial(segment_start, random.randrange(size)))  # noqa: S311 — not a secret
        is_whole = await self._walk(source, (start, start), size, lambda _, end: end >= size)
        return await self._walk(source, (_LOWEST, 0), size, lambda after, _: after > start) and is_whole

    async def _walk(
        self, source: Source, place: tuple[int, int], size: int, is_done: Callable[[int, int], bool]
    ) -> bool:
        """Read stretch after stretch from a place on; return whether the end was reached."""
        while not is_done(*place):
            stretch = await read_stretch(source, *place, size)
            if stretch.spots:
                await asyncio.sleep(LOOK_AGAIN_S)
                stretch = await read_stretch(source, *place, size)
                await self._tell(stretch.spots)
            self._meter.scrubbed += stretch.entries
            if stretch.is_cut or not stretch.entries:
                return False
            place = stretch.next, stretch.end
        return True

    async def _look(self, check: Callable[[], Awaitable[None]]) -> None:
        """Make a check of tiles.db or of both files, twice where the first finds something."""
        for looks in (1, 2):
            try:
                return await check()
            except (DamageError, DamagedFileError, sqlite3.DatabaseError) as error:
                if looks == 1:
                    reason_or_raise(error)
                    await asyncio.sleep(LOOK_AGAIN_S)
                else:
                    file = self._blame(error) if isinstance(error, DamagedFileError) else TILES
                    await self._tell([Spot(file, 0, 0, reason_or_raise(error))])
        return None

    async def _check_schemas(self, source: Source) -> None:
        for thread, path, schema in (
            (source.log, self._files.log, LOG_SCHEMA),
            (source.tiles, self._files.tiles, TILES_SCHEMA),
        ):
            await thread.run(partial(check_schema, path=path, schema=schema))

    async def _check_position(self, source: Source) -> None:
        """Check that the tiles go as far as what is not in memory any more, and no further than the tree."""
        least = self._overlay.position
        position = await source.tiles.run(lambda _: source.store.position())
        if not least <= position <= self._overlay.size:
            raise DamageError("it does not say how far it goes")

    async def _check_leaves(self, source: Source) -> None:
        pieces = await source.tiles.run(lambda connection: LeafStore(connection).reread())
        while True:
            began = perf_counter()
            read = await source.tiles.run(partial(_next, pieces))
            if read is None:
                return
            await self._pause(read, perf_counter() - began)

    async def _pause(self, read: int, seconds: float) -> None:
        """Rest for what was read, and for what it took."""
        self._read += read
        self._rest_s += max(read / self._pace, seconds * (1 / DUTY - 1))
        if self._rest_s >= _SLICE_S:
            rest, self._rest_s = self._rest_s, 0.0
            await asyncio.sleep(rest)

    async def _tell(self, spots: list[Spot]) -> None:
        """Stop the signing for what was not told yet, leave a mark, and say so."""
        now_ms = self._now_ms()
        fresh = {(spot.file, spot.first, spot.end, spot.what): spot for spot in spots}
        new = [Spot(*key, now_ms) for key in fresh if key not in self._told][: MAX_SPOTS - len(self._told)]
        if not new:
            return
        self._told |= {(spot.file, spot.first, spot.end, spot.what) for spot in new}
        self._meter.damages = len(self._told)
        self._halt(f"the log found damage when it read its files again, so nothing is signed: {new[0]}")
        for spot in new:
            log.critical("scrub.damaged", file=spot.file, first=spot.first, end=spot.end, what=spot.what)
        marking = asyncio.create_task(asyncio.to_thread(self._mark, new))
        try:
            await asyncio.shield(marking)
        except asyncio.CancelledError:
            await asyncio.wait([marking])
            raise

    def _mark(self, spots: list[Spot]) -> None:
        try:
            add_to_mark(self._files.mark, spots)
        except OSError as error:
            log.critical("scrub.unmarked", reason=str(error))


def reason_or_raise(error: DamageError | DamagedFileError | sqlite3.DatabaseError) -> str:
    """Return what an error says of a file.

    Raises:
        sqlite3.OperationalError: It is about the moment, and not about what is on the disk.
    """
    return str(error) if isinstance(error, DamagedFileError) else reason(error)


def _next(pieces: Iterator[int], _: object) -> int | None:
    return next(pieces, None)


@asynccontextmanager
async def scrubbing(scrub: Scrub, halt: Callable[[str], None]) -> AsyncIterator[None]:
    """Scrub meanwhile. A scrub that ends by itself met what it does not know: then nothing is signed any more."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("scrub.ended", reason=str(error), error=type(error).__name__)
            halt(f"the log cannot read its files again, so nothing is signed: {type(error).__name__}: {error}")

    task = asyncio.create_task(scrub.run(), name="scrub")
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
