"""A run of the leaf index that is made in memory, at its final size, from leaf hashes: many at a time.

While it is made, its filter has a byte for each bit, which is faster to set; the bits are put together at the end.
"""

from __future__ import annotations

from array import array
from sys import byteorder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ITEM = 16
"""Bytes of an item: prefix [8] ‖ index, 64 bits, both big-endian."""

PROBES = (0, 11, 22, 33)
"""By how many bits a prefix is shifted for each bit of the filter that it sets."""

_WORD = "Q"
_WORDS = 4  # in a leaf hash
_PREFIX_BITS = 64


class Draft:
    """A run that is being made.

    Attributes:
        first: Index of its first entry.
        level: Its level.
        buckets: The items of each bucket.
    """

    def __init__(self, first: int, level: int, bucket_bits: int, filter_bits: int) -> None:
        """Begin with nothing in it.

        Args:
            first: Index of its first entry.
            level: Its level.
            bucket_bits: How many bits of a prefix choose its bucket.
            filter_bits: Size of the filter, a power of two.
        """
        self.first = first
        self.level = level
        self.buckets = [bytearray() for _ in range(1 << bucket_bits)]
        self._shift = _PREFIX_BITS - bucket_bits
        self._flags = bytearray(filter_bits)

    def pour(self, leaves: Mapping[bytes, int]) -> None:
        """Add leaf hashes of 32 bytes, each with its index."""
        prefixes, items = _items(list(leaves), list(leaves.values()))
        buckets, flags, shift, mask = self.buckets, self._flags, self._shift, len(self._flags) - 1
        by_0, by_1, by_2, by_3 = PROBES
        for prefix, at in zip(prefixes, range(0, len(items), ITEM), strict=True):
            buckets[prefix >> shift] += items[at : at + ITEM]
            flags[prefix >> by_0 & mask] = flags[prefix >> by_1 & mask] = 1
            flags[prefix >> by_2 & mask] = flags[prefix >> by_3 & mask] = 1

    def filter(self) -> bytes:
        """Return its filter, 8 bits a byte, the lowest first."""
        bits = 0
        for bit in range(8):
            bits |= int.from_bytes(self._flags[bit::8], "little") << bit
        return bits.to_bytes(len(self._flags) // 8, "little")


def _items(leaves: Sequence[bytes], indexes: Sequence[int]) -> tuple[array[int], bytes]:
    """Return the prefix of each leaf hash as a number, and the items one after the other."""
    prefixes, numbers = array(_WORD, b"".join(leaves))[::_WORDS], array(_WORD, indexes)
    items = array(_WORD, bytes(ITEM * len(leaves)))
    if byteorder == "little":
        numbers.byteswap()
    items[::2], items[1::2] = prefixes, numbers
    if byteorder == "little":
        prefixes.byteswap()
    return prefixes, items.tobytes()


def prefixes_of(items: bytes) -> array[int]:
    """Return the prefix of each item as a number."""
    prefixes = array(_WORD, items)[::2]
    if byteorder == "little":
        prefixes.byteswap()
    return prefixes
