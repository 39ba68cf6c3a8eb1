"""GET /metrics: what is counted, as Prometheus reads it; `tlog.server.api.families` has every name.

The client library of Prometheus is imported when it is first asked for: a start does not wait for that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from tlog.server.api.media import TEXT
from tlog.server.api.operation import operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlog.server.api.families import Exposition
    from tlog.server.api.traffic import Traffic
    from tlog.server.log import ServedLog


class Metrics:
    """The metrics of a process. Owned by the event loop."""

    def __init__(self, logs: Mapping[str, ServedLog], traffic: Traffic) -> None:
        """Take the logs that it serves, and its counts."""
        self._logs = logs
        self._traffic = traffic
        self._exposition: Exposition | None = None

    async def write(self, accept: str) -> tuple[bytes, str]:
        """Return what is counted now, and its Content-Type, in the format that a header Accept asks for."""
        if self._exposition is None:
            self._exposition = await asyncio.to_thread(self._load)
        return self._exposition.write(accept)

    def _load(self) -> Exposition:
        from tlog.server.api.families import Exposition  # noqa: PLC0415 — as the docstring of the module says

        return Exposition(self._logs, self._traffic)


METRICS = web.AppKey("METRICS", Metrics)
"""The metrics of the process."""


@operation("GET", "/metrics", offers=(TEXT,), is_public=False)
async def get_metrics(request: web.Request) -> web.Response:
    """Read what is counted, as Prometheus does, in the format that it asks for."""
    body, content_type = await request.app[METRICS].write(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


OPERATIONS = (get_metrics,)
