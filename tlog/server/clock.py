"""The clock: which times a log believes, and stamps its segments with.

    wall clock      what the system says; a person, a hypervisor or a time server may set it
    steady clock    the wall clock when the process started, and what has passed since; nobody sets it

A reading of the wall clock is believed where

  - it is not more than a second behind the newest segment; what is behind by less is stamped with that segment's time,
  - it is within ten minutes of what the steady clock makes of the times that were believed before.

While it is not, nothing is signed. No setting turns that off: a wrong time, once signed, cannot be taken back, and one
in the future keeps the log from signing until then. The two clocks drift apart by some parts in a million, so what is
expected follows the wall clock, by a thousandth of the time that passes, and only while that is believed: a log never
stops because it has run for months, and many small steps do not add up to a large one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tlog.errors import PushbackError
from tlog.server.errors import StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

BACK_MS = 1_000
"""Milliseconds that the wall clock may be behind the newest segment: a time server corrects that much at once."""

JUMP_MS = 600_000
"""Milliseconds between the wall clock and the expected time from which it is not believed: corrections are smaller."""

DRIFT = 1_000
"""Time that must pass for what is expected to follow the wall clock by one of it: a poor crystal drifts by a tenth."""

RETRY_AFTER_S = 10
"""Seconds that a submitter is asked to wait: somebody has to set a clock."""

log = structlog.get_logger()


class ClockError(PushbackError):
    """The clock is not believed, so nothing is signed until it is right again."""


class Clock:
    """What time it is, in milliseconds since 1970. Owned by the event loop.

    Attributes:
        steady_ms: Reads the steady clock.
        stopped: Why the wall clock was not believed when it was read last; empty where it was.
        stops: How often it ceased to be believed.
    """

    def __init__(self, wall_ms: Callable[[], int], steady_ms: Callable[[], int]) -> None:
        """Believe the wall clock as it is now.

        Args:
            wall_ms: Reads the wall clock.
            steady_ms: Reads the steady clock.
        """
        self.steady_ms = steady_ms
        self.stopped = ""
        self.stops = 0
        self._wall_ms = wall_ms
        self._read_ms = steady_ms()
        self._believed: tuple[int, int, int] | None = None  # what was read last, where it was believed
        self._ahead_us = (wall_ms() - self._read_ms) * 1000  # of the wall clock before the steady one, as believed

    def read(self, last_ms: int) -> int:
        """Return what the wall clock says, where it is believed.

        Args:
            last_ms: The time of the newest segment.

        Raises:
            ClockError: It is not.
        """
        wall_ms, steady_ms = self._wall_ms(), self.steady_ms()
        read = (wall_ms, steady_ms, last_ms)
        if read == self._believed:
            return wall_ms
        passed_ms, self._read_ms = max(0, steady_ms - self._read_ms), steady_ms
        off_us = (wall_ms - steady_ms) * 1000 - self._ahead_us
        most_us = passed_ms * 1000 // DRIFT
        drift_us = max(-most_us, min(most_us, off_us))
        off_ms = (off_us - drift_us) // 1000
        stopped = ""
        if wall_ms < last_ms - BACK_MS:
            stopped = (
                f"the clock says {utc(wall_ms)}, before the newest entry, which is of {utc(last_ms)}: "
                "nothing is signed until it is right"
            )
        elif abs(off_ms) > JUMP_MS:
            stopped = (
                f"the clock says {utc(wall_ms)}, and {utc(wall_ms - off_ms)} was to be expected: nothing is signed "
                "until it is right; if it is right now, restart the log"
            )
        self._note(stopped)
        if stopped:
            self._believed = None
            raise ClockError(stopped, retry_after=RETRY_AFTER_S)
        self._believed = read
        self._ahead_us += drift_us
        return wall_ms

    def _note(self, stopped: str) -> None:
        """Count and log it where belief ends or begins."""
        if stopped and not self.stopped:
            self.stops += 1
            log.error("clock.stopped", reason=stopped)
        elif self.stopped and not stopped:
            log.warning("clock.resumed")
        self.stopped = stopped


def check_start(now_ms: int, last_ms: int) -> None:
    """Refuse to begin at a time before the newest segment.

    Raises:
        StartRefusedError: The wall clock is more than a second behind it.
    """
    if now_ms < last_ms - BACK_MS:
        raise StartRefusedError(
            f"the clock says {utc(now_ms)}, but the newest entry of the log is of {utc(last_ms)}: set the clock of "
            "this machine. Until it is right, the log can be served with: tlogd serve --read-only"
        )


def wall_clock_ms() -> int:
    """Return milliseconds since 1970, as the system says."""
    return time.time_ns() // 1_000_000


def steady(start_ms: int) -> Callable[[], int]:
    """Return a clock that begins at a time and never jumps; it counts while the machine sleeps, where that can be."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux

    read_ns = time.monotonic_ns if boot_time is None else partial(time.clock_gettime_ns, boot_time)
    began = read_ns()
    return lambda: start_ms + (read_ns() - began) // 1_000_000


def utc(time_ms: int) -> str:
    """Return a time as people read it: to the second, in UTC."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"{time_ms} ms since 1970"
