"""Server-sent events, as far as a log of ours sends them (HTML Living Standard §9.2), and no longer than is of use.

    event: checkpoint LF            the kind; "message" where it is absent
    id: 42 LF                       ignored, as every other field is
    data: a line LF                 any number of them, joined by line feeds
    LF                              the event is complete

Lines end in LF or CRLF; a lone CR, which the standard takes too, is refused. A line that begins with a colon is a
comment. What is not complete when the stream ends is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.note import MAX_NOTE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_SIZE = 1 << 16
"""Longest line in bytes."""

MAX_EVENT_SIZE = MAX_NOTE_SIZE
"""Most bytes of data in one event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        kind: Its type.
        data: Its data.
    """

    kind: bytes
    data: bytes


class EventReader:
    """Takes a stream in chunks of any size, and keeps one event of it at most."""

    def __init__(self) -> None:
        """Begin at the beginning of a stream."""
        self._rest = b""
        self._kind = b""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that a chunk completes; they must be taken before the next chunk.

        Raises:
            FormatError: A line or an event is too long, or holds a lone CR.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if (event := self._take(line.removesuffix(b"\r"))) is not None:
                yield event
        if len(self._rest) > MAX_LINE_SIZE:
            raise FormatError(f"a line of more than {MAX_LINE_SIZE} bytes in a stream of events")

    def _take(self, line: bytes) -> Event | None:
        """Take one line, and return the event that it completes."""
        if len(line) > MAX_LINE_SIZE or b"\r" in line:
            raise FormatError("a line in a stream of events is too long, or holds a lone CR")
        if not line:
            return self._complete()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value
        elif name == b"data":
            self._lines.append(value)
            self._size += len(value) + 1
            if self._size > MAX_EVENT_SIZE:
                raise FormatError(f"an event of more than {MAX_EVENT_SIZE} bytes")
        return None

    def _complete(self) -> Event | None:
        event = Event(self._kind or b"message", b"\n".join(self._lines)) if self._lines else None
        self._kind, self._lines, self._size = b"", [], 0
        return event
