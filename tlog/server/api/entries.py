"""Adding and reading entries (design: /add and /v1/entries)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from tlog.fetch import CBOR, HAVE_HEADER, KEY_HEADER, MAX_BATCH_ENTRIES
from tlog.merkle import MAX_SIZE
from tlog.server.api.answer import (
    Added,
    BatchAdded,
    BatchResult,
    Consistency,
    Entry,
    LeafHash,
    Note,
    parse_index,
)
from tlog.server.api.batch import parse_batch
from tlog.server.api.keys import LOG
from tlog.server.api.media import JSON, OCTETS, TEXT, TLOG_PROOF
from tlog.server.api.operation import Body, Content, Parameter, Submitted, operation
from tlog.server.api.problems import (
    BUSY,
    DAMAGED,
    ENCODING,
    KEY_REUSED,
    MEDIA_TYPE,
    NO_SPACE,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    RATE,
    READ_ONLY,
    STOPPING,
    TOO_LARGE,
)
from tlog.server.api.rate import charge
from tlog.server.idempotency import MAX_KEY_SIZE, RequestKey, request_key
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from tlog.server.log import ServedLog
    from tlog.server.storage import SignedHead

SIZE_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_SIZE}

Index = Annotated[
    int,
    Parameter(
        "path", "index", "A zero-based index, in decimal without sign or leading zero.", SIZE_SCHEMA, parse_index
    ),
]
Have = Annotated[
    int | None,
    Parameter(
        "header",
        HAVE_HEADER,
        "The size of a tree that the client trusts, in decimal; the answer then proves consistency from it.",
        SIZE_SCHEMA,
        parse_index,
    ),
]
Key = Annotated[
    str | None,
    Parameter(
        "header",
        KEY_HEADER,
        "A name for this request: the same request under the same name is carried out once in 24 hours.",
        {"type": "string", "pattern": f"^[!-~]{{1,{MAX_KEY_SIZE}}}$"},
        str,
    ),
]
EntryBody = Annotated[
    bytes,
    Body(
        what="an entry",
        content={OCTETS: Content({"type": "string", "maxLength": MAX_ENTRY_SIZE}, lambda data, _: data)},
        limit=lambda _: MAX_ENTRY_SIZE,
        is_opaque=True,
        is_submission=True,
    ),
]
BatchBody = Annotated[
    tuple[bytes, list[bytes]],
    Body(
        what="a batch",
        content={
            CBOR: Content(
                {
                    "description": "One array of byte strings, in deterministic CBOR (RFC 8949 §4.2.1).",
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_BATCH_ENTRIES,
                    "items": {"type": "string", "description": "An entry, as a byte string."},
                },
                lambda data, limits: (data, parse_batch(data, limits.batch_entries)),
            )
        },
        limit=lambda limits: limits.batch_bytes,
        is_submission=True,
    ),
]

SUBMISSION_PROBLEMS = (READ_ONLY, TOO_LARGE, ENCODING, KEY_REUSED, RATE, BUSY, STOPPING, NO_SPACE)


@operation("POST", "/add", offers=(TEXT,), problems=SUBMISSION_PROBLEMS)
async def post_add(request: web.Request, key: Key, entry: EntryBody) -> Annotated[str, Meta(pattern="^[0-9]+$")]:
    """Append an entry and answer with its index alone.

    For tools that know no more of a log than this. The status is 200 for a new entry too.
    """
    placed = await request.app[LOG].add(entry, _request_key(key, "/add", entry))
    return str(placed.index)


@operation(
    "POST",
    "/v1/entries",
    offers=(JSON, CBOR, TLOG_PROOF),
    problems=(*SUBMISSION_PROBLEMS, NOT_ACCEPTABLE, DAMAGED),
)
async def post_entry(request: web.Request, key: Key, have: Have, entry: EntryBody) -> Submitted[Added]:
    """Append an entry.

    It is in the log for good once this is answered: durable, its index final, and contained in a signed checkpoint. The
    body is the entry, any bytes under any Content-Type. An entry that the log has already is answered with 200 and the
    first index.
    """
    log = request.app[LOG]
    placed = await log.add(entry, _request_key(key, "/v1/entries", entry))
    head = placed.head
    _, proof = await log.prove_inclusion(placed.index, head.size, placed.leaf_hash, head)
    added = Added(
        index=placed.index,
        leaf_hash=LeafHash(placed.leaf_hash),
        proof=proof,
        checkpoint=Note(head.note),
        consistency=await consistency_from(log, have, head),
    )
    return Submitted(added, placed.is_new)


@operation(
    "POST",
    "/v1/entries/batch",
    offers=(JSON, CBOR),
    problems=(*SUBMISSION_PROBLEMS, MEDIA_TYPE, NOT_ACCEPTABLE, DAMAGED),
)
async def post_batch(request: web.Request, key: Key, have: Have, batch: BatchBody) -> Submitted[BatchAdded]:
    """Append many entries, all in one commit.

    There is a result for each, in the order sent, and one proof for all. The status is 201 where at least one is new.
    """
    body, entries = batch
    charge(request, len(entries) - 1)
    log = request.app[LOG]
    placed = await log.add_many(entries, _request_key(key, "/v1/entries/batch", body))
    head = max((each.head for each in placed), key=lambda head: head.size)
    added = BatchAdded(
        results=[
            BatchResult(index=each.index, leaf_hash=LeafHash(each.leaf_hash), is_new=each.is_new) for each in placed
        ],
        proof=await log.prove_batch({each.index: each.leaf_hash for each in placed}, head),
        checkpoint=Note(head.note),
        consistency=await consistency_from(log, have, head),
    )
    return Submitted(added, any(each.is_new for each in placed))


@operation("GET", "/v1/entries/{index}", offers=(JSON, CBOR, TLOG_PROOF), problems=(NOT_FOUND, NOT_ACCEPTABLE, DAMAGED))
async def get_entry(request: web.Request, index: Index) -> Entry:
    """Read an entry with its proof to the newest checkpoint."""
    entry, leaf, proof, head = await request.app[LOG].read_entry(index)
    return Entry(index=index, leaf_hash=LeafHash(leaf), proof=proof, checkpoint=Note(head.note), entry=entry)


OPERATIONS = (post_add, post_entry, post_batch, get_entry)


async def consistency_from(log: ServedLog, have: int | None, head: SignedHead) -> Consistency | UnsetType:
    """Return the proof from what a client trusts to a head; nothing from size 0 or where the head is smaller."""
    if not have or have > head.size:
        return UNSET
    return Consistency(old_size=have, proof=await log.prove_consistency(have, head.size, head))


def _request_key(key: str | None, route: str, body: bytes) -> RequestKey | None:
    return None if key is None else request_key(key, route, body)
