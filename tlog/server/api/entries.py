"""Adding and reading entries, and proofs (design: /add and /v1)."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING

from aiohttp import web

from tlog.fetch import CBOR, HAVE_HEADER, Answer
from tlog.server.api.keys import LOG
from tlog.server.api.static import IMMUTABLE
from tlog.strict import parse_decimal
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tlog.server.sequencer import Placed

JSON = "application/json"
TLOG_PROOF = "text/x.tlog.proof"
"""Media type of a .tlog-proof file, named like those of tlog-witness and tlog-mirror."""

MAX_BODY_SIZE = MAX_ENTRY_SIZE + 1
"""Where aiohttp stops reading a body; whether at this size or above it differs between its versions."""


async def post_add(request: web.Request) -> web.Response:
    """Append an entry and answer with its index alone."""
    placed = await _add(request)
    return _fresh(web.Response(body=b"%d" % placed.index, content_type="text/plain"))


async def post_entry(request: web.Request) -> web.Response:
    """Append an entry and answer with its proof."""
    media_type = _negotiate(request, JSON, CBOR, TLOG_PROOF)
    have = _have(request)
    placed = await _add(request)
    log = request.app[LOG]
    head = placed.head
    _, proof = await log.prove_inclusion(placed.index, head.size, placed.leaf_hash, head)
    consistency = None
    if 0 < have <= head.size:
        consistency = (have, tuple(await log.prove_consistency(have, head.size, head)))
    answer = Answer(placed.index, placed.leaf_hash, tuple(proof), head.note, consistency=consistency)
    return _fresh(_encode(answer, media_type, status=201))


async def get_entry(request: web.Request) -> web.Response:
    """Serve an entry with its proof to the newest head."""
    media_type = _negotiate(request, JSON, CBOR, TLOG_PROOF)
    index = _decimal(request, "index")
    entry, leaf, proof, head = await request.app[LOG].read_entry(index)
    return _fresh(_encode(Answer(index, leaf, tuple(proof), head.note, entry), media_type))


async def get_inclusion(request: web.Request) -> web.Response:
    """Serve an inclusion proof; it never changes."""
    index, size = _decimal(request, "index"), _decimal(request, "size")
    leaf, proof = await request.app[LOG].prove_inclusion(index, size)
    body = {"index": index, "size": size, "leafHash": leaf.hex(), "proof": _base64(proof)}
    return _json(body, headers={"Cache-Control": IMMUTABLE, "Access-Control-Allow-Origin": "*"})


async def get_consistency(request: web.Request) -> web.Response:
    """Serve a consistency proof; it never changes."""
    old_size, new_size = _decimal(request, "from"), _decimal(request, "to")
    proof = await request.app[LOG].prove_consistency(old_size, new_size)
    body = {"from": old_size, "to": new_size, "proof": _base64(proof)}
    return _json(body, headers={"Cache-Control": IMMUTABLE, "Access-Control-Allow-Origin": "*"})


def routes() -> list[web.RouteDef]:
    """Return the routes of this module."""
    return [
        web.post("/add", post_add),
        web.post("/v1/entries", post_entry),
        web.get("/v1/entries/{index}", get_entry),
        web.get("/v1/proofs/inclusion/{index}/{size}", get_inclusion),
        web.get("/v1/proofs/consistency/{from}/{to}", get_consistency),
    ]


async def _add(request: web.Request) -> Placed:
    """Append the body of a request."""
    log = request.app[LOG]
    log.check_admission()
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise web.HTTPUnsupportedMediaType  # what is received is what is stored, so nothing may be undone on the way
    entry = await request.read()
    if len(entry) > MAX_ENTRY_SIZE:
        raise web.HTTPRequestEntityTooLarge(MAX_ENTRY_SIZE)
    return await log.add(entry)


def _have(request: web.Request) -> int:
    """Return the size that the client trusts; 0 where it names none."""
    return parse_decimal(request.headers.get(HAVE_HEADER, "0").encode("utf-8", "replace"))


def _decimal(request: web.Request, name: str) -> int:
    return parse_decimal(request.match_info[name].encode("utf-8", "replace"))


def _negotiate(request: web.Request, *offered: str) -> str:
    """Return the first media type in Accept that is offered; the first offered where anything is accepted."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "*/*").split(",")]
    for media_type in accepted:
        if media_type in offered:
            return media_type
        if media_type in ("*/*", "application/*", ""):
            return offered[0]
    raise web.HTTPNotAcceptable


def _encode(answer: Answer, media_type: str, status: int = 200) -> web.Response:
    """Return an answer in a media type."""
    if media_type == CBOR:
        return web.Response(status=status, body=answer.format(), content_type=CBOR)
    if media_type == TLOG_PROOF:
        return web.Response(status=status, body=answer.tlog_proof().format(), content_type=TLOG_PROOF, charset="utf-8")
    return _json(_plain(answer), status=status)


def _plain(answer: Answer) -> dict[str, object]:
    """Return an answer in JSON's types: leaf hash in hex, other bytes in base64, the checkpoint as text."""
    body: dict[str, object] = {
        "index": answer.index,
        "leafHash": answer.leaf_hash.hex(),
        "proof": _base64(answer.proof),
        "checkpoint": answer.checkpoint.decode(),
    }
    if answer.entry is not None:
        body["entry"] = b64encode(answer.entry).decode()
    if answer.consistency is not None:
        body["consistency"] = {"from": answer.consistency[0], "proof": _base64(answer.consistency[1])}
    return body


def _base64(hashes: Iterable[bytes]) -> list[str]:
    return [b64encode(value).decode() for value in hashes]


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=json.dumps(body).encode(), content_type=JSON, headers=headers)


def _fresh(response: web.Response) -> web.Response:
    """Mark an answer that is true of this moment alone."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response
