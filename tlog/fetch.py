"""A log over HTTP, without a socket: requests as values, and what an answer may look like (tlog-tiles; our /v1).

Flows yield a list of Request, to be sent side by side, and are sent a list of Response, in order. A runner only moves
bytes: it follows no redirect, undoes Content-Encoding, and reads at most `max_size` bytes of a body.

    Answer   the body of POST /v1/entries and GET /v1/entries/{index} in CBOR: a map with the text keys
             "index" (unsigned), "leafHash" (32 bytes), "proof" (array of 32 bytes), "checkpoint" (bytes of a note),
             and where asked for "entry" (bytes) and "consistency" ({"from": unsigned, "proof": array of 32 bytes})

    Batch    the body of POST /v1/entries/batch in CBOR: a map with the text keys "results" (an array, for each entry in
             the order sent, of {"index": unsigned, "leafHash": 32 bytes, "isNew": boolean}), "proof" (the multiproof
             of all these entries, see `tlog.multiproof`), "checkpoint" and "consistency" as above
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tlog.cbor import Value, decode, encode
from tlog.errors import FormatError, NotFoundError, PushbackError, RefusedError, UnavailableError
from tlog.merkle import HASH_SIZE, MAX_SIZE
from tlog.note import MAX_NOTE_SIZE
from tlog.proof import MAX_PROOF_HASHES, TlogProof
from tlog.reader import Reading, ReadTiles
from tlog.strict import parse_decimal
from tlog.tile import MAX_BUNDLE_SIZE, MAX_ENTRY_SIZE, TILE_WIDTH, Bundle, Tile, cut_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

CBOR = "application/cbor"
"""Media type of Answer."""

PROBLEM_CBOR = "application/concise-problem-details+cbor"
"""Media type of a problem in CBOR (RFC 9290): a map with -1 for its title and -2 for its detail."""

MAX_ANSWER_SIZE = MAX_NOTE_SIZE + MAX_ENTRY_SIZE + 3 * HASH_SIZE * MAX_PROOF_HASHES
"""Largest Answer that is read, in bytes: its parts at their limits, with room for the framing."""

MAX_BATCH_ENTRIES = 4096
"""Most entries in one batch that a client sends; a log may be set to take fewer."""

MAX_BATCH_BYTES = 4 << 20
"""Most bytes of entries, with 3 more for each, in one batch that a client sends; what a log takes at least."""

MAX_PROBLEM_SIZE = 1 << 16
"""Largest error body that is read, in bytes; only its title and detail are shown."""

_MAX_RESULT_SIZE = 96 + HASH_SIZE * 2 * MAX_PROOF_HASHES
"""Most bytes of the answer to a batch for one entry: its result, and its part of the multiproof at the worst."""

KEY_HEADER = "Idempotency-Key"
"""Request header: a name for this request, under which it is carried out once however often it is sent."""

HAVE_HEADER = "Treehead-Have"
"""Request header: the size that the client trusts; the answer then proves consistency from it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        method: GET or POST.
        path: Path below the log's URL, without a leading slash.
        headers: Pairs of name and value.
        body: Body, or None.
        max_size: Most bytes of the answer's decoded body that are of use; beyond them the runner gives up.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    max_size: int = MAX_PROBLEM_SIZE


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response.

    Attributes:
        status: Status code.
        headers: Headers, names in lower case.
        body: Body without its Content-Encoding.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


Fetching: TypeAlias = Generator[list[Request], list[Response], T]
"""A flow over HTTP that returns a T."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the log says about one entry; nothing of it is verified yet.

    Attributes:
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        proof: Inclusion proof to the checkpoint's root, 32 bytes each.
        checkpoint: Signed note.
        entry: The entry, where it was asked for.
        consistency: Size and proof: from that size to the checkpoint, where it was asked for.
    """

    index: int
    leaf_hash: bytes
    proof: tuple[bytes, ...]
    checkpoint: bytes
    entry: bytes | None = None
    consistency: tuple[int, tuple[bytes, ...]] | None = None

    def format(self) -> bytes:
        """Write the answer in deterministic CBOR."""
        value: dict[int | str, Value] = {
            "index": self.index,
            "leafHash": self.leaf_hash,
            "proof": list[Value](self.proof),
            "checkpoint": self.checkpoint,
        }
        if self.entry is not None:
            value["entry"] = self.entry
        if self.consistency is not None:
            value["consistency"] = {"from": self.consistency[0], "proof": list[Value](self.consistency[1])}
        return encode(value)

    def tlog_proof(self) -> TlogProof:
        """Return the part of the answer that proves the entry offline."""
        return TlogProof(self.index, self.proof, self.checkpoint)


@dataclass(frozen=True, slots=True)
class Result:
    """What the log says about one entry of a batch.

    Attributes:
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        is_new: Whether the entry was appended by this request; if not, the log had it already.
    """

    index: int
    leaf_hash: bytes
    is_new: bool


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What the log says about a batch of entries; nothing of it is verified yet.

    Attributes:
        results: One for each entry, in the order sent.
        proof: Multiproof of all of them to the checkpoint's root, 32 bytes each.
        checkpoint: Signed note.
        consistency: Size and proof: from that size to the checkpoint, where it was asked for.
    """

    results: tuple[Result, ...]
    proof: tuple[bytes, ...]
    checkpoint: bytes
    consistency: tuple[int, tuple[bytes, ...]] | None = None

    def format(self) -> bytes:
        """Write the answer in deterministic CBOR."""
        value: dict[int | str, Value] = {
            "results": [
                {"index": result.index, "leafHash": result.leaf_hash, "isNew": result.is_new} for result in self.results
            ],
            "proof": list[Value](self.proof),
            "checkpoint": self.checkpoint,
        }
        if self.consistency is not None:
            value["consistency"] = {"from": self.consistency[0], "proof": list[Value](self.consistency[1])}
        return encode(value)


def parse_batch_answer(data: bytes) -> BatchAnswer:
    """Parse the answer to a batch.

    Raises:
        FormatError: Not deterministic CBOR, or a part is missing, unknown, or of another type or length.
    """
    match decode(data):
        case {"results": list(results), "proof": list(proof), "checkpoint": bytes(note), **rest} if (
            None not in rest.values()  # what is absent has no key
        ):
            consistency = rest.pop("consistency", None)
            if not rest:
                hashes = _hashes(proof, len(proof))
                return BatchAnswer(tuple(map(_result, results)), hashes, note, _consistency(consistency))
        case _:
            pass
    raise FormatError("not an answer to a batch: a part is missing, unknown or of another type")


def _result(value: object) -> Result:
    match value:
        case {"index": index, "leafHash": bytes(leaf), "isNew": bool(is_new), **rest} if (
            len(leaf) == HASH_SIZE and not rest
        ):
            return Result(_size(index), leaf, is_new)
    raise FormatError("not the result of an entry")


def parse_answer(data: bytes) -> Answer:
    """Parse an answer.

    Raises:
        FormatError: Not deterministic CBOR, or a part is missing, unknown, or of another type or length.
    """
    match decode(data):
        case {"index": index, "leafHash": bytes(leaf), "proof": proof, "checkpoint": bytes(note), **rest} if (
            len(leaf) == HASH_SIZE and None not in rest.values()  # what is absent has no key
        ):
            entry, consistency = rest.pop("entry", None), rest.pop("consistency", None)
            if not rest and (entry is None or isinstance(entry, bytes)):
                return Answer(_size(index), leaf, _hashes(proof), note, entry, _consistency(consistency))
        case _:
            pass
    raise FormatError("not an answer: a part is missing, unknown or of another type")


def _consistency(value: object) -> tuple[int, tuple[bytes, ...]] | None:
    match value:
        case None:
            return None
        case {"from": old_size, "proof": proof, **rest} if not rest:
            return _size(old_size), _hashes(proof)
    raise FormatError("not a consistency proof")


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
        raise FormatError("not an index or a size")
    return value


def _hashes(value: object, limit: int = 2 * MAX_PROOF_HASHES) -> tuple[bytes, ...]:
    """Return hashes of 32 bytes; as many at most as a consistency proof has, which walks down once and up once."""
    hashes = tuple(item for item in value if isinstance(item, bytes)) if isinstance(value, list) else ()
    if not isinstance(value, list) or len(value) > limit or [HASH_SIZE] * len(value) != [len(item) for item in hashes]:
        raise FormatError("not a proof: an array of hashes of 32 bytes")
    return hashes


# Flows.


def fetch_checkpoint() -> Fetching[bytes]:
    """Return the signed note of the served head, not verified (tlog-tiles).

    Raises:
        CouldNotCheckError: The log did not answer with one.
    """
    (response,) = yield [Request("GET", "checkpoint", max_size=MAX_NOTE_SIZE)]
    return check(response).body


def fetch_add(entry: bytes, have: int = 0, key: str | None = None) -> Fetching[tuple[Answer, bool]]:
    """Append an entry of at most 65,535 bytes; return what the log says of it, and whether it is new; not verified.

    Args:
        entry: The entry.
        have: The size that the caller trusts; from any but 0 the answer proves consistency.
        key: Idempotency-Key, 1 to 255 visible ASCII characters: the same request under the same key adds nothing twice.

    Raises:
        FormatError: The answer breaks its form.
        CouldNotCheckError: The log did not answer with one.
    """
    headers = [("Accept", CBOR), ("Content-Type", "application/octet-stream")]
    headers += [(HAVE_HEADER, str(have))] if have else []
    headers += [(KEY_HEADER, key)] if key is not None else []
    (response,) = yield [Request("POST", "v1/entries", tuple(headers), entry, MAX_ANSWER_SIZE)]
    return parse_answer(check(response, 200, 201).body), response.status == 201


def fetch_add_batch(entries: Sequence[bytes], have: int = 0, key: str | None = None) -> Fetching[BatchAnswer]:
    """Append entries, each of at most 65,535 bytes, in this order, and return what the log says, not verified.

    Args:
        entries: At least one, at most MAX_BATCH_ENTRIES, and together at most MAX_BATCH_BYTES.
        have: The size that the caller trusts; from any but 0 the answer proves consistency.
        key: Idempotency-Key, 1 to 255 visible ASCII characters: the same request under the same key adds nothing twice.

    Raises:
        FormatError: The answer breaks its form.
        CouldNotCheckError: The log did not answer with one.
    """
    headers = [("Accept", CBOR), ("Content-Type", CBOR)]
    headers += [(HAVE_HEADER, str(have))] if have else []
    headers += [(KEY_HEADER, key)] if key is not None else []
    body = encode(list[Value](entries))
    limit = MAX_ANSWER_SIZE + len(entries) * _MAX_RESULT_SIZE
    (response,) = yield [Request("POST", "v1/entries/batch", tuple(headers), body, limit)]
    return parse_batch_answer(check(response, 200, 201).body)


def fetch_entry(index: int) -> Fetching[Answer]:
    """Return what the log says of the entry at an index, the entry included, not verified.

    Raises:
        FormatError: The answer breaks its form.
        CouldNotCheckError: The log did not answer with one.
    """
    (response,) = yield [Request("GET", f"v1/entries/{index}", (("Accept", CBOR),), max_size=MAX_ANSWER_SIZE)]
    return parse_answer(check(response).body)


def over_http(reading: Reading[T]) -> Fetching[T]:
    """Drive a flow that reads tiles and bundles over the paths of tlog-tiles.

    A log may drop a partial tile once the full one exists, so a partial one that is missing is cut from the full one.

    Raises:
        CouldNotCheckError: The log did not answer with what was asked for.
    """
    try:
        wanted = next(reading)
        while True:
            addresses = wanted.tiles if isinstance(wanted, ReadTiles) else wanted.bundles
            wanted = reading.send((yield from _fetch_all(addresses)))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # StopIteration is not generic


def _fetch_all(addresses: Sequence[Tile | Bundle]) -> Fetching[list[bytes]]:
    """Return the bytes at each address, in order."""
    responses = yield [_get(address) for address in addresses]
    missing = [
        at for at, response in enumerate(responses) if response.status == 404 and addresses[at].width < TILE_WIDTH
    ]
    fuller = (yield [_get(addresses[at].full()) for at in missing]) if missing else []
    bodies = [check(response).body if at not in missing else b"" for at, response in enumerate(responses)]
    for at, response in zip(missing, fuller, strict=True):
        bodies[at] = _cut(addresses[at], check(response).body)
    return bodies


def _get(address: Tile | Bundle) -> Request:
    return Request("GET", address.path, max_size=MAX_BUNDLE_SIZE if isinstance(address, Bundle) else 1 << 13)


def _cut(address: Tile | Bundle, data: bytes) -> bytes:
    """Return the part of a full tile or bundle that a narrower one holds."""
    return cut_bundle(data, address.width) if isinstance(address, Bundle) else data[: HASH_SIZE * address.width]


def check(response: Response, *wanted: int) -> Response:
    """Return the response if its status is one of those wanted, 200 where none is named.

    Raises:
        NotFoundError: 404.
        PushbackError: 429, 503 or 507.
        RefusedError: Any other status from 400 to 499 but 408, which asks to send the request again (RFC 9110 §15.5.9).
        UnavailableError: Any other status; redirects are not followed.
    """
    status = response.status
    if status in (wanted or (200,)):
        return response
    reason = f"the log answered {status}{_reason(response)}"
    if status == 404:
        raise NotFoundError(reason)
    if status in (429, 503, 507):
        raise PushbackError(reason, retry_after=_retry_after(response))
    if 400 <= status <= 499 and status != 408:
        raise RefusedError(reason, status=status)
    raise UnavailableError(reason)


def _reason(response: Response) -> str:
    """Return what a problem says (RFC 9457, RFC 9290), in printable characters, to be shown to a person."""
    data = response.body[:MAX_PROBLEM_SIZE]
    try:
        in_cbor = response.headers.get("content-type") == PROBLEM_CBOR
        problem: object = decode(data) if in_cbor else json.loads(data)
    except (FormatError, ValueError, RecursionError):
        return ""
    title, detail = (-1, -2) if in_cbor else ("title", "detail")
    said = problem.get(detail, problem.get(title)) if isinstance(problem, dict) else None
    return ": " + "".join(char for char in said[:300] if char.isprintable()) if isinstance(said, str) else ""


def _retry_after(response: Response) -> int | None:
    try:
        return parse_decimal(response.headers.get("retry-after", "").encode("utf-8", "surrogatepass"))
    except FormatError:
        return None
