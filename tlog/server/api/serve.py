"""The server process: application, listening, signals.

A graceful stop: readiness turns false, the socket closes, requests under way are answered, admitted entries are signed,
files are closed. The exit code is 5 where a scrub found damage meanwhile. A second signal ends the process at once. A
signal while the logs are still being opened ends it in a moment: nothing has been promised yet. A failed commit ends it
with exit code 4, unanswered.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import structlog
from aiohttp import web
from msgspec.structs import replace

from tlog.server.api import metrics
from tlog.server.api.bodies import BODIES, Bodies
from tlog.server.api.hot import HotConnection
from tlog.server.api.journal import configure_logging
from tlog.server.api.keys import LIMITS, LOG, LOGS, PREFIX
from tlog.server.api.lane import Lane
from tlog.server.api.openapi import OF_A_LOG, OF_THE_SERVER
from tlog.server.api.operation import finish, routes
from tlog.server.api.problems import PROBLEMS, problems
from tlog.server.api.protocol import Runner
from tlog.server.api.rate import RATES, Rates, settle
from tlog.server.api.stream import add_feed
from tlog.server.api.supervisor import Supervisor
from tlog.server.api.traffic import TRAFFIC, Traffic, count
from tlog.server.ballast import BALLAST_NAME, keep_ballast
from tlog.server.errors import Exit, StartRefusedError
from tlog.server.log import ServedLog, open_log
from tlog.server.space import is_full

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tlog.server.config import Config, Http, ServerConfig
    from tlog.server.limit import Limits

SHUTDOWN_S = 10.0
"""Seconds that requests under way have to finish; a commit takes milliseconds."""

GIVE_UP_S = 2.0
"""Seconds that opening a log may take to stop once a signal asks it to."""

BACKLOG = 1024
"""Connections that the operating system keeps until they are accepted."""

SPARE_FILES = 256
"""Descriptors for everything that is not a connection: databases, the listening sockets, scrapes of /proc."""

log = structlog.get_logger()


def make_app(logs: Mapping[str, ServedLog], limits: Limits) -> web.Application:
    """Return the application of open logs, by the prefix of their routes: "" alone, or one of its own for each."""
    app = web.Application(middlewares=[problems])
    app[LOGS], app[LIMITS], app[BODIES] = logs, limits, Bodies(limits.body_bytes)
    app.on_response_prepare.append(finish)
    app.add_routes(routes(OF_THE_SERVER))
    for prefix, served in logs.items():
        part = web.Application() if prefix else app
        part[LOG], part[PREFIX] = served, prefix
        add_feed(part)
        part.add_routes(routes(OF_A_LOG))
        if prefix:
            app.add_subapp(prefix, part)
    return app


def make_runner(logs: Mapping[str, ServedLog], limits: Limits, *, hot_lane: bool = True) -> web.AppRunner:
    """Return what runs the application of open logs, with everything that is counted and limited by the process."""
    app, traffic = make_app(logs, limits), Traffic(problems=Counter({problem.name: 0 for problem in PROBLEMS}))
    app[TRAFFIC] = traffic
    app[RATES] = Rates(limits.rate, limits.burst)
    app[metrics.REGISTRY] = metrics.make_registry(logs, traffic)
    app.middlewares.insert(0, count)
    app.on_response_prepare.append(settle)
    if not hot_lane:
        return Runner(app, limits, traffic, SHUTDOWN_S)
    connect = partial(HotConnection, lane=Lane(logs, traffic, app[RATES], app[BODIES]), bodies=app[BODIES])
    return Runner(app, limits, traffic, SHUTDOWN_S, connect)


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
            logs = {
                prefix: await stack.enter_async_context(_opened(one, read_only=read_only))
                for prefix, one in config.logs.items()
            }
            stop.began()
            await _keep_ballasts(config, logs)
            reports = asyncio.create_task(journal.report())
            stack.callback(reports.cancel)
            await _listen(logs, config.limits, replace(config.http, host=host, port=port), stop)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("server.stopped", reason="it had not started yet")
        return Exit.DONE
    for served in logs.values():
        log.info("log.closed", origin=served.origin, size=served.head.size)
    return Exit.DAMAGED if any(served.damage for served in logs.values()) else Exit.DONE


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


async def _listen(logs: Mapping[str, ServedLog], limits: Limits, http: Http, stop: Stop) -> None:
    """Serve open logs until a signal, then answer what is under way."""
    raise_file_limit(limits.connections + SPARE_FILES)
    supervisor = Supervisor()
    runner = make_runner(logs, limits, hot_lane=http.hot_lane)
    await runner.setup()
    beats = asyncio.create_task(supervisor.beat(lambda: all(served.is_healthy() for served in logs.values())))
    try:
        await _bind(runner, http.host, http.port)
        for prefix, served in logs.items():
            served.announce(_url(runner.addresses[0]) + prefix)
        for found in runner.addresses:
            log.info("server.listening", host=found[0], port=found[1], **_sizes(logs))
        supervisor.tell("READY=1")
        await stop.wait()
        log.info("server.stopping")
        supervisor.tell("STOPPING=1")
        for served in logs.values():
            served.closing = True
    finally:
        beats.cancel()
        await runner.cleanup()


def _sizes(logs: Mapping[str, ServedLog]) -> dict[str, object]:
    """Return what is said of the logs when they are served: the size of one, or of each of several by its prefix."""
    if set(logs) == {""}:
        return {"size": logs[""].head.size}
    return {"sizes": {prefix: served.head.size for prefix, served in logs.items()}}


def _url(address: Sequence[object]) -> str:
    """Return where an address is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address[0]), str(address[0]))  # noqa: S104 — compared, not bound
    return f"http://[{host}]:{address[1]}" if ":" in host else f"http://{host}:{address[1]}"


async def _bind(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(f"cannot listen on {host} port {port}: {why}; choose others with --host and --port") from error


def raise_file_limit(wanted: int) -> None:
    """Allow this process as many descriptors as it may need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning("server.few_files", allowed=hard, wanted=wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except OSError:  # where the process may change no limits
            log.warning("server.few_files", allowed=soft, wanted=wanted)


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
