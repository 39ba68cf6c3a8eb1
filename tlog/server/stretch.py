"""A stretch of a log, read again from its disk and compared with the signed tree.

    log.db      segments in a row: that they follow each other, their framing, their digests, each entry with its leaf
                hash in the tree, and the root that the tree has at the end of each
    tiles.db    on the way: the tiles that lead from these entries up to what is in memory, and their bundles

The tree is the one that is served, whose newest part is in memory and whose older part is believed as far as it leads
there; every stretch reads it anew. Segments are read and hashed on the thread of their connection, a few at a time, by
a generator which asks for the leaf hashes that it needs, and gives way in between.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from tlog.edge import Edge, extend
from tlog.merkle import HASH_SIZE, leaf_hash
from tlog.server.errors import DamageError
from tlog.server.mark import Spot
from tlog.server.storage.reading import read_segments
from tlog.server.tree import Tree, check_bundle
from tlog.server.verify.entries import check_header, check_leaves, split
from tlog.server.verify.finding import LOG, TILES, Findings
from tlog.tile import TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from tlog.server.overlay import Overlay
    from tlog.server.storage import Segment
    from tlog.server.storage.database import Database
    from tlog.server.storage.tiles import TileStore

    Flow: TypeAlias = Generator[int | None, list[bytes] | None, Edge | None]
    """Yields the number of a tile and is sent its leaf hashes, None where they cannot be told; or None, to give way."""

    Pause: TypeAlias = Callable[[int, float], Awaitable[None]]
    """Called between two pieces of work, with the bytes that were read, and the seconds that it took."""

READ_SIZE = 1 << 16
"""Bytes of entries that are read at a time, but for a segment that is larger."""

MAX_STRETCH = 1 << 20
"""Bytes of entries after which a stretch ends with the segment."""

_SEGMENTS = 32  # that are checked without giving way
_ROW = 256  # bytes that a segment counts for besides its entries


async def no_pause(read: int, seconds: float) -> None:
    """Go on at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where stretches are read.

    Attributes:
        log: The thread of a connection to log.db.
        tiles: The thread of one to tiles.db.
        store: The tile store on that thread.
        overlay: The newest part of the tree.
        pause: Called between two pieces of work.
    """

    log: Database
    tiles: Database
    store: TileStore
    overlay: Overlay
    pause: Pause = no_pause


@dataclass(slots=True)
class Stretch:
    """What a stretch is found to be. Owned by whoever reads it.

    Attributes:
        size: The signed size up to which it may go.
        next: The smallest index with which the next segment may begin.
        end: The index with which it must begin: the number of entries up to there.
        entries: Entries that were read.
        read: Bytes that were read and not paused for yet.
        spots: What is damaged.
        is_cut: Whether nothing behind it can be read.
    """

    size: int
    next: int
    end: int
    entries: int = 0
    read: int = 0
    spots: list[Spot] = field(default_factory=list)
    is_cut: bool = False

    def found(self, first: int, end: int, what: str) -> None:
        """Add a spot of log.db."""
        self.spots.append(Spot(LOG, first, end, what))


def segment_start(index: int, connection: sqlite3.Connection) -> int:
    """Return the first index of the segment that holds an entry; 0 where that cannot be told."""
    select = "SELECT first FROM segment WHERE first <= ? ORDER BY first DESC LIMIT 1"
    try:
        row = connection.execute(select, (index,)).fetchone()
    except sqlite3.DatabaseError as error:
        if is_passing(error):
            raise
        row = None  # the walk will meet it
    return row[0] if row else 0


async def read_stretch(source: Source, start: int, end: int, size: int) -> Stretch:
    """Read a stretch again.

    Args:
        source: Where.
        start: The smallest index with which its first segment may begin.
        end: The index with which it must begin.
        size: The signed size.

    Raises:
        sqlite3.OperationalError: A file cannot be read now, which is no damage.
    """
    tree, stretch = Tree(source.overlay, source.tiles, source.store), Stretch(size, start, end)
    for thread in (source.log, source.tiles):
        await thread.run(_forget)
    edge = await _edge(tree, stretch)
    flow: Flow = await source.log.run(lambda connection: _reread(connection, stretch, edge))
    hashes = None
    while True:
        began = perf_counter()
        is_done, wanted = await source.log.run(partial(_advance, flow, hashes))
        hashes = None if wanted is None else await _leaf_hashes(source, tree, wanted, stretch)
        read, stretch.read = stretch.read, 0
        await source.pause(read, perf_counter() - began)
        if is_done:
            return stretch


def _forget(connection: sqlite3.Connection) -> None:
    """Let a connection forget the pages that it has read: they are to be read again."""
    connection.execute("PRAGMA shrink_memory").fetchall()


async def _edge(tree: Tree, stretch: Stretch) -> Edge | None:
    """Return the edge of the signed tree where a stretch begins; None where it cannot be told."""
    try:
        return Edge(stretch.end, tuple(await tree.hashes(Edge(stretch.end).nodes())))
    except (DamageError, sqlite3.DatabaseError) as error:
        stretch.spots.append(Spot(TILES, stretch.end, stretch.end, reason(error)))
    return None


async def _leaf_hashes(source: Source, tree: Tree, number: int, stretch: Stretch) -> list[bytes] | None:
    """Return the leaf hashes of a tile, as far as it is signed, and check their bundle; None where it is damaged."""
    first, end = number * TILE_WIDTH, min(stretch.size, (number + 1) * TILE_WIDTH)
    try:
        data = await tree.tile(Tile(0, number, end - first))
        stretch.read += len(data)
        hashes = [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]
    except (DamageError, sqlite3.DatabaseError) as error:
        stretch.spots.append(Spot(TILES, first, end, reason(error)))
        return None
    if (number + 1) * TILE_WIDTH <= source.overlay.position and len(hashes) == TILE_WIDTH:
        try:
            stretch.read += await source.tiles.run(partial(_check_bundle, source.store, number, hashes))
        except (DamageError, sqlite3.DatabaseError) as error:
            stretch.spots.append(Spot(TILES, first, end, f"{Bundle(number).path}: {reason(error)}"))
    return hashes


def _check_bundle(store: TileStore, number: int, hashes: list[bytes], _: object) -> int:
    """Return the bytes of a bundle that is the one of these leaf hashes."""
    data = store.bundle(number)
    if data is None:
        raise DamageError("it is missing")
    check_bundle(number, data, hashes)
    return len(data)


def _advance(flow: Flow, hashes: list[bytes] | None, _: object) -> tuple[bool, int | None]:
    """Go on to where a flow needs a tile, or gives way."""
    try:
        return False, flow.send(hashes)
    except StopIteration:
        return True, None


def _reread(connection: sqlite3.Connection, stretch: Stretch, edge: Edge | None) -> Flow:
    """Read the segments of a stretch, and check each."""
    tile = _TileHashes()
    length = 0
    try:
        for number, segment in enumerate(read_segments(connection, stretch.next, READ_SIZE), 1):
            if segment.first >= stretch.size:
                break
            if segment.first != stretch.end:
                edge = None
            edge = yield from _reread_segment(segment, edge, tile, stretch)
            length += len(segment.entries)
            if length >= MAX_STRETCH and stretch.end < stretch.size:
                return edge
            if stretch.read >= READ_SIZE or number % _SEGMENTS == 0:
                yield None
        if stretch.end < stretch.size:
            stretch.found(stretch.end, stretch.size, f"entries {stretch.end} to {stretch.size - 1} are missing")
            stretch.is_cut = True
    except sqlite3.Error as error:
        if is_passing(error):
            raise
        stretch.found(stretch.end, stretch.end + 1, f"entry {stretch.end} cannot be read: {error}")
        stretch.is_cut = True
    return edge


@dataclass(slots=True)
class _TileHashes:
    """The tile that a stretch is at; owned by its flow."""

    number: int = -1
    hashes: list[bytes] | None = None


def _reread_segment(segment: Segment, edge: Edge | None, tile: _TileHashes, stretch: Stretch) -> Flow:
    """Check a segment, and return the edge behind it; None where that cannot be told."""
    if segment.first != stretch.end:
        low, high = sorted((segment.first, stretch.end))
        what = "are missing" if segment.first > stretch.end else "are there twice"
        stretch.found(low, high, f"entries {low} to {high - 1} {what}")
    if segment.end > stretch.size:
        stretch.found(segment.first, segment.end, f"the signed size {stretch.size} is within a commit")
    findings = Findings()
    check_header(segment, findings)
    entries, leaves = split(segment, findings), list[bytes]()
    for at, part in _parts(segment.first, entries or []):
        if at < stretch.size and tile.number != at // TILE_WIDTH:
            tile.number = at // TILE_WIDTH
            tile.hashes = yield tile.number
        found = [leaf_hash(entry) for entry in part]
        leaves += found
        _compare(at, found, tile.hashes, findings)
    if entries is None:
        edge = None
    else:
        check_leaves(segment, leaves, findings)
        edge = _grown(edge, leaves, segment, findings)
    stretch.spots += [Spot(LOG, segment.first, segment.end, damage.what) for damage in findings.damages]
    stretch.entries += segment.count
    stretch.read += len(segment.entries) + len(segment.keys) + _ROW
    stretch.next, stretch.end = segment.first + 1, segment.end
    return edge


def _parts(first: int, entries: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Cut the entries of a segment where tiles end, and yield each part with the index of its first entry."""
    at, end = first, first + len(entries)
    while at < end:
        stop = min(end, (at // TILE_WIDTH + 1) * TILE_WIDTH)
        yield at, entries[at - first : stop - first]
        at = stop


def _compare(at: int, found: list[bytes], hashes: list[bytes] | None, findings: Findings) -> None:
    """Compare leaf hashes with those of the tree, as far as it goes."""
    wanted = [] if hashes is None else hashes[at % TILE_WIDTH : at % TILE_WIDTH + len(found)]
    if found[: len(wanted)] == wanted:
        return
    wrong = [index for index, (leaf, signed) in enumerate(zip(found, wanted, strict=False), at) if leaf != signed]
    for _, run in groupby(enumerate(wrong), lambda pair: pair[1] - pair[0]):
        first, *more = [index for _, index in run]
        if more:
            findings.damage(
                LOG, f"entries {first} to {more[-1]} are not the ones in the signed tree: they were changed"
            )
        else:
            findings.damage(LOG, f"entry {first} is not the one in the signed tree: it was changed")


def _grown(edge: Edge | None, leaves: list[bytes], segment: Segment, findings: Findings) -> Edge | None:
    """Return the edge behind a segment, whose root it must say."""
    if edge is None:
        return None
    grown = extend(edge, leaves).new
    if grown.root() != segment.root:
        findings.damage(LOG, f"the root stored at size {segment.end} is not that of the entries")
    return grown


def is_passing(error: sqlite3.Error) -> bool:
    """Return whether an error is about the moment, and not about what is on the disk."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return isinstance(error, sqlite3.OperationalError) and kind not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT)


def reason(error: DamageError | sqlite3.DatabaseError) -> str:
    """Return what an error of tiles.db says of it.

    Raises:
        sqlite3.OperationalError: It is about the moment, and not about what is on the disk.
    """
    if isinstance(error, sqlite3.Error):
        if is_passing(error):
            raise error
        return f"it cannot be read: {error}"
    return str(error)
