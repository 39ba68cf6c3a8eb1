"""What a head makes visible, and what it must be: from the text of tlog-tiles and the RFC's recursion alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.rfc6962 import Tree

Address = tuple[int | None, int, int]
"""Tile level (None for an entry bundle), index, and width from 1 to 256."""


def addresses(size: int) -> list[Address]:
    """Return every tile and bundle of a tree of that size, as wide as it makes them."""
    level: int | None = None
    found: list[Address] = []
    while count := size >> 8 * (level or 0):
        found += [(level, index, min(256, count - 256 * index)) for index in range(-(-count // 256))]
        level = 0 if level is None else level + 1
    return found


def every_width(size: int) -> Iterator[Address]:
    """Yield every tile and bundle of every size up to that one."""
    for level, index, width in addresses(size):
        for narrower in range(1, width + 1):
            yield level, index, narrower


def path(address: Address) -> str:
    """Return where an address is served."""
    level, index, width = address
    digits = f"{index:03}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return f"/tile/{'entries' if level is None else level}/{number}" + (f".p/{width}" if width < 256 else "")


def content(tree: Tree, address: Address) -> bytes:
    """Return what must be served at an address."""
    level, index, width = address
    if level is None:
        return framed(tree.entries[256 * index : 256 * index + width])
    span = 256**level
    starts = [span * (256 * index + at) for at in range(width)]
    return b"".join(tree.mth(start, start + span) for start in starts)


def framed(entries: list[bytes] | tuple[bytes, ...] | object) -> bytes:
    """Return entries, each behind its length in two bytes."""
    assert isinstance(entries, list | tuple)
    return b"".join(bytes([len(entry) >> 8, len(entry) & 255]) + entry for entry in entries)


def unframed(data: bytes) -> list[bytes]:
    """Split framed entries."""
    entries: list[bytes] = []
    while data:
        end = 2 + 256 * data[0] + data[1]
        assert len(data) >= end
        entries.append(data[2:end])
        data = data[end:]
    return entries
