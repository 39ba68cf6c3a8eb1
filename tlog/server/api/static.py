"""The static side: checkpoint, tiles and bundles (c2sp.org/tlog-tiles)."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta

from tlog.errors import FormatError, NotFoundError
from tlog.server.api.keys import LOG, PREFIX
from tlog.server.api.media import OCTETS, TEXT
from tlog.server.api.operation import IMMUTABLE, Parameter, operation
from tlog.server.api.problems import DAMAGED, NOT_FOUND
from tlog.tile import Bundle, Tile, parse_path

_NUMBER = {"type": "string", "pattern": "^[0-9]{3}$"}

TileLevel = Annotated[
    str, Parameter("path", "level", "A level of tiles, 0 to 63.", {"type": "integer", "minimum": 0, "maximum": 63}, str)
]
TileNumber = Annotated[
    str,
    Parameter(
        "path",
        "number",
        "The number of a tile, its last three digits; x and three more before each slash from 1,000 on: x001/234. "
        "Then .p and the width of a partial tile: 005.p/17.",
        _NUMBER,
        str,
    ),
]


@operation("GET", "/checkpoint", offers=(TEXT,))
async def get_checkpoint(request: web.Request) -> Annotated[bytes, Meta(description="A signed note.")]:
    """Read the newest signed checkpoint."""
    return request.app[LOG].head.note


@operation(
    "GET",
    "/tile/entries/{number}",
    pattern="/tile/entries/{number:.+}",
    offers=(OCTETS,),
    problems=(NOT_FOUND, DAMAGED),
    headers={"Content-Encoding": "gzip"},
    cache=IMMUTABLE,
)
async def get_bundle(request: web.Request, number: TileNumber) -> Annotated[bytes, Meta(description="A bundle.")]:
    """Read up to 256 entries: each its length in 16 bits, then its bytes."""
    address = _address(request)
    if not isinstance(address, Bundle):
        raise NotFoundError(f"no bundle {number}")
    return await request.app[LOG].tree.bundle(address)


@operation(
    "GET",
    "/tile/{level}/{number}",
    pattern="/tile/{level}/{number:.+}",
    offers=(OCTETS,),
    problems=(NOT_FOUND, DAMAGED),
    cache=IMMUTABLE,
)
async def get_tile(
    request: web.Request, level: TileLevel, number: TileNumber
) -> Annotated[bytes, Meta(description="A tile.")]:
    """Read up to 256 hashes of the tree, 32 bytes each."""
    address = _address(request)
    if not isinstance(address, Tile):
        raise NotFoundError(f"no tile {number} of level {level}")
    return await request.app[LOG].tree.tile(address)


OPERATIONS = (get_checkpoint, get_bundle, get_tile)


def _address(request: web.Request) -> Tile | Bundle:
    """Return what a path names, as it was sent: no other spelling of it is taken."""
    path = request.rel_url.raw_path.removeprefix(f"{request.app[PREFIX]}/")
    try:
        return parse_path(path)
    except FormatError as error:
        raise NotFoundError("no tile and no bundle has such a path") from error
