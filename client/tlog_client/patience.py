"""How long to wait before something that failed is tried again.

Delays double from half a second to half a minute, and are drawn from the upper half of that, so that clients that were
cut off together do not come back together. What the log asks for with Retry-After goes first. Failures count as one
outage until there has been none for a minute.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, PushbackError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_DELAY = 0.5
"""Seconds after the first failure, at most."""

MAX_DELAY = 30.0
"""Seconds between two tries, at most, where the log asks for no more."""

MAX_ASKED = 300.0
"""Seconds that are waited, at most, because the log asks for them."""

CALM = 60.0
"""Seconds without a failure after which the next one begins a new outage."""

MAX_TRIES = 8
"""How often what the log answered with something else than a failure of its own is tried."""


class Patience:
    """The failures of one piece of work.

    Attributes:
        failures: Failures of this outage so far. # owned by the one who works
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a failure, with a clock in seconds that only grows."""
        self.failures = 0
        self._clock = clock
        self._calm_at = float("-inf")

    def delay(self, error: CouldNotCheckError) -> float:
        """Count a failure, and return the seconds to wait after it."""
        now = self._clock()
        if now >= self._calm_at:
            self.failures = 0
        least, most = 0.0, min(MAX_DELAY, FIRST_DELAY * 2 ** min(self.failures, 16))
        if isinstance(error, PushbackError) and error.retry_after is not None:
            least, most = min(MAX_ASKED, error.retry_after), FIRST_DELAY
        delay = least + random.uniform(most / 2, most)  # noqa: S311  # spreads clients out, and is no secret
        self.failures += 1
        self._calm_at = now + delay + CALM
        return delay

    def lasts(self, error: CouldNotCheckError) -> bool:
        """Say whether it makes sense to try again: a log that is away may come back, one that refuses will refuse."""
        if isinstance(error, RefusedError):
            return False
        return isinstance(error, (UnavailableError, PushbackError)) or self.failures < MAX_TRIES
