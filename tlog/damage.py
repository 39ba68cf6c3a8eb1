"""Damage: what a log serves that is wrong, where it is, and how that is told.

**Blame.** The hash at the top of a level-0 tile is served three times: in the level-1 tile above, by the tile itself,
and by the bundle of its entries. What leads to the hash that is known from above is right. Where that is not known,
because a tile that leads to it is wrong or missing itself, two of the three outvote the third, and whoever folds all
such hashes to a signed root learns whether they were right. Either way damage is a contradiction in what was served, or
with the signed root: it is proven. What could not be read proves nothing and is kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE, tree_root
from tlog.tile import TILE_HEIGHT, TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_FINDINGS = 64
"""Most findings of a kind that are kept of one part of the tree; all are counted."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is served, and proven wrong.

    Attributes:
        path: Path of the tile or bundle; empty for a subtree.
        start: Index of the first entry below it.
        end: Index after the last one.
        wrong: What of it is wrong, ascending: indexes of entries for a bundle, positions of hashes for a tile. Empty
            where that cannot be told.
        expected: The hash that the first of these must have, or all of it together; empty where there is none.
        found: The hash that it has.
        reason: What is wrong, for people.
    """

    path: str
    start: int
    end: int
    wrong: tuple[int, ...]
    expected: bytes
    found: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be read.

    Attributes:
        path: Path of the tile or bundle.
        reason: Why, for people.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check of one part of the tree has found.

    Attributes:
        root: Hash of the part as it is served; None where too much could not be read.
        damage: The first findings.
        damaged: Number of all.
        unread: The first that could not be read.
        missing: Number of all.
    """

    root: bytes | None
    damage: tuple[Damage, ...] = ()
    damaged: int = 0
    unread: tuple[Unread, ...] = ()
    missing: int = 0


class Findings:
    """Collects what the check of one part of the tree finds."""

    def __init__(self, size: int) -> None:
        """Begin with nothing found in a tree of that size."""
        self._size = size
        self._damage: list[Damage] = []
        self._unread: list[Unread] = []
        self._damaged = self._missing = 0

    def checked(self, root: bytes | None) -> Checked:
        """Return the result."""
        return Checked(root, tuple(self._damage), self._damaged, tuple(self._unread), self._missing)

    def lack(self, unread: Unread) -> None:
        """Note what could not be read."""
        self._missing += 1
        if len(self._unread) < MAX_FINDINGS:
            self._unread.append(unread)

    def add(
        self,
        path: str,
        bounds: tuple[int, int],
        wrong: Sequence[int],
        hashes: tuple[bytes | None, bytes | None],
        reason: str,
    ) -> None:
        """Note damage; the hashes are the expected and the found one."""
        self._damaged += 1
        if len(self._damage) < MAX_FINDINGS:
            expected, found = (value or b"" for value in hashes)
            self._damage.append(Damage(path, *bounds, tuple(wrong), expected, found, reason))

    def subtree(self, bounds: tuple[int, int], expected: bytes, found: bytes | None) -> None:
        """Note that everything below a node belongs to another tree."""
        self.add("", bounds, (), (expected, found), "entries and tiles agree on another tree than the one of the head")

    def tile(self, tile: Tile, answer: bytes | Unread) -> bytes | None:
        """Return a tile that can be used."""
        if isinstance(answer, Unread):
            self.lack(answer)
        elif len(answer) != HASH_SIZE * tile.width:
            reason = f"a tile of width {tile.width} has {HASH_SIZE * tile.width} bytes, not {len(answer)}"
            self.add(tile.path, self._below(tile), (), (None, None), reason)
        else:
            return answer
        return None

    def bundle(self, bundle: Bundle, answer: bytes | Unread) -> bytes | None:
        """Return the leaf hashes of a bundle that can be used, one after the other."""
        if isinstance(answer, Unread):
            self.lack(answer)
            return None
        try:
            return leaf_hashes(answer, bundle.width)
        except FormatError as error:
            self.add(bundle.path, _entries_of(bundle), (), (None, None), str(error))
            return None

    def compare(self, tile: Tile, served: bytes | None, right: Sequence[bytes | None]) -> None:
        """Note where a tile differs from hashes that are known."""
        wrong, first = _differences(split(served), right) if served is not None else ([], (None, None))
        if wrong:
            self.add(tile.path, self._below(tile), wrong, first, "hashes do not follow from the level below")

    def _below(self, tile: Tile) -> tuple[int, int]:
        """Return the entries below a tile."""
        start = tile.index * TILE_WIDTH << TILE_HEIGHT * tile.level
        return start, start + (tile.width << TILE_HEIGHT * tile.level)


class Pair:
    """A level-0 tile and the bundle of its entries.

    Attributes:
        tile: Address of the tile.
        stored: Its hashes; None where they cannot be used.
        leaves: The leaf hashes of the bundle; None where it cannot be used.
        of_tile: The root over the tile.
        of_entries: The root over the entries.
    """

    __slots__ = ("leaves", "of_entries", "of_tile", "stored", "tile")

    def __init__(self, tile: Tile, stored: bytes | None, leaves: bytes | None) -> None:
        """Take what `Findings.tile` and `Findings.bundle` returned."""
        self.tile = tile
        self.stored = stored
        self.leaves = stored if leaves == stored else leaves  # one copy of what is equal, of which there is much
        self.of_tile = fold(stored) if stored is not None else None
        self.of_entries = self.of_tile if leaves == stored else fold(leaves) if leaves is not None else None

    def vote(self, above: bytes | None) -> bytes | None:
        """Return the root that two of three say; else the one that stands nearest to the signed root."""
        if above is None or (self.of_entries is not None and self.of_entries == self.of_tile):
            return self.of_tile if self.of_entries is None else self.of_entries
        return above

    def blame(self, found: Findings, right: bytes) -> None:
        """Note what is wrong with tile or bundle; where one of them is right, it tells what of the other is not."""
        tile_is_right, bundle_is_right = self.of_tile == right, self.of_entries == right
        bundle = Bundle(self.tile.index, self.tile.width)
        if self.stored is not None and self.leaves is not None and bundle_is_right:
            found.compare(self.tile, self.stored, split(self.leaves))
        elif self.stored is not None and not tile_is_right:
            reason = "the tile is not the one of the tree"
            found.add(self.tile.path, _entries_of(bundle), (), (right, self.of_tile), reason)
        if self.leaves is not None and not bundle_is_right:
            row = split(self.stored) if self.stored is not None and tile_is_right else []
            wrong, first = _differences(split(self.leaves), row) if row else ([], (right, self.of_entries))
            wrong = [bundle.index * TILE_WIDTH + at for at in wrong]
            found.add(bundle.path, _entries_of(bundle), wrong, first, "entries are not those of the tree")


def judge(
    found: Findings, above: Tile, stored: bytes | None, pairs: Sequence[Pair], expected: bytes | None
) -> bytes | None:
    """Find out which hashes under a level-1 tile are right, note what differs, and return the root over them.

    Args:
        found: Takes the findings.
        above: The level-1 tile; its width may be 0.
        stored: Its hashes; None where they cannot be used.
        pairs: What is below it, and the partial tile behind, if there is one.
        expected: The root, where it is known.
    """
    row: list[bytes | None] = [*split(stored)] if stored is not None else [None] * above.width
    row += [None] * (len(pairs) - len(row))  # no tile holds the root over a partial one
    right = [pair.vote(up) for pair, up in zip(pairs, row, strict=True)]
    if expected is not None and fold_known(right) != expected:
        right = next((each for each in _others(right, row, pairs) if fold_known(each) == expected), right)
    root = fold_known(right)
    for pair, value in zip(pairs, right, strict=True):
        if value is not None and not value == pair.of_tile == pair.of_entries:
            pair.blame(found, value)
    found.compare(above, stored, right[: above.width])
    if expected is not None and root not in (None, expected):
        found.subtree((pairs[0].tile.index * TILE_WIDTH, _end(pairs[-1])), expected, root)
    return root


def _others(
    voted: Sequence[bytes | None], row: Sequence[bytes | None], pairs: Sequence[Pair]
) -> Iterator[list[bytes | None]]:
    """Yield other rows of hashes that may be the right ones; what one lacks, it takes from the vote."""
    of_tiles, of_entries = [pair.of_tile for pair in pairs], [pair.of_entries for pair in pairs]
    for each in (voted, row, of_tiles, of_entries):
        filled = [vote if value is None else value for value, vote in zip(each, voted, strict=True)]
        yield filled
        yield [*filled[:-1], of_tiles[-1]]  # two say what a partial tile hashes to, so there is no vote on the last
        yield [*filled[:-1], of_entries[-1]]


def _end(pair: Pair) -> int:
    return pair.tile.index * TILE_WIDTH + pair.tile.width


def _entries_of(bundle: Bundle) -> tuple[int, int]:
    return bundle.index * TILE_WIDTH, bundle.index * TILE_WIDTH + bundle.width


def _differences(
    served: Sequence[bytes], right: Sequence[bytes | None]
) -> tuple[list[int], tuple[bytes | None, bytes | None]]:
    """Return the positions where hashes differ from those that are known, and the first pair: expected, found."""
    wrong = [at for at, (has, must) in enumerate(zip(served, right, strict=True)) if must is not None and has != must]
    return wrong, (right[wrong[0]], served[wrong[0]]) if wrong else (None, None)


# Hashes, many at once: all the time of a check is spent here.


def leaf_hashes(data: bytes, width: int) -> bytes:
    """Return the leaf hashes of a bundle, one after the other, as its level-0 tile has them.

    Raises:
        FormatError: Not exactly `width` framed entries.
    """
    hashes: list[bytes] = []
    at = 0
    try:
        for _ in range(width):
            start = at + 2
            at = start + (data[at] << 8) + data[at + 1]
            hashes.append(sha256(b"\x00" + data[start:at]).digest())
    except IndexError:
        at = -1
    if at != len(data):
        raise FormatError(f"not {width} framed entries")
    return b"".join(hashes)


def fold(hashes: bytes) -> bytes:
    """Return MTH over leaf hashes that stand one after the other, at least one: `merkle.tree_root` of a tile."""
    while len(hashes) > HASH_SIZE:
        odd = hashes[-HASH_SIZE:] if len(hashes) & HASH_SIZE else b""
        starts = range(0, len(hashes) - len(odd), 2 * HASH_SIZE)
        hashes = b"".join([sha256(b"\x01" + hashes[at : at + 2 * HASH_SIZE]).digest() for at in starts]) + odd
    return hashes


def fold_known(hashes: Sequence[bytes | None]) -> bytes | None:
    """Return MTH over leaf hashes; None where one is not known."""
    known = [value for value in hashes if value is not None]
    return tree_root(known) if len(known) == len(hashes) else None


def split(hashes: bytes) -> list[bytes]:
    """Return hashes that stand one after the other."""
    return [hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)]
