"""Large logs, made in this process by the real write path, in batches of the largest size."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.grow import raise_fatal
from tlog.errors import PushbackError
from tlog.server.config import read_config
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BATCH = 4096
_TRIES = 6000


def fill(data: Path, size: int, entry: Callable[[int], bytes]) -> None:
    """Let a log grow to a size; `entry` makes each new entry from its index, and all differ."""

    async def run() -> None:
        async with open_log(read_config(data / "treehead.toml"), raise_fatal) as log:
            for _ in range(_TRIES):
                start = log.head.size
                if start >= size:
                    return
                try:
                    await log.add_many([entry(index) for index in range(start, min(size, start + _BATCH))])
                except PushbackError:
                    await asyncio.sleep(0.05)  # the follower is behind
        raise AssertionError("the log takes nothing")

    asyncio.run(run())
