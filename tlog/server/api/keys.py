"""What handlers share."""

from __future__ import annotations

from aiohttp import web

from tlog.server.log import ServedLog

LOG = web.AppKey("LOG", ServedLog)
"""The open log."""
