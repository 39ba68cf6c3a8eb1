"""What a supervisor asks: is the process alive, and does it take entries."""

from __future__ import annotations

from aiohttp import web

from tlog.server.api.keys import LOGS
from tlog.server.api.media import TEXT
from tlog.server.api.operation import operation
from tlog.server.api.problems import STOPPING
from tlog.server.errors import StoppedError


@operation("GET", "/livez", offers=(TEXT,), is_public=False)
async def get_livez(_: web.Request) -> str:
    """Tell that the event loop runs."""
    return "live\n"


@operation("GET", "/readyz", offers=(TEXT,), problems=(STOPPING,), is_public=False)
async def get_readyz(request: web.Request) -> str:
    """Tell that every log signs in time what it takes."""
    why = [f"{log.origin}: {reason}" for log in request.app[LOGS].values() if (reason := log.why_not_ready())]
    if why:
        raise StoppedError("; ".join(why))
    return "ready\n"


OPERATIONS = (get_livez, get_readyz)
