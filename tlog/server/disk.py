"""Files that appear whole or not at all, and databases that take the place of others, which are kept."""

from __future__ import annotations

import errno
import glob
import os
from contextlib import contextmanager
from dataclasses import dataclass
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
    draft = _new_draft(target)
    try:
        yield draft
        sync(draft)
        _give_name(draft, target)
        sync(target.absolute().parent)
    finally:
        _remove_draft(draft)


def _new_draft(target: Path) -> Path:
    draft = target.with_name(f".{target.name[:200]}.{token_hex(4)}.part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return draft


def _remove_draft(draft: Path) -> None:
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


@dataclass(slots=True)
class Swap:
    """A database that takes the place of another.

    Attributes:
        draft: Where the new one is written.
        aside: Where the old one is afterwards; None where there was none.
    """

    draft: Path
    aside: Path | None = None


@contextmanager
def swapped(target: Path) -> Iterator[Swap]:
    """Give the path of a new database beside an old one, which it replaces when the block ends well. Call it locked.

    1  the block writes the draft, and closes both
    2  the draft is made durable
    3  the old database gets another name too, durably; what SQLite keeps beside it, only that
    4  the draft takes the name, in one step: at every moment there is the one or the other
    5  the folder is made durable

    SQLite must never find the write-ahead log of one database beside another, so that goes before. A block that can,
    has moved it into the old database; else there is a moment in which the old one lacks what was in it.

    Raises:
        OSError: The disk refuses.
    """
    for part in target.parent.glob(f".{glob.escape(target.name[:200])}.{'[0-9a-f]' * 8}.part*"):
        part.unlink()  # of a process that was killed
    swap = Swap(_new_draft(target))
    try:
        yield swap
        sync(swap.draft)
        swap.aside = _second_name(target)
        swap.draft.replace(target)
        sync(target.absolute().parent)
    finally:
        _remove_draft(swap.draft)


def _second_name(path: Path) -> Path | None:
    """Keep a database under another name, durably, and return that; None where there is no database."""
    number = 1
    while any(os.path.lexists(path.with_name(f"{path.name}.damaged-{number}{end}")) for end in SQLITE_ENDINGS):
        number += 1
    aside = path.with_name(f"{path.name}.damaged-{number}")
    for ending in reversed(SQLITE_ENDINGS[1:]):
        part = path.with_name(path.name + ending)
        if os.path.lexists(part):
            part.rename(aside.with_name(aside.name + ending))
    if not os.path.lexists(path):
        return None
    try:
        os.link(path, aside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.rename(aside)
    sync(path.absolute().parent)
    return aside


def remove_database(path: Path) -> None:
    """Remove a derived database and what belongs to it."""
    for ending in reversed(SQLITE_ENDINGS):
        path.with_name(path.name + ending).unlink(missing_ok=True)
