"""What handlers share: in the application of each log, and in that of the server."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from tlog.server.limit import Limits
from tlog.server.log import ServedLog

LOG = web.AppKey("LOG", ServedLog)
"""The open log."""

PREFIX = web.AppKey("PREFIX", str)
"""Where the routes of the log begin: empty, or with a slash at its start and none at its end."""

LOGS = web.AppKey("LOGS", Mapping[str, ServedLog])
"""In the application of the server: every log by its prefix."""

LIMITS = web.AppKey("LIMITS", Limits)
"""In the application of the server: the limits of the process."""
