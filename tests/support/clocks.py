"""A machine's clocks, moved by a test."""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
YEAR = 8_766 * HOUR


@dataclass(slots=True)
class Clocks:
    """Two clocks, in milliseconds.

    Attributes:
        steady: The one that nobody sets.
        wall: The one that says what time it is.
        is_frozen: Whether the wall clock stands still.
    """

    steady: int
    wall: int
    is_frozen: bool = False

    def pass_by(self, ms: int) -> None:
        """Let time pass."""
        self.steady += ms
        if not self.is_frozen:
            self.wall += ms

    def steady_ms(self) -> int:
        return self.steady

    def wall_ms(self) -> int:
        return self.wall
