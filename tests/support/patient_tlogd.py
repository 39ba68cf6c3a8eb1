"""`tlogd` that waits without end at one place, so that a test sees whether it waits there, and needs no clock.

python patient_tlogd.py PLACE serve --config …

PLACE    stop: a graceful end waits for connections for an hour; build: a start does not get beyond its first tiles
"""

from __future__ import annotations

import asyncio
import sys

from tlog.server.api import serve
from tlog.server.follower import Follower
from tlog.server.main import main


def wait(place: str) -> None:
    """Make it wait there."""
    if place == "stop":
        serve.SHUTDOWN_S = 3600.0
        return
    honest = Follower.catch_up

    async def catch_up(self: Follower) -> None:
        await honest(self)
        await asyncio.Event().wait()

    Follower.catch_up = catch_up  # type: ignore[method-assign]  # as said


if __name__ == "__main__":
    wait(sys.argv.pop(1))
    main()
