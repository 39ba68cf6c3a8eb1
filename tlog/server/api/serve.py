"""The application of open logs, and where it listens."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from tlog.server.api.bodies import BODIES, Bodies
from tlog.server.api.hot import HotConnection
from tlog.server.api.keys import LIMITS, LOG, LOGS, PREFIX
from tlog.server.api.lane import Lane
from tlog.server.api.metrics import METRICS, Metrics
from tlog.server.api.openapi import OF_A_LOG, OF_THE_SERVER
from tlog.server.api.operation import finish, routes
from tlog.server.api.problems import PROBLEMS, problems
from tlog.server.api.protocol import Runner
from tlog.server.api.rate import RATES, Rates, settle
from tlog.server.api.stream import add_feed
from tlog.server.api.supervisor import Supervisor
from tlog.server.api.traffic import TRAFFIC, Traffic, count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from tlog.server.config import Http
    from tlog.server.limit import Limits
    from tlog.server.log import ServedLog

SHUTDOWN_S = 10.0
"""Seconds that requests under way have to finish; a commit takes milliseconds."""

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
    app[METRICS] = Metrics(logs, traffic)
    app.middlewares.insert(0, count)
    app.on_response_prepare.append(settle)
    if not hot_lane:
        return Runner(app, limits, traffic, SHUTDOWN_S)
    connect = partial(HotConnection, lane=Lane(logs, traffic, app[RATES], app[BODIES]), bodies=app[BODIES])
    return Runner(app, limits, traffic, SHUTDOWN_S, connect)


async def listen(
    logs: Mapping[str, ServedLog], limits: Limits, http: Http, stop: Callable[[], Awaitable[None]]
) -> None:
    """Serve open logs until `stop` ends, then answer what is under way.

    Raises:
        OSError: The address cannot be listened on.
    """
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
        await stop()
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
