"""What a process tells systemd, read from a socket of our own as fast as it comes."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

DEADLINE_S = 30.0


class Notified:
    """Stands for systemd. What nobody reads is lost, as a supervisor's queue is short; so a thread reads.

    Attributes:
        lines: What came, in order.
    """

    def __init__(self, path: Path) -> None:
        """Listen at a path."""
        self.lines: list[bytes] = []
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(str(path))
        self._path = str(path)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            way.sendto(b"", self._path)
        self._thread.join(DEADLINE_S)
        self._inbox.close()

    def _read(self) -> None:
        while line := self._inbox.recv(100):
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for(self, is_told: Callable[[list[bytes]], bool]) -> None:
        """Wait until enough has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: is_told(self.lines), DEADLINE_S), self.lines
