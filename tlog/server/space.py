"""The free space of the disks that a log writes to: what it has taken must always fit.

A look asks by the names of the databases, so it sees as well when one of them is moved away. SQLite does not: it goes
on in the file that it has open, where no start will look for what was acknowledged.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tlog.server.errors import CommitError, NoSpaceError, StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LOOK_S = 0.05
"""Seconds that a look is good for: statvfs(2) takes microseconds, and in this time no disk takes half of the floor."""

MIN_BLOCK = 4096
"""Bytes of a block of the file system that is needed: SQLite reserves the shared memory of a WAL in steps as large."""

FULL = 1 << 20
"""Free bytes below which a disk counts as full: an open database needs some hundred thousand."""


class Space:
    """The space that is left, looked at a few times a second. Owned by the event loop."""

    def __init__(
        self,
        places: Iterable[Path],
        floor: int,
        clock: Callable[[], float] = time.monotonic,
        on_gone: Callable[[CommitError], object] = lambda _: None,
    ) -> None:
        """Watch the file systems of some folders or files.

        Args:
            places: One on each volume that the log writes to.
            floor: Bytes that must be free on each.
            clock: Seconds that never go back.
            on_gone: Called when one of them is no longer there; a log that is written to ends here and now.
        """
        self._places = tuple(places)
        self._floor = floor
        self._clock = clock
        self._on_gone = on_gone
        self._looked_at = float("-inf")
        self._free = 0

    @property
    def free(self) -> int:
        """Free bytes on the volume that has fewest; 0 where one cannot be read."""
        if self._clock() - self._looked_at >= LOOK_S:
            self.look()
        return self._free

    def look(self) -> None:
        """Look at the volumes now."""
        self._looked_at = self._clock()
        try:
            self._free = min(map(_free, self._places))
        except (FileNotFoundError, NotADirectoryError) as error:
            self._free = 0
            self._on_gone(
                CommitError(
                    f"{error.filename} is gone: it was moved away, removed or unmounted while the log was served. "
                    "Bring it back as it is, with what lies beside it, and start the log again"
                )
            )

    def check(self, promised: int = 0) -> None:
        """Refuse where a volume is too full to take entries.

        Args:
            promised: Bytes that what was taken will still need.

        Raises:
            NoSpaceError: It has less than the floor free, beside what is promised.
        """
        if self._clock() - self._looked_at >= LOOK_S:
            self.look()
        if self._free - promised < self._floor:
            raise NoSpaceError(
                f"the disk has {self._free >> 20} MiB free, what was taken needs {promised >> 20} MiB of that, "
                f"and the log keeps {self._floor >> 20} MiB"
            )


def check_blocks(folder: Path) -> None:
    """Refuse a file system on which a full disk would kill the process.

    SQLite maps the shared memory of a WAL from a file, of which it writes a byte in each 4096. Where blocks are smaller
    the rest is a hole, and to fill it on a full disk is not an error that anybody could handle, but SIGBUS.

    Raises:
        StartRefusedError: Its blocks are too small.
    """
    found = os.statvfs(folder)
    if found.f_frsize < MIN_BLOCK:
        raise StartRefusedError(
            f"the file system of {folder} has blocks of {found.f_frsize} bytes, and a full disk would kill the server: "
            f"move the log to one with blocks of {MIN_BLOCK} (mkfs.ext4 -b {MIN_BLOCK})"
        )


def is_full(folder: Path) -> bool:
    """Return whether its volume has no space left to speak of: what failed there may have failed for that."""
    try:
        return _free(folder) < FULL
    except (FileNotFoundError, NotADirectoryError):
        return False


def _free(place: Path) -> int:
    """Return the bytes that a process without privileges may still write; 0 where nobody can tell.

    Raises:
        FileNotFoundError: It is gone.
        NotADirectoryError: It is gone, and its folder as well.
    """
    try:
        found = os.statvfs(place)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
