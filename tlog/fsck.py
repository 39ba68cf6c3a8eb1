"""Verify everything that a log serves for one head: every entry, every tile of every level, up to the signed root.

The work is cut into *ranges* of 65,536 entries, each with its 256 bundles, its 256 level-0 tiles and the level-1 tile
above them; the last may be shorter. A range is checked by itself to the hash of its subtree, so ranges may be checked
in any order, side by side, and their results kept.

    expected = read_expected(head)              the hash of each range in the head's tree, through verified tiles
    checked = check_range(size, n, expected[n]) one range: bundles against tiles against its hash
    top = check_top(head, expected, checked)    the hashes of all ranges against the root, and the tiles above them

`check_*` differ from the flows of `tlog.reader` in one point: an address that could not be read is answered with
`Unread`, and the rest goes on. `fetch_each` drives them over HTTP.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tlog.damage import Checked, Findings, Pair, Unread, fold_known, judge
from tlog.errors import CouldNotCheckError, FormatError, VerificationError
from tlog.fetch import over_http
from tlog.genesis import Genesis, parse_genesis
from tlog.merkle import subtree_nodes, subtree_root
from tlog.reader import ReadBundles, ReadTiles, read_entries, read_hashes
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile, width_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.reader import Reading

T = TypeVar("T")

RANGE_HEIGHT = 2 * TILE_HEIGHT
"""Tree level of the hash of a whole range: two tile levels above the entries."""

RANGE_SIZE = 1 << RANGE_HEIGHT
"""Entries of a whole range: 65,536."""

_CHUNK = 16
"""Most bundles that are read at once: enough to keep connections busy."""

_CHUNK_BYTES = 8 << 20
"""Bytes of bundles to be read at once, by the size of those before: this bounds memory where entries are large."""

_BATCH = 256
"""Most tiles above the ranges that are read at once."""

Checking: TypeAlias = Generator[ReadTiles | ReadBundles, "list[bytes | Unread]", T]
"""A flow that reads what it can get, and returns a T."""


# Plan.


def count_ranges(size: int) -> int:
    """Return how many ranges a tree of that size has."""
    return -(-size >> RANGE_HEIGHT)


def range_bounds(size: int, number: int) -> tuple[int, int]:
    """Return the entries [start, end) of a range in a tree of that size."""
    return number << RANGE_HEIGHT, min(size, (number + 1) << RANGE_HEIGHT)


def count_bundles(size: int) -> int:
    """Return how many entry bundles a tree of that size has."""
    return _count(size, 0)


def count_tiles(size: int) -> int:
    """Return how many tiles a tree of that size has, on all levels together."""
    return sum(_count(size, level) for level in range(_levels(size)))


def _levels(size: int) -> int:
    return (size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT


def _count(size: int, level: int) -> int:
    return -(-(size >> TILE_HEIGHT * level) // TILE_WIDTH)


# Flows.


def read_expected(head: Checkpoint) -> Reading[list[bytes]]:
    """Return the hash that each range has in the head's tree, through verified tiles.

    Raises:
        FormatError: A tile has another length than asked for.
        VerificationError: A tile on the way does not lead to the root of the head.
    """
    whole = head.size >> RANGE_HEIGHT
    last = [node for node in subtree_nodes(0, head.size) if node[0] < RANGE_HEIGHT] if head.size else []
    hashes = yield from read_hashes(head, [*((RANGE_HEIGHT, number) for number in range(whole)), *last])
    rest = [subtree_root(whole << RANGE_HEIGHT, head.size, hashes[whole:])] if last else []
    return hashes[:whole] + rest


def check_range(size: int, number: int, expected: bytes | None) -> Checking[Checked]:
    """Check one range of a tree of that size: bundles, level-0 tiles and the level-1 tile.

    Args:
        size: Size of the tree.
        number: Number of the range.
        expected: The hash that the range has in the head's tree; None where it is not known.
    """
    start, end = range_bounds(size, number)
    numbers = range(start // TILE_WIDTH, -(-end // TILE_WIDTH))
    tiles = [Tile(0, index, width_at(0, index, size)) for index in numbers]
    above = Tile(1, number, width_at(1, number, size))
    found = Findings(size)
    answers = yield ReadTiles((*tiles, *([above] if above.width else [])))
    stored = [found.tile(tile, data) for tile, data in zip((*tiles, above), (*answers, b""), strict=False)]
    pairs: list[Pair] = []
    chunk = 1
    while len(pairs) < len(tiles):
        batch = tiles[len(pairs) : len(pairs) + chunk]
        bundles = [Bundle(tile.index, tile.width) for tile in batch]
        answers = yield ReadBundles(tuple(bundles))
        leaves = map(found.bundle, bundles, answers)
        pairs += map(Pair, batch, stored[len(pairs) :], leaves)
        read = sum(len(data) for data in answers if isinstance(data, bytes))
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES * len(batch) // (read + 1)))
    return found.checked(judge(found, above, stored[-1], pairs, expected))


def check_top(head: Checkpoint, expected: Sequence[bytes] | None, ranges: Sequence[Checked]) -> Checking[Checked]:
    """Check the hashes of all ranges against the root of the head, and every tile above them.

    Args:
        head: The head.
        expected: What `read_expected` returned; None where it failed.
        ranges: The results of all ranges, in order.
    """
    found = Findings(head.size)
    root = fold_known([each.root for each in ranges])
    if expected is None and root not in (None, head.root):
        found.subtree((0, head.size), head.root, root)
    for number, (each, right) in enumerate(zip(ranges, expected or (), strict=False)):
        if each.root not in (None, right) and not each.damaged:  # it was checked when this was not known
            found.subtree(range_bounds(head.size, number), right, each.root)
    row: list[bytes | None] = [each.root for each in ranges] if expected is None else [*expected]
    for level in range(RANGE_HEIGHT // TILE_HEIGHT, _levels(head.size)):
        row = row[: head.size >> TILE_HEIGHT * level]
        yield from _check_level(found, head.size, level, row)
        row = [fold_known(row[at : at + TILE_WIDTH]) for at in range(0, len(row), TILE_WIDTH)]
    return found.checked(root)


def _check_level(found: Findings, size: int, level: int, row: Sequence[bytes | None]) -> Checking[None]:
    """Compare the tiles of a level with the hashes that follow from the level below."""
    tiles = [Tile(level, index, width_at(level, index, size)) for index in range(_count(size, level))]
    for at in range(0, len(tiles), _BATCH):
        batch = tuple(tiles[at : at + _BATCH])
        for tile, answer in zip(batch, (yield ReadTiles(batch)), strict=True):
            start = tile.index * TILE_WIDTH
            found.compare(tile, found.tile(tile, answer), row[start : start + tile.width])


def read_genesis(head: Checkpoint) -> Reading[Genesis | None]:
    """Return what the log says of itself in entry 0; None where that is no genesis entry.

    Raises:
        FormatError: A bundle or a tile breaks its form.
        ValueError: The tree is empty.
        VerificationError: A tile does not lead to the head, or the entry is not the one in the tree.
    """
    (entry,) = yield from read_entries(head, 0, 1)
    try:
        return parse_genesis(entry)
    except FormatError:
        return None


def check_genesis(genesis: Genesis, origin: str, vkeys: Iterable[str]) -> None:
    """Check that a genesis entry is of the log that is read.

    Raises:
        VerificationError: It names another origin, or a key that is not trusted.
    """
    if genesis.origin != origin:
        raise VerificationError(f"the genesis entry is of another log: {genesis.origin}")
    if genesis.vkey not in vkeys:
        raise VerificationError(f"the genesis entry names a key that is not trusted: {genesis.vkey}")


def fetch_each(checking: Checking[T]) -> Fetching[T]:
    """Drive a flow over HTTP. What the log does not answer with is `Unread`, and found by halving the batch."""
    try:
        wanted = next(checking)
        while True:
            addresses = wanted.tiles if isinstance(wanted, ReadTiles) else wanted.bundles
            wanted = checking.send((yield from _fetch(addresses)))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # StopIteration is not generic


def _fetch(addresses: Sequence[Tile | Bundle]) -> Fetching[list[bytes | Unread]]:
    try:
        return [*(yield from over_http(_ask(addresses)))]
    except CouldNotCheckError as error:
        if len(addresses) == 1:
            return [Unread(addresses[0].path, str(error))]
    half = len(addresses) // 2
    return [*(yield from _fetch(addresses[:half])), *(yield from _fetch(addresses[half:]))]


def _ask(addresses: Sequence[Tile | Bundle]) -> Reading[list[bytes]]:
    tiles = tuple(address for address in addresses if isinstance(address, Tile))
    bundles = tuple(address for address in addresses if isinstance(address, Bundle))
    answers = yield ReadTiles(tiles) if tiles else ReadBundles(bundles)
    return answers
