"""The entries that the load generator adds: all different, and each one known again from three small numbers.

    <run, 16 hex digits> SP <process, 4 hex digits> SP <number, 12 hex digits> SP <bytes of a fixed random block>

So what was acknowledged is kept as numbers alone, and the whole entry can be compared with what the log holds. The
random bytes keep a log that compresses its bundles from having it easy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ENTRY_SIZE = 300
"""Bytes in an entry."""

_BLOCK = random.Random(0x7265).randbytes(1 << 20)  # noqa: S311  # it is to be the same every time, not secret
_PREFIX_SIZE = 16 + 1 + 4 + 1 + 12 + 1
_REST = ENTRY_SIZE - _PREFIX_SIZE
_STEP = 7919
_SPAN = len(_BLOCK) - _REST


@dataclass(frozen=True, slots=True)
class Source:
    """Where the entries of one process come from.

    Attributes:
        run: Names the run; random, 64 bits.
        process: Number of the generator process, below 65,536.
    """

    run: int
    process: int

    def prefix(self) -> bytes:
        """Return what all entries of this source begin with."""
        return b"%016x %04x " % (self.run, self.process)

    def entry(self, number: int) -> bytes:
        """Return the entry of a number, 300 bytes."""
        return entry_of(self.prefix(), number)


def entry_of(prefix: bytes, number: int) -> bytes:
    """Return the entry of a number behind the prefix of its source; for the loop that makes each only once."""
    at = number * _STEP % _SPAN
    return b"%b%012x %b" % (prefix, number, _BLOCK[at : at + _REST])
