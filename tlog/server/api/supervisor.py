"""What systemd is told: that the server is ready, is stopping, and still healthy (sd_notify(3)).

    READY=1       the socket listens, so units that need the log may start
    STOPPING=1    a signal came, and what is under way is being answered
    WATCHDOG=1    several times within WatchdogSec, while every log signs what it takes in time

A server that is not started by systemd has no NOTIFY_SOCKET and tells nobody.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BEATS = 3  # within WatchdogSec


class Supervisor:
    """The one that started this process, if it wants to know."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read who that is, and how often it wants to hear."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environment.get("WATCHDOG_USEC", "")
        self.beat_s = int(period) / 1e6 / _BEATS if is_meant and period.isascii() and period.isdigit() else 0.0

    def tell(self, *lines: str) -> None:
        """Send a state; a supervisor that does not listen is not waited for."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as way:
                way.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return  # the worst that follows is a restart

    async def beat(self, is_healthy: Callable[[], bool]) -> None:
        """Tell that the process is healthy while it is, until cancelled."""
        while self.beat_s:
            if is_healthy():
                self.tell("WATCHDOG=1")
            await asyncio.sleep(self.beat_s)
