"""Proofs, and where an entry is (design: /v1/proofs and /v1/leaves)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from tlog.cbor import decode
from tlog.errors import FormatError, NotFoundError
from tlog.fetch import CBOR
from tlog.merkle import HASH_SIZE
from tlog.server.api.answer import (
    Consistency,
    ConsistencyProof,
    InclusionProof,
    LeafHash,
    Note,
    Place,
    Proof,
    Proofs,
    ProofsRequest,
    parse_index,
)
from tlog.server.api.entries import SIZE_SCHEMA, Have, Index, consistency_from
from tlog.server.api.keys import LOG
from tlog.server.api.media import JSON
from tlog.server.api.operation import IMMUTABLE, Body, Content, Parameter, operation
from tlog.server.api.problems import DAMAGED, ENCODING, MEDIA_TYPE, NOT_ACCEPTABLE, NOT_FOUND, TOO_LARGE
from tlog.server.limit import MAX_PROOFS_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tlog.server.storage import SignedHead

_LEAF = re.compile(f"[0-9a-f]{{{2 * HASH_SIZE}}}")


def _parse_leaf(text: str) -> bytes:
    if not _LEAF.fullmatch(text):
        raise FormatError("not a leaf hash")
    return bytes.fromhex(text)


def _parse_json(data: bytes) -> ProofsRequest:
    try:
        return msgspec.json.decode(data, type=ProofsRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"a list of indexes: {error}") from error


def _parse_cbor(data: bytes) -> ProofsRequest:
    try:
        return msgspec.convert(decode(data), ProofsRequest)
    except msgspec.ValidationError as error:
        raise FormatError(f"a list of indexes: {error}") from error


PARSERS: Mapping[str, Callable[[bytes], ProofsRequest]] = {JSON: _parse_json, CBOR: _parse_cbor}
"""Reads a list of indexes by its media type, or raises FormatError."""


def _size(name: str, description: str) -> Parameter:
    return Parameter("path", name, description, SIZE_SCHEMA, parse_index)


Size = Annotated[int, _size("size", "The size of a tree, in decimal without sign or leading zero.")]
OldSize = Annotated[int, _size("from", "The size of the older tree, in decimal without sign or leading zero.")]
NewSize = Annotated[int, _size("to", "The size of the newer tree, in decimal without sign or leading zero.")]
LeafInPath = Annotated[
    bytes,
    Parameter(
        "path",
        "leafHash",
        f"A leaf hash, {2 * HASH_SIZE} lowercase hex digits.",
        {"type": "string", "pattern": f"^{_LEAF.pattern}$"},
        _parse_leaf,
    ),
]
ProofsBody = Annotated[
    ProofsRequest,
    Body(
        what="a list of indexes",
        content={
            JSON: Content(ProofsRequest, lambda data, _: _parse_json(data)),
            CBOR: Content(ProofsRequest, lambda data, _: _parse_cbor(data)),
        },
        limit=lambda _: MAX_PROOFS_BYTES,
    ),
]

_READ_PROBLEMS = (NOT_FOUND, NOT_ACCEPTABLE, DAMAGED)


@operation(
    "GET",
    "/v1/proofs/inclusion/{index}/{size}",
    offers=(JSON, CBOR),
    problems=_READ_PROBLEMS,
    cache=IMMUTABLE,
)
async def get_inclusion(request: web.Request, index: Index, size: Size) -> InclusionProof:
    """Read an inclusion proof in the tree of any signed size; it never changes."""
    leaf, proof = await request.app[LOG].prove_inclusion(index, size)
    return InclusionProof(index=index, size=size, leaf_hash=LeafHash(leaf), proof=proof)


@operation(
    "GET",
    "/v1/proofs/consistency/{from}/{to}",
    offers=(JSON, CBOR),
    problems=_READ_PROBLEMS,
    cache=IMMUTABLE,
)
async def get_consistency(request: web.Request, old_size: OldSize, new_size: NewSize) -> ConsistencyProof:
    """Read a consistency proof between the trees of any two signed sizes; it never changes."""
    proof = await request.app[LOG].prove_consistency(old_size, new_size)
    return ConsistencyProof(old_size=old_size, new_size=new_size, proof=proof)


@operation(
    "POST",
    "/v1/proofs",
    offers=(JSON, CBOR),
    problems=(*_READ_PROBLEMS, TOO_LARGE, ENCODING, MEDIA_TYPE),
)
async def post_proofs(request: web.Request, have: Have, wanted: ProofsBody) -> Proofs:
    """Read the inclusion proofs of many entries to the newest checkpoint."""
    log = request.app[LOG]
    head = log.head
    missing = next((index for index in wanted.indexes if index >= head.size), None)
    if missing is not None:
        raise NotFoundError(f"the newest tree has {head.size} entries, so none at index {missing}")
    found = await log.prove_many(wanted.indexes, head)
    return proofs_answer(wanted.indexes, found, head, await consistency_from(log, have, head))


def proofs_answer(
    indexes: Sequence[int],
    found: Sequence[tuple[bytes, list[bytes]]],
    head: SignedHead,
    consistency: Consistency | UnsetType = UNSET,
) -> Proofs:
    """Return the answer with the leaf hash and the proof of each index."""
    proofs = [
        Proof(index=index, leaf_hash=LeafHash(leaf), proof=proof)
        for index, (leaf, proof) in zip(indexes, found, strict=True)
    ]
    return Proofs(proofs=proofs, checkpoint=Note(head.note), consistency=consistency)


@operation("GET", "/v1/leaves/{leafHash}", offers=(JSON, CBOR), problems=_READ_PROBLEMS, cache=IMMUTABLE)
async def get_leaf(request: web.Request, leaf_hash: LeafInPath) -> Place:
    """Find an entry by its leaf hash; the first index that has it never changes."""
    return Place(index=await request.app[LOG].find(leaf_hash), leaf_hash=LeafHash(leaf_hash))


OPERATIONS = (get_inclusion, get_consistency, post_proofs, get_leaf)
