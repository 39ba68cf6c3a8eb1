"""A full tile with its interior nodes, as one byte string, so that any hash in it is a slice.

    row 0    256 hashes, those of the tile        from byte 0
    row 1    128 hashes, one for each pair        from byte 8192
    …
    row 7    2 hashes                             from byte 16256; together they hash to the tile's parent

16,320 bytes; lists of the same hashes take more than twice as much.
"""

from __future__ import annotations

from hashlib import sha256

from tlog.merkle import HASH_SIZE, node_hash
from tlog.tile import TILE_HEIGHT, TILE_WIDTH

EXPANDED_SIZE = HASH_SIZE * (2 * TILE_WIDTH - 2)
"""Bytes of an expanded tile."""

ROWS = tuple(HASH_SIZE * (2 * TILE_WIDTH - (2 * TILE_WIDTH >> height)) for height in range(TILE_HEIGHT))
"""Where each row begins."""


def expand(tile: bytes) -> tuple[bytes, bytes]:
    """Return a full tile of 256 hashes expanded, and the hash of its parent."""
    rows = [tile]
    while len(rows) < TILE_HEIGHT:
        row = rows[-1]
        pairs = range(0, len(row), 2 * HASH_SIZE)
        rows.append(b"".join([sha256(b"\x01" + row[at : at + 2 * HASH_SIZE]).digest() for at in pairs]))
    return b"".join(rows), node_hash(rows[-1][:HASH_SIZE], rows[-1][HASH_SIZE:])


def hash_in(expanded: bytes, height: int, index: int) -> bytes:
    """Return the hash of a node: its height above the tile's hashes, 0 to 7, and its index in that row."""
    at = ROWS[height] + HASH_SIZE * index
    return expanded[at : at + HASH_SIZE]


def siblings_in(expanded: bytes, index: int) -> list[bytes]:
    """Return the inclusion proof of hash `index` of the tile, 0 to 255, to its parent: eight hashes."""
    proof: list[bytes] = []
    for start in ROWS:
        at = start + HASH_SIZE * (index ^ 1)
        proof.append(expanded[at : at + HASH_SIZE])
        index >>= 1
    return proof
