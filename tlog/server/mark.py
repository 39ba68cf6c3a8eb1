"""The mark that a scrub leaves in the data directory when it has found damage: what is damaged, and since when.

    DIR/damage.json

    {"format": "treehead/damage/v1",
     "spots": [{"file": "log.db", "first": 301, "end": 401, "what": "entry 350 is not …", "found_ms": 1700000000000}]}

It says why the log stopped signing when nobody has the journal any more, and makes the next start read again exactly
what it names. Only a start that finds all of it whole removes it; a check never does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from tlog.server.disk import sync
from tlog.server.errors import DamageFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MARK_NAME = "damage.json"

MAX_SPOTS = 100
"""Spots that are kept; where there are more, the whole log is to be checked anyhow."""

_FORMAT = "treehead/damage/v1"
_MAX_FILE = 1 << 20


class Spot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that was found damaged.

    Attributes:
        file: Name of the file: "log.db" or "tiles.db".
        first: Index of the first entry that it is about.
        end: Index behind the last one; that of the first where it is about no entry.
        what: What is wrong, in one line.
        found_ms: When it was found, milliseconds since 1970.
    """

    file: str
    first: int
    end: int
    what: str
    found_ms: int = 0

    def __str__(self) -> str:
        """Return it as a message names it."""
        return f"{self.file}: {self.what}"


class _Mark(msgspec.Struct, forbid_unknown_fields=True):
    """The file."""

    format: str
    spots: list[Spot]


def read_mark(path: Path) -> list[Spot]:
    """Return what a scrub found damaged; nothing where there is no mark.

    Raises:
        DamageFoundError: The mark cannot be read.
    """
    try:
        with path.open("rb") as file:
            mark = msgspec.json.decode(file.read(_MAX_FILE), type=_Mark)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise DamageFoundError(
            f"a scrub found damage and left {path}, which cannot be read: {error}; "
            "see what is damaged with: tlogd fsck --deep. Remove the file when nothing is"
        ) from error
    if mark.format != _FORMAT:
        raise DamageFoundError(f"a scrub found damage and left {path}, in a format that this version does not know")
    return mark.spots


def add_to_mark(path: Path, spots: Iterable[Spot]) -> None:
    """Add what was found to the mark, durably: the file is replaced as a whole.

    Raises:
        OSError: The disk refuses.
    """
    with suppress(DamageFoundError):  # one that cannot be read says less than what is known now
        spots = [*read_mark(path), *spots]
    mark = _Mark(_FORMAT, list(spots)[:MAX_SPOTS])
    draft = path.with_name(f".{path.name}.part")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(mark), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync(path.absolute().parent)


def remove_mark(path: Path) -> None:
    """Remove the mark, durably.

    Raises:
        OSError: The disk refuses.
    """
    path.unlink(missing_ok=True)
    sync(path.absolute().parent)
