"""The body of a batch: one deterministic CBOR array of byte strings (RFC 8949 §4.2.1), and nothing else.

    array     0x80 to 0x97, or 0x98, 0x99, 0x9a, 0x9b and the number of entries in 1, 2, 4 or 8 bytes, big-endian
    entry     0x40 to 0x57, or 0x58, 0x59, 0x5a, 0x5b and its length in the same way, then its bytes

Numbers take the fewest bytes. It is read item by item, up to the limits: a general decoder would build whatever else
such a body may hold, millions of values in a few megabytes, before anybody could refuse it.
"""

from __future__ import annotations

from tlog.errors import FormatError
from tlog.server.errors import TooLargeError
from tlog.tile import MAX_ENTRY_SIZE

_BYTES = 2
_ARRAY = 4
_NUMBER_SIZES = {24: 1, 25: 2, 26: 4, 27: 8}


def parse_batch(data: bytes, max_entries: int) -> list[bytes]:
    """Parse the body of a batch.

    Args:
        data: The body.
        max_entries: Most entries that are taken.

    Raises:
        FormatError: It is no such array, or an empty one.
        TooLargeError: It has too many entries, or one of more than 65,535 bytes.
    """
    count, at = _head(data, 0, _ARRAY)
    if count == 0:
        raise FormatError("a batch has at least one entry")
    if count > max_entries:
        raise TooLargeError(f"a batch has at most {max_entries:,} entries, not {count:,}")
    entries: list[bytes] = []
    for number in range(count):
        size, at = _head(data, at, _BYTES)
        if size > MAX_ENTRY_SIZE:
            raise TooLargeError(
                f"an entry has at most {MAX_ENTRY_SIZE:,} bytes; entry {number} of the batch has {size:,}"
            )
        entries.append(data[at : at + size])
        at += size
    if at != len(data):
        raise FormatError("a batch is cut off, or bytes are left over")
    return entries


def _head(data: bytes, at: int, major: int) -> tuple[int, int]:
    """Return the number that an item of a type begins with, and where it goes on."""
    if at >= len(data) or data[at] >> 5 != major:
        raise FormatError("a batch is one CBOR array of byte strings")
    number = data[at] & 31
    at += 1
    if number < 24:
        return number, at
    size = _NUMBER_SIZES.get(number, 0)
    value = int.from_bytes(data[at : at + size], "big")
    if size == 0 or len(data) < at + size or value < (24 if size == 1 else 1 << 4 * size):
        raise FormatError("a batch is deterministic CBOR: definite lengths, each in the fewest bytes")
    return value, at + size
