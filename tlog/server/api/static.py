"""The static side: checkpoint, tiles and bundles (c2sp.org/tlog-tiles)."""

from __future__ import annotations

from aiohttp import web

from tlog.errors import FormatError, NotFoundError
from tlog.server.api.keys import LOG
from tlog.tile import Tile, parse_path

IMMUTABLE = "public, max-age=31536000, immutable"
"""Cache-Control of what never changes: a year, the longest that caches honour."""


async def get_checkpoint(request: web.Request) -> web.Response:
    """Serve the newest head."""
    return web.Response(
        body=request.app[LOG].head.note,
        content_type="text/plain",
        charset="utf-8",
        headers={"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"},
    )


async def get_tile(request: web.Request) -> web.Response:
    """Serve a tile or a bundle of any width that a signed tree has."""
    try:
        address = parse_path(request.raw_path.removeprefix("/").partition("?")[0])
    except FormatError as error:
        raise NotFoundError(str(error)) from error
    tree = request.app[LOG].tree
    headers = {"Cache-Control": IMMUTABLE, "Access-Control-Allow-Origin": "*"}
    if isinstance(address, Tile):
        body = await tree.tile(address)
    else:
        body = await tree.bundle(address)
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, content_type="application/octet-stream", headers=headers)


def routes() -> list[web.RouteDef]:
    """Return the routes of this module."""
    return [web.get("/checkpoint", get_checkpoint), web.get("/tile/{path:.+}", get_tile)]
