"""What is written to standard error: one event a line, and never more than a disk can hold.

Whatever a client or a failing disk can bring about again and again is a warning or an error. Of each event, and each
kind of error in it, LINES are written a minute, and the next line of that event says in `left_out` how many were not;
what has no next line is told by `report`. What ends the log is critical, and always written; what is said of the normal
course of things is said once each time, and nobody can make it be said.

No text of a client is logged on purpose. Where some is part of an error all the same, it cannot end a line, move the
cursor of a terminal, or fill the disk: control characters are escaped, and long values cut.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, WrappedLogger

LINES = 10
"""Lines a minute of one event: enough to see what happens; of the longest lines it is 130 MB a day, of most 3 MB."""

WINDOW_S = 60.0

EVENTS = 256
"""Events and kinds of errors that are told apart; what is beyond shares one count."""

LONGEST = 2_000
"""Characters of a value; a traceback may have four times as many."""

_TRACEBACK = "exception"
_LIMITED = frozenset({"warning", "error"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

log = structlog.get_logger()


@dataclass(slots=True)
class _Window:
    """What was said of one event lately.

    Attributes:
        began: Seconds of the monotonic clock at its first line.
        written: Lines since then.
        left_out: Lines that were not written, and not told of yet.
    """

    began: float
    written: int = 0
    left_out: int = 0


class Journal:
    """Leaves out what is said too often; a processor of structlog, called by any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Begin with nothing said.

        Args:
            clock: Seconds that never go back.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str], _Window] = {}

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Return an event, or raise DropEvent where it is left out."""
        if method not in _LIMITED:
            return event
        key = str(event.get("event", "")), str(event.get("error", ""))
        with self._lock:
            left_out = self._count(key)
        if left_out:
            event["left_out"] = left_out
        return event

    def _count(self, key: tuple[str, str]) -> int:
        """Count a line, and return how many of its kind were left out before it."""
        now = self._clock()
        if key not in self._windows and len(self._windows) >= EVENTS:
            key = ("", "")
        window = self._windows.setdefault(key, _Window(now))
        if now - window.began >= WINDOW_S:
            window.began, window.written = now, 0
        if window.written >= LINES:
            window.left_out += 1
            raise structlog.DropEvent
        window.written += 1
        left_out, window.left_out = window.left_out, 0
        return left_out

    def take(self, age_s: float = 0.0) -> list[tuple[str, str, int]]:
        """Return event, kind of error and number of what was left out and never told, and forget it.

        Args:
            age_s: Seconds that must have passed since the first line of the minute.
        """
        with self._lock:
            now = self._clock()
            old = {key: one for key, one in self._windows.items() if now - one.began >= age_s}
            told = [(*key, one.left_out) for key, one in old.items() if one.left_out]
            for key in old:
                del self._windows[key]
        return told

    def tell(self, age_s: float = 0.0) -> None:
        """Write how much was left out of what has not been said again."""
        for name, error, number in self.take(age_s):
            log.info("journal.left_out", of=name, error=error, lines=number)

    async def report(self) -> None:
        """Tell each minute what was left out, until cancelled; then tell the rest."""
        try:
            while True:
                await asyncio.sleep(WINDOW_S)
                self.tell(WINDOW_S)
        finally:
            self.tell()


def clean(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape what could end a line or command a terminal, and cut what is long; a traceback keeps its lines."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _clean_traceback(value) if name == _TRACEBACK else _clean(value, LONGEST)
    return event


def _clean_traceback(text: str) -> str:
    return "\n".join(_clean(line, LONGEST) for line in text[-4 * LONGEST :].split("\n"))


def _clean(text: str, longest: int) -> str:
    cut = text if len(text) <= longest else text[:longest] + "…"
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), cut)


class _Bridge(logging.Handler):
    """Turns what libraries log into one event each: no traceback, and nothing that a client sent."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        log.warning("library.failed", library=record.name, error=kind.__name__ if kind else record.levelname)


def configure_logging() -> Journal:
    """Write one event a line to standard error: JSON, or in colour on a terminal."""
    journal, terminal = Journal(), sys.stderr.isatty()
    for name in ("aiohttp", "asyncio"):
        library = logging.getLogger(name)
        library.handlers, library.propagate = [_Bridge()], False
    structlog.configure(
        processors=[
            journal,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            clean,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    return journal
