"""What a supervisor asks: is the process alive, and does it take entries."""

from __future__ import annotations

from aiohttp import web

from tlog.server.api.keys import LOG
from tlog.server.errors import StoppedError


async def get_livez(_: web.Request) -> web.Response:
    """Answer while the event loop runs."""
    return web.Response(text="live\n", headers={"Cache-Control": "no-store"})


async def get_readyz(request: web.Request) -> web.Response:
    """Answer 200 while the log takes entries and signs them in time."""
    if not request.app[LOG].is_ready():
        raise StoppedError("not ready: the log is closing, or an admitted entry waits for its signature")
    return web.Response(text="ready\n", headers={"Cache-Control": "no-store"})


def routes() -> list[web.RouteDef]:
    """Return the routes of this module."""
    return [web.get("/livez", get_livez), web.get("/readyz", get_readyz)]
