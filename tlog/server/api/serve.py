"""The server process: application, listening, signals.

A graceful stop: readiness turns false, the socket closes, requests under way are answered, admitted entries are signed,
files are closed. A second signal ends the process at once. A failed commit ends it with exit code 4, unanswered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import structlog
from aiohttp import web

from tlog.server.api import entries, health, static
from tlog.server.api.keys import LOG
from tlog.server.api.problems import never_cache_errors, problems
from tlog.server.errors import Exit
from tlog.server.log import ServedLog, open_log

if TYPE_CHECKING:
    from tlog.server.config import Config

SHUTDOWN_S = 10.0
"""Seconds that requests under way have to finish; a commit takes milliseconds."""

KEEPALIVE_S = 60.0
"""Seconds that an idle connection is kept."""

log = structlog.get_logger()


def make_app(served: ServedLog) -> web.Application:
    """Return the application of an open log."""
    app = web.Application(middlewares=[problems], client_max_size=entries.MAX_BODY_SIZE)
    app[LOG] = served
    app.on_response_prepare.append(never_cache_errors)
    app.add_routes([*static.routes(), *entries.routes(), *health.routes()])
    return app


def make_runner(served: ServedLog) -> web.AppRunner:
    """Return the runner of an open log; bodies come as they were sent, so that an encoded one can be refused."""
    return web.AppRunner(
        make_app(served),
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )


async def serve(config: Config, host: str, port: int) -> None:
    """Serve a log until a signal asks to stop.

    Raises:
        StartRefusedError: The state on disk does not fit together.
        OSError: The address cannot be listened on.
    """
    configure_logging()
    stop = asyncio.Event()
    _handle_signals(stop)
    async with open_log(config, exit_stopped) as served:
        await _listen(served, host, port, stop)
    log.info("log.closed", size=served.head.size)


async def _listen(served: ServedLog, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve an open log until the event is set, then answer what is under way."""
    runner = make_runner(served)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        for address in runner.addresses:
            log.info("server.listening", host=address[0], port=address[1], size=served.head.size)
        await stop.wait()
        log.info("server.stopping")
        served.closing = True
    finally:
        await runner.cleanup()


def _handle_signals(stop: asyncio.Event) -> None:
    """Stop gracefully on the first signal, at once on the second."""

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def exit_stopped(error: BaseException) -> NoReturn:
    """End the process here and now: what is durable is only known after a restart."""
    log.critical("log.stopped", reason=str(error), error=type(error).__name__)
    sys.stderr.flush()
    os._exit(Exit.STOPPED)


class _Bridge(logging.Handler):
    """Turns what aiohttp logs into one event each: no traceback, and nothing that a client sent."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        log.warning("http.refused", error=kind.__name__ if kind else record.levelname)


def configure_logging() -> None:
    """Write one event a line to standard error: JSON, or in colour on a terminal."""
    terminal = sys.stderr.isatty()
    library = logging.getLogger("aiohttp")
    library.handlers, library.propagate = [_Bridge()], False
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
