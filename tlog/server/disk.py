"""Files that appear whole or not at all, and never over another."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SQLITE_ENDINGS = ("", "-wal", "-shm", "-journal")
"""What SQLite puts behind the name of a database for the files that belong to it."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """Give the path of a new file beside its target; it gets the name when the block ends well, else it is removed.

    1  the block writes the draft
    2  the draft is made durable
    3  it gets the target's name, which must be free
    4  the folder is made durable

    Raises:
        FileExistsError: The name is taken.
        OSError: The disk refuses.
    """
    draft = target.with_name(f".{target.name[:200]}.{token_hex(4)}.part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield draft
        sync(draft)
        _give_name(draft, target)
        sync(target.absolute().parent)
    finally:
        for ending in SQLITE_ENDINGS:
            draft.with_name(draft.name + ending).unlink(missing_ok=True)


def _give_name(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)  # unlike a rename, it never replaces
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        draft.rename(target)


def set_aside(path: Path) -> Path | None:
    """Give a database and what belongs to it other names, durably; return the new one of the database, if there is one.

    What belongs to it goes first: SQLite must never find the write-ahead log of one database beside another.
    """
    number = 1
    while any(os.path.lexists(path.with_name(f"{path.name}.damaged-{number}{end}")) for end in SQLITE_ENDINGS):
        number += 1
    aside = path.with_name(f"{path.name}.damaged-{number}")
    for ending in reversed(SQLITE_ENDINGS):
        part = path.with_name(path.name + ending)
        if os.path.lexists(part):
            part.rename(aside.with_name(aside.name + ending))
    sync(path.absolute().parent)
    return aside if os.path.lexists(aside) else None


def remove_database(path: Path) -> None:
    """Remove a derived database and what belongs to it."""
    for ending in reversed(SQLITE_ENDINGS):
        path.with_name(path.name + ending).unlink(missing_ok=True)
