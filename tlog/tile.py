"""Tiles and entry bundles: geometry, paths and codecs (c2sp.org/tlog-tiles).

Hash i of tile (L, N) is the tree hash of the 256^L leaves from (256·N + i)·256^L on, so a tile of level L holds the
nodes of tree level 8·L, and the seven tree levels above them are computed. A full tile has 256 hashes; the last tile of
a level may be *partial*, with a width below 256. Entry bundle N holds the entries under tile (0, N).

    tile/<L>/<N>[.p/<W>]            W hashes of 32 bytes
    tile/entries/<N>[.p/<W>]        W times: length as unsigned 16-bit big-endian, entry

N is written in groups of three digits, all but the last with a leading "x": 1234067 is x001/x234/067.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE, Node, tree_root
from tlog.strict import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TILE_WIDTH = 256
"""Hashes in a full tile, entries in a full bundle."""

TILE_HEIGHT = 8
"""Tree levels from one tile level to the next: 2^8 = 256."""

MAX_ENTRY_SIZE = 0xFFFF
"""Largest entry in bytes: its length is written in 16 bits."""

MAX_BUNDLE_SIZE = TILE_WIDTH * (2 + MAX_ENTRY_SIZE)
"""Largest bundle in bytes."""

_MAX_LEVEL = 63
_INDEX = re.compile(r"((?:x[0-9]{3}/){0,5})([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tile:
    """The address of a tile of hashes.

    Attributes:
        level: Tile level L, 0 to 63.
        index: Tile index N within the level, ≥ 0.
        width: Number of hashes, 1 to 256; below 256 the tile is partial.
    """

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix."""
        return f"tile/{self.level}/{_format_index(self.index, self.width)}"

    def full(self) -> Tile:
        """Return the address of the full tile that this one grows into."""
        return Tile(self.level, self.index)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The address of an entry bundle.

    Attributes:
        index: Bundle index N, ≥ 0; its first entry is 256·N.
        width: Number of entries, 1 to 256; below 256 the bundle is partial.
    """

    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix."""
        return f"tile/entries/{_format_index(self.index, self.width)}"

    def full(self) -> Bundle:
        """Return the address of the full bundle that this one grows into."""
        return Bundle(self.index)


def parse_path(path: str) -> Tile | Bundle:
    """Parse a path below the log's prefix; exactly what `path` writes.

    Raises:
        FormatError: Anything else.
    """
    prefix, level, rest = (*path.split("/", 2), "", "")[:3]
    match = _INDEX.fullmatch(rest)
    if prefix != "tile" or match is None:
        raise FormatError("not the path of a tile or an entry bundle")
    index = int(match[1].replace("x", "").replace("/", "") + match[2])
    width = int(match[3] or TILE_WIDTH)
    if match[3] and width >= TILE_WIDTH:
        raise FormatError("a partial tile is narrower than 256")
    known = Bundle(index, width) if level == "entries" else Tile(_parse_level(level), index, width)
    if known.path != path:
        raise FormatError("not the one path of a tile or an entry bundle")
    return known


def _parse_level(text: str) -> int:
    return parse_decimal(text.encode("utf-8", "surrogatepass"), maximum=_MAX_LEVEL)


def _format_index(index: int, width: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    return "/x".join(["", *groups[:-1]])[1:] + "/" * (len(groups) > 1) + groups[-1] + _format_width(width)


def _format_width(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"


# Geometry.


def tile_of(node: Node, size: int) -> Tile:
    """Return the tile that holds a node, as wide as a tree of that size makes it."""
    level, index = node
    tile_level, height = divmod(level, TILE_HEIGHT)
    tile_index = (index << height) // TILE_WIDTH
    return Tile(tile_level, tile_index, width_at(tile_level, tile_index, size))


def width_at(level: int, index: int, size: int) -> int:
    """Return how many hashes tile (level, index) has in a tree of that size, 0 to 256."""
    return max(0, min(TILE_WIDTH, (size >> TILE_HEIGHT * level) - index * TILE_WIDTH))


def hash_in_tile(hashes: Sequence[bytes], node: Node) -> bytes:
    """Return the hash of a node from the hashes of the tile that holds it."""
    level, index = node
    height = level % TILE_HEIGHT
    start = (index << height) % TILE_WIDTH
    return tree_root(hashes[start : start + (1 << height)])


# Codecs.


def format_tile(hashes: Iterable[bytes]) -> bytes:
    """Write a tile: its hashes of 32 bytes, one after the other."""
    return b"".join(hashes)


def parse_tile(data: bytes, width: int) -> list[bytes]:
    """Split a tile into `width` hashes of 32 bytes.

    Raises:
        FormatError: The length is not 32·width.
    """
    if len(data) != HASH_SIZE * width:
        raise FormatError(f"a tile of width {width} has {HASH_SIZE * width} bytes, not {len(data)}")
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def format_bundle(entries: Iterable[bytes]) -> bytes:
    """Write entries of at most 65,535 bytes, each behind its length.

    Raises:
        FormatError: An entry is longer.
    """
    try:
        return b"".join([part for entry in entries for part in (len(entry).to_bytes(2, "big"), entry)])
    except OverflowError as error:
        raise FormatError(f"an entry has at most {MAX_ENTRY_SIZE} bytes") from error


def parse_bundle(data: bytes, width: int) -> list[bytes]:
    """Split a bundle, or any run of framed entries, into exactly `width` entries.

    Raises:
        FormatError: An entry is cut off, or there are more or fewer entries.
    """
    entries: list[bytes] = []
    at = 0
    for _ in range(width):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data):
            break
        entries.append(data[start:at])
    if at != len(data) or len(entries) != width:
        raise FormatError(f"not {width} framed entries")
    return entries


def cut_bundle(data: bytes, width: int) -> bytes:
    """Return the first `width` framed entries of a bundle: a partial bundle from the fuller one.

    Raises:
        FormatError: It has fewer.
    """
    at = 0
    for _ in range(width):
        if at + 2 > len(data):
            raise FormatError(f"a bundle of fewer than {width} entries")
        at += 2 + int.from_bytes(data[at : at + 2], "big")
    if at > len(data):
        raise FormatError("the last entry of a bundle is cut off")
    return data[:at]
