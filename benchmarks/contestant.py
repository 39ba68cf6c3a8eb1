"""Who is measured: our server, the server that does nothing, peers that this program starts, and servers of others.

Each is started anew for each row, in turn within one run, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.load.kind import ADDING
from benchmarks.process import Program, serve_log, serving_new_log
from benchmarks.result import NOOP, OURS

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.row import Row


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Attributes:
        url: Its address.
        check: How much is asked of its answers, as in `load/hammer.py`.
        vkey: Its key, where it is known.
        size: Tree size that reads are about; 0 for that of its checkpoint.
        patience: Seconds in which its checkpoint may reach what it acknowledged.
    """

    url: str
    check: str
    vkey: str | None = None
    size: int = 0
    patience: float = 0.0


class Contestant(Protocol):
    """One that is measured.

    Attributes:
        name: As it is called in tables.
    """

    name: str

    def takes(self, row: Row) -> bool:
        """Return whether it can do what a row asks."""

    def running(self, row: Row) -> AbstractContextManager[Server]:
        """Run it while a row is measured."""


class Ours:
    """Our server: on a new log where entries are added, on the prepared one where it is read."""

    name = OURS

    def __init__(self, folder: Path, prepared: Path, vkey: str) -> None:
        """Take where new logs are made, and the log that reads are about."""
        self._folder = folder
        self._prepared = prepared
        self._vkey = vkey
        self._numbers = itertools.count()

    def takes(self, row: Row) -> bool:
        """Take every load."""
        return row.kind != ""

    @contextmanager
    def running(self, row: Row) -> Iterator[Server]:
        """Serve a log."""
        if row.kind not in ADDING:
            with serve_log(self._prepared) as program:
                yield Server(program.url, "full", self._vkey)
            return
        data = self._folder / f"new-{next(self._numbers)}"
        with serving_new_log(data) as (program, vkey):
            yield Server(program.url, "full", vkey)
        shutil.rmtree(data)


class Noop:
    """The server that does nothing: its answers are as long as those of ours were."""

    name = NOOP

    def __init__(self) -> None:
        """Answer with one byte until told otherwise."""
        self.answer_bytes = 1

    def takes(self, row: Row) -> bool:
        """Take every load."""
        return row.kind != ""

    @contextmanager
    def running(self, row: Row) -> Iterator[Server]:
        """Serve nothing."""
        command = [sys.executable, "-m", "benchmarks.load.noop", "--answer-bytes", str(self.answer_bytes)]
        with Program(command) as program:
            yield Server(program.url, "none", size=0 if row.kind in ADDING else 1 << 20)


class Peer:
    """A server that does the same in another way, from `peers/`, in an environment of its own."""

    def __init__(
        self, name: str, command: Sequence[str | Path], kinds: Container[str], folder: Path, size: int
    ) -> None:
        """Take what it is.

        Args:
            name: As it is called in tables.
            command: Starts it, before the name of its database and the size to fill it to.
            kinds: The kinds of request that it takes.
            folder: Where its databases are.
            size: Size of the tree that is read.
        """
        self.name = name
        self._command = command
        self._kinds = kinds
        self._folder = folder
        self._size = size
        self._numbers = itertools.count()

    def takes(self, row: Row) -> bool:
        """Take what it has."""
        return row.kind in self._kinds

    @contextmanager
    def running(self, row: Row) -> Iterator[Server]:
        """Serve a new database."""
        file = self._folder / f"{self.name}-{row.name}-{next(self._numbers)}.db"
        is_read = row.kind not in ADDING
        with Program([*self._command, file, str(self._size if is_read else 0)]) as program:
            yield Server(program.url, "none" if is_read else "distinct", size=self._size)
        for each in self._folder.glob(f"{file.name}*"):
            each.unlink()


class Other:
    """A server that somebody else started, which takes `POST /add` and serves tiles."""

    def __init__(self, url: str, vkey: str | None = None) -> None:
        """Take its address, and its key where it is known."""
        self.name = url.removeprefix("http://").rstrip("/")
        self._url = url
        self._vkey = vkey

    def takes(self, row: Row) -> bool:
        """Take what every tiled log has."""
        return row.kind in ("add", "checkpoint", "tile", "bundle")

    @contextmanager
    def running(self, row: Row) -> Iterator[Server]:
        """Leave it as it is."""
        yield Server(self._url, "full", self._vkey, patience=30.0 if row.kind == "add" else 0.0)
