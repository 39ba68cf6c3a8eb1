"""The memory that bodies take: of all requests that are being received or answered, together.

Each body is bounded by itself, and connections are, but not one by the other: a few thousand of the largest would be
more than a machine has. Bytes count when they have arrived; to announce a large body costs and reserves nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from tlog.errors import PushbackError

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRY_AFTER_S = 1
"""Seconds that a client is asked to wait: bodies are answered within a commit or two."""


class Bodies:
    """What all bodies take. Owned by the event loop.

    Attributes:
        held: Their bytes.
    """

    def __init__(self, most: int) -> None:
        """Begin with none, and hold so many bytes at most."""
        self.held = 0
        self._most = most

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Count a body until its request is answered."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.held -= hold.size

    def take(self, size: int) -> None:
        """Count more bytes.

        Raises:
            PushbackError: That would be too many.
        """
        self.check(size)
        self.held += size

    def check(self, size: int) -> None:
        """Refuse more bytes where that would be too many.

        Raises:
            PushbackError: It would.
        """
        if self.held + size > self._most:
            raise PushbackError("too many large requests at a time", retry_after=RETRY_AFTER_S)


class Hold:
    """One body.

    Attributes:
        size: Bytes that have arrived.
    """

    __slots__ = ("_bodies", "size")

    def __init__(self, bodies: Bodies) -> None:
        """Begin empty."""
        self.size = 0
        self._bodies = bodies

    def grow(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            PushbackError: There are too many of all requests.
        """
        self._bodies.take(size)
        self.size += size


BODIES = web.AppKey("BODIES", Bodies)
"""In the application of the server: what all bodies take."""
