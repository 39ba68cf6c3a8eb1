"""Logs to measure: new ones, and large ones that are grown once by the write path itself, in batches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from benchmarks.load.entry import Source
from tlog.errors import PushbackError
from tlog.server.config import read_config
from tlog.server.log import open_log

if TYPE_CHECKING:
    from pathlib import Path

_BATCH = 4096
_PAUSE_S = 0.05
_PAUSES = 20_000
_GROWN = Source(0x67726F77, 0)


def grow(data: Path, size: int) -> None:
    """Let a log grow to a size.

    Raises:
        TimeoutError: It takes nothing for too long.
    """

    async def run() -> None:
        pauses = 0
        async with open_log(read_config(data / "treehead.toml"), _raise) as log:
            while (start := log.head.size) < size:
                numbers = range(start, min(size, start + _BATCH))
                try:
                    await log.add_many([_GROWN.entry(number) for number in numbers])
                except PushbackError:  # what is derived is behind
                    pauses += 1
                    if pauses > _PAUSES:
                        raise TimeoutError("the log takes nothing") from None
                    await asyncio.sleep(_PAUSE_S)

    asyncio.run(run())


def _raise(error: BaseException) -> NoReturn:
    """Stand for the end of the process."""
    raise error
