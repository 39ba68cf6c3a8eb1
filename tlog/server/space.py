"""The free space of the disks that a log writes to: what it has taken must always fit."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tlog.server.errors import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LOOK_S = 1.0
"""Seconds that a look is good for: one statvfs(2) a second costs nothing, and a disk takes longer to fill."""


class Space:
    """The space that is left, looked at no more than once a second. Owned by the event loop."""

    def __init__(self, places: Iterable[Path], floor: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch the file systems of some folders or files.

        Args:
            places: One on each volume that the log writes to.
            floor: Bytes that must be free on each.
            clock: Seconds that never go back.
        """
        self._places = tuple(places)
        self._floor = floor
        self._clock = clock
        self._looked_at = float("-inf")
        self._free = 0

    @property
    def free(self) -> int:
        """Free bytes on the volume that has fewest; 0 where one cannot be read."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._free = min(map(_free, self._places))
        return self._free

    def check(self) -> None:
        """Refuse where a volume is too full to take entries.

        Raises:
            NoSpaceError: It has less than the floor free.
        """
        if self.free < self._floor:
            raise NoSpaceError(f"the disk has {self._free >> 20} MiB free, and the log keeps {self._floor >> 20} MiB")


def _free(place: Path) -> int:
    """Return the bytes that a process without privileges may still write."""
    try:
        found = os.statvfs(place)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
