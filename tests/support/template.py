"""Closed logs to copy, with tiles and a leaf index in small parts: a few hundred entries are like millions."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow, stored
from tlog.server import derived, follower, leaves, rebuild
from tlog.server.storage import database
from tlog.server.storage import leaves as runs

if TYPE_CHECKING:
    from pathlib import Path

RUN = 256
"""Entries of a run of the leaf index; as many as one transaction of the follower has."""


@dataclass(frozen=True, slots=True)
class Template:
    """A closed log to begin with.

    Attributes:
        folder: Its files.
        vkey: Its key.
        entries: Its entries.
        last_ms: The time of its newest segment.
    """

    folder: Path
    vkey: str
    entries: tuple[bytes, ...]
    last_ms: int


class SmallParts(ExitStack):
    """Lets tiles and leaf index be written in parts that a log of a few hundred entries has several of."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = self.enter_context(pytest.MonkeyPatch.context())
        for module in (derived, leaves, rebuild, runs):
            self.patch.setattr(module, "RUN", RUN)
        self.patch.setattr(derived, "CHUNK", 2 * RUN)
        self.patch.setattr(derived, "RECENT", 2 * RUN)
        self.patch.setattr(follower, "MAX_BUNDLES", 1)
        self.patch.setattr(database, "WAL_PAGES", 20)


def make_template(folder: Path, size: int) -> Template:
    """Create a log with so many entries."""
    with SmallParts():
        config = create(folder)
        grow(config, [[b"old %d" % index for index in range(at, min(at + 60, size))] for at in range(1, size, 60)])
    with closing(sqlite3.connect(folder / "log.db")) as connection:
        ((last_ms,),) = connection.execute("SELECT max(time_ms) FROM segment").fetchall()
    return Template(folder, config.vkey, tuple(stored(folder)), last_ms)
