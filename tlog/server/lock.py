"""The lock of a data directory: one process uses a log, and others can see which, and where it serves.

    DIR/lock    locked with flock(2) by the process that uses the log; {"pid": 4711, "url": "http://127.0.0.1:8080"}

The lock counts, not the text: it goes with its process, and what that process wrote stays behind. A look at the lock
takes it for an instant, so whoever wants it tries for a second.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tlog.server.errors import InUseError, StartRefusedError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

LOCK_NAME = "lock"

_TRIES = 40
_PAUSE_S = 0.025
_MAX_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that uses a log.

    Attributes:
        pid: Its process ID; 0 where it has not said so yet.
        url: Where it serves the log; empty where it does not, or not yet.
    """

    pid: int = 0
    url: str = ""

    def __str__(self) -> str:
        """Return how a refusal names it."""
        where = f", which serves it at {self.url}" if self.url else ""
        return f"process {self.pid}{where}" if self.pid else "another process"


class Lock:
    """Holds the lock of a data directory as a context; of several processes one has it, whatever else goes wrong."""

    def __init__(self, path: Path) -> None:
        """Take the path of the lock file; it is made where it is missing."""
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            InUseError: Another process has it.
            StartRefusedError: There is no such folder, or it cannot be written.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartRefusedError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            _take(self._descriptor, self._path)
            announce(self._path, "")
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _take(descriptor: int, path: Path) -> None:
    for _ in range(_TRIES):
        if _try(descriptor, fcntl.LOCK_EX):
            return
        time.sleep(_PAUSE_S)
    raise InUseError(f"the log is in use by {_read_holder(path)}: it holds {path}")


def _try(descriptor: int, kind: int) -> bool:
    """Try to take a lock; return whether it was free."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def announce(path: Path, url: str) -> None:
    """Say in a lock file where its log is served; only the process that holds the lock does.

    A disk that is full keeps nobody from reading a log, so where it cannot be said, it is not.
    """
    with suppress(OSError):
        path.write_text(json.dumps({"pid": os.getpid(), "url": url}) + "\n", encoding="utf-8")


class Glance:
    """A look at whether a log is in use, as a context: a log that is not in use is not taken into use meanwhile.

    Keep it short: who starts to use the log waits for a second, and not longer.

    Attributes:
        holder: The process that uses the log; None for a log that is not in use.
    """

    def __init__(self, path: Path) -> None:
        """Take the path of the lock file, which may be missing."""
        self._path = path
        self._descriptor = -1
        self.holder: Holder | None = None

    def __enter__(self) -> Self:
        """Look.

        Raises:
            StartRefusedError: The file is there and cannot be opened.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self
        except OSError as error:
            raise StartRefusedError(f"{self._path} cannot be opened: {error.strerror}") from error
        if not _try(self._descriptor, fcntl.LOCK_SH):
            self.holder = _read_holder(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _read_holder(path: Path) -> Holder:
    """Read what the holder of a lock wrote; anything else is nobody's."""
    try:
        with path.open("rb") as file:
            match json.loads(file.read(_MAX_SIZE)):
                case {"pid": int(pid), "url": str(url)}:
                    return Holder(pid, url)
                case _:
                    pass
    except (OSError, ValueError, RecursionError):
        pass
    return Holder()
