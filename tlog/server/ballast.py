"""The ballast: a file that only takes up space, until an operator whose disk is full removes it.

Below the floor of free space the log takes no more entries, but other programs may fill the rest. Then nothing can be
stored at all: a commit under way stops the log, and a start may need some bytes, too. Removing the ballast gives them.
`tlogd serve` makes it anew once there is enough space again; a log that has none starts all the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

BALLAST_NAME = "ballast"

_CHUNK = 1 << 20
_BLOCK = 512  # bytes that st_blocks counts, whatever the file system has

log = structlog.get_logger()


def keep_ballast(folder: Path, size: int, floor: int) -> None:
    """Make the ballast of a log as large as it is to be, where there is room; what fails is logged, and stops nothing.

    Args:
        folder: The data directory.
        size: Its bytes; 0 for none.
        floor: Bytes that must be free beside it.
    """
    path = folder / BALLAST_NAME
    try:
        if size == 0:
            path.unlink(missing_ok=True)
        elif not _is_whole(path, size):
            _replace(path, size, floor)
    except OSError as error:
        log.warning("ballast.missing", path=str(path), reason=error.strerror)


def _replace(path: Path, size: int, floor: int) -> None:
    """Make it anew under another name; what there was is removed first, so that both need not fit."""
    draft = path.with_name(f"{BALLAST_NAME}.new")
    draft.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    if free < floor + size:
        log.warning("ballast.missing", path=str(path), reason="too little free space", free=free, needed=floor + size)
        return
    try:
        with open(draft, "xb", buffering=0, opener=_private) as file:
            _fill(file, size)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    log.info("ballast.made", path=str(path), bytes=size)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fill(file: FileIO, size: int) -> None:
    """Give a file its bytes, really: reserved, or written where the system only pretends to reserve."""
    reserve: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)  # macOS has none
    if reserve is not None:
        reserve(file.fileno(), 0, size)
        os.fsync(file.fileno())
    if os.fstat(file.fileno()).st_blocks * _BLOCK >= size:
        return
    file.seek(0)
    left = size
    while left:
        left -= file.write(os.urandom(min(left, _CHUNK)))  # which no file system can compress
    os.fsync(file.fileno())


def _is_whole(path: Path, size: int) -> bool:
    """Return whether there is one of that size that takes up its space."""
    if not path.is_file():
        return False
    found = path.stat()
    return found.st_size == size and found.st_blocks * _BLOCK >= size
