"""The server process: opening logs, serving them, signals.

What answers requests takes longer to import than logs take to open, so both happen at once.

A graceful stop: readiness turns false, the socket closes, requests under way are answered, admitted entries are signed,
files are closed. The exit code is 5 where a scrub found damage meanwhile. A second signal ends the process at once. A
signal while the logs are still being opened ends it in a moment: nothing has been promised yet. A failed commit ends it
with exit code 4, unanswered.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import structlog
from msgspec.structs import replace

from tlog.server.api.journal import configure_logging
from tlog.server.ballast import BALLAST_NAME, keep_ballast
from tlog.server.errors import Exit, StartRefusedError
from tlog.server.log import open_log
from tlog.server.space import is_full

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tlog.server.config import Config, Http, ServerConfig
    from tlog.server.limit import Limits
    from tlog.server.log import ServedLog

    Listen = Callable[[Mapping[str, ServedLog], Limits, Http, Callable[[], Awaitable[None]]], Awaitable[None]]

GIVE_UP_S = 2.0
"""Seconds that opening a log may take to stop once a signal asks it to."""

GARBAGE = (50_000, 20, 20)
"""Objects that may pile up before the collector looks, some ten megabytes; and how often at older ones, too."""

SWITCH_S = 0.0005
"""Seconds that a busy thread may keep the interpreter from another: a tenth of what is usual, for 15 % more adds."""

log = structlog.get_logger()


async def serve(config: ServerConfig, host: str, port: int, *, read_only: bool = False) -> Exit:
    """Serve logs until a signal asks to stop, and return how the process is to end.

    Raises:
        StartRefusedError: The state on disk of one does not fit together.
        OSError: The address cannot be listened on.
    """
    journal = configure_logging()
    stop = Stop()
    try:
        async with AsyncExitStack() as stack:
            loading = asyncio.create_task(asyncio.to_thread(_load))
            stack.callback(loading.cancel)
            logs = {
                prefix: await stack.enter_async_context(_opened(one, read_only=read_only))
                for prefix, one in config.logs.items()
            }
            stop.began()
            await _keep_ballasts(config, logs)
            reports = asyncio.create_task(journal.report())
            stack.callback(reports.cancel)
            listen = await loading
            _settle_in()
            await listen(logs, config.limits, replace(config.http, host=host, port=port), stop.wait)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("server.stopped", reason="it had not started yet")
        return Exit.DONE
    for served in logs.values():
        log.info("log.closed", origin=served.origin, size=served.head.size)
    return Exit.DAMAGED if any(served.damage for served in logs.values()) else Exit.DONE


def _load() -> Listen:
    from tlog.server.api.serve import listen  # noqa: PLC0415 — as the docstring of the module says

    return listen


def _settle_in() -> None:
    """Set the interpreter up for a long run under load.

    The garbage collector looks at what comes from now on, and seldom: a look at everything takes 50 ms. What a request
    leaves behind is freed without it, but for some hundred objects of aiohttp's. And a commit that comes back from the
    disk has the interpreter sooner.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    sys.setswitchinterval(SWITCH_S)


@asynccontextmanager
async def _opened(config: Config, *, read_only: bool) -> AsyncIterator[ServedLog]:
    """Open a log; where that is refused on a full disk, say that it is one."""
    async with AsyncExitStack() as stack:
        try:
            served = await stack.enter_async_context(open_log(config, exit_stopped, read_only=read_only))
        except (StartRefusedError, OSError) as error:
            if not is_full(config.path("")):
                raise
            raise StartRefusedError(
                f"{error}; its disk is full: free some space, in the worst case by removing {config.path(BALLAST_NAME)}"
            ) from error
        yield served


async def _keep_ballasts(config: ServerConfig, logs: Mapping[str, ServedLog]) -> None:
    """Give each log that is written to its ballast; on a thread, because a slow file system may have to write it."""
    for prefix, served in logs.items():
        if not served.is_read_only:
            one = config.logs[prefix]
            await asyncio.to_thread(keep_ballast, one.path(""), one.limits.ballast_bytes, one.limits.free_bytes)


class Stop:
    """What SIGTERM and SIGINT mean: at first everything, later a graceful end. Owned by the event loop."""

    def __init__(self) -> None:
        """Take the signals; what runs now is cancelled by them until `began`."""
        self._event = asyncio.Event()
        self._starting = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def began(self) -> None:
        """Let signals stop gracefully from now on."""
        self._starting = None

    def is_set(self) -> bool:
        """Return whether a signal came."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait for a signal."""
        await self._event.wait()

    def _on_signal(self) -> None:
        if self.is_set():
            os._exit(Exit.FAILED)
        self._event.set()
        if self._starting is not None:
            self._starting.cancel()
            _exit_after(GIVE_UP_S)


def _exit_after(seconds: float) -> None:
    """End the process even if a thread does not let go; a crash is no worse, and every start copes with that."""
    timer = threading.Timer(seconds, os._exit, [Exit.DONE])
    timer.daemon = True
    timer.start()


def exit_stopped(error: BaseException) -> NoReturn:
    """End the process here and now: what is durable is only known after a restart."""
    log.critical("log.stopped", reason=str(error), error=type(error).__name__)
    sys.stderr.flush()
    os._exit(Exit.STOPPED)
