"""What answers and JSON bodies look like; the description of the API is made from these types.

Each answer is a map with the same keys in JSON and in deterministic CBOR. The CBOR forms of added and read entries are
those of `tlog.fetch`.

    value        JSON                       CBOR
    leaf hash    64 lowercase hex digits    byte string
    checkpoint   text                       byte string
    other bytes  base64                     byte string
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tlog import cbor
from tlog.fetch import CBOR
from tlog.merkle import HASH_SIZE, MAX_SIZE
from tlog.proof import TlogProof
from tlog.server.api.media import JSON, OCTETS, TEXT, TLOG_PROOF
from tlog.server.limit import MAX_PROOFS
from tlog.strict import parse_decimal
from tlog.tile import MAX_ENTRY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class LeafHash:
    """A leaf hash, 32 bytes; in JSON 64 lowercase hex digits."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        """Wrap a leaf hash."""
        self.value = value


class Note:
    """A signed note; in JSON its text."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        """Wrap a note."""
        self.value = value


Size = Annotated[int, Meta(ge=0, le=MAX_SIZE)]
Leaf = Annotated[
    LeafHash,
    Meta(description="Leaf hash (RFC 6962), in hex.", extra_json_schema={"pattern": f"^[0-9a-f]{{{2 * HASH_SIZE}}}$"}),
]
Checkpoint = Annotated[Note, Meta(description="Signed checkpoint (c2sp.org/tlog-checkpoint).")]
Hash = Annotated[bytes, Meta(min_length=HASH_SIZE, max_length=HASH_SIZE)]
Hashes = list[Hash]


class Consistency(msgspec.Struct, frozen=True, kw_only=True):
    """That the checkpoint of this answer extends the tree that the client named with Treehead-Have."""

    old_size: Size = msgspec.field(name="from")
    proof: Hashes


class Added(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An entry that is in the log for good, with its inclusion proof to the root of a signed checkpoint."""

    index: Size
    leaf_hash: Leaf
    proof: Hashes
    checkpoint: Checkpoint
    consistency: Consistency | UnsetType = UNSET


class Entry(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An entry of the log, with its inclusion proof to the root of the newest checkpoint."""

    index: Size
    leaf_hash: Leaf
    proof: Hashes
    checkpoint: Checkpoint
    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY_SIZE)]


class BatchResult(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What became of one entry of a batch; of an entry that the log had already, the first index."""

    index: Size
    leaf_hash: Leaf
    is_new: bool


class BatchAdded(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A batch that is in the log for good: results in the order sent, and one proof of all of them."""

    results: list[BatchResult]
    proof: Annotated[Hashes, Meta(description="Multiproof: the nodes that lead from these entries to the root.")]
    checkpoint: Checkpoint
    consistency: Consistency | UnsetType = UNSET


class InclusionProof(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An inclusion proof in the tree of a size (RFC 6962 §2.1.1)."""

    index: Size
    size: Size
    leaf_hash: Leaf
    proof: Hashes


class ConsistencyProof(msgspec.Struct, frozen=True, kw_only=True):
    """A consistency proof between the trees of two sizes (RFC 6962 §2.1.2)."""

    old_size: Size = msgspec.field(name="from")
    new_size: Size = msgspec.field(name="to")
    proof: Hashes


class ProofsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The entries to prove."""

    indexes: Annotated[list[Size], Meta(min_length=1, max_length=MAX_PROOFS)]


class Proof(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An inclusion proof to the root of the checkpoint of the same answer."""

    index: Size
    leaf_hash: Leaf
    proof: Hashes


class Proofs(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Inclusion proofs in the order asked for, to the root of one checkpoint."""

    proofs: list[Proof]
    checkpoint: Checkpoint
    consistency: Consistency | UnsetType = UNSET


class Place(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Where an entry is: the first index that has it."""

    index: Size
    leaf_hash: Leaf


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Why a request was not carried out (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str | None = None


def encode(value: object, media_type: str) -> bytes:
    """Return an answer in one of the media types that it is offered in."""
    return _ENCODERS[media_type](value)


def to_json(value: object) -> bytes:
    """Return an answer in JSON, with a line feed at its end."""
    return msgspec.json.encode(value, enc_hook=_json_value) + b"\n"


def to_cbor(value: object) -> bytes:
    """Return an answer in deterministic CBOR."""
    if isinstance(value, BatchAdded) and value.consistency is UNSET:
        results = [
            _RESULT % (cbor.encode_head(0, each.index), b"\xf5" if each.is_new else b"\xf4", each.leaf_hash.value)
            for each in value.results
        ]
        checkpoint = cbor.encode_bytes(value.checkpoint.value)
        return _BATCH_ADDED % (_hashes(value.proof), cbor.encode_array(results), checkpoint)
    if isinstance(value, Added) and value.consistency is UNSET:
        return _ADDED % (
            cbor.encode_head(0, value.index),
            _hashes(value.proof),
            value.leaf_hash.value,
            cbor.encode_bytes(value.checkpoint.value),
        )
    if isinstance(value, InclusionProof):
        head = cbor.encode_head
        return _INCLUSION % (head(0, value.size), head(0, value.index), _hashes(value.proof), value.leaf_hash.value)
    if isinstance(value, Proofs) and value.consistency is UNSET:
        proofs = [
            _PROOF % (cbor.encode_head(0, each.index), _hashes(each.proof), each.leaf_hash.value)
            for each in value.proofs
        ]
        return _PROOFS % (cbor.encode_array(proofs), cbor.encode_bytes(value.checkpoint.value))
    return cbor.encode(
        cast("cbor.Value", msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_cbor_value))
    )  # structs of integers, booleans, bytes and each other


# The answers that are sent most often, put together: keys in bytewise order, leaf hashes of 32 bytes behind their head.
_ADDED = b"\xa4\x65index%b\x65proof%b\x68leafHash\x58\x20%b\x6acheckpoint%b"
_RESULT = b"\xa3\x65index%b\x65isNew%b\x68leafHash\x58\x20%b"
_BATCH_ADDED = b"\xa3\x65proof%b\x67results%b\x6acheckpoint%b"
_INCLUSION = b"\xa4\x64size%b\x65index%b\x65proof%b\x68leafHash\x58\x20%b"
_PROOF = b"\xa3\x65index%b\x65proof%b\x68leafHash\x58\x20%b"
_PROOFS = b"\xa2\x66proofs%b\x6acheckpoint%b"


def _hashes(proof: Sequence[bytes]) -> bytes:
    """Return the array of hashes of 32 bytes."""
    return cbor.encode_head(4, len(proof)) + b"".join([b"\x58\x20" + value for value in proof])


def json_schemas(types: Iterable[object]) -> tuple[list[dict[str, object]], dict[str, dict[str, object]]]:
    """Return the schema of each type, and those that they refer to by name."""
    schemas, components = msgspec.json.schema_components(
        types, schema_hook=_schema, ref_template="#/components/schemas/{name}"
    )
    return list(schemas), components


def parse_index(text: str) -> int:
    """Parse an index or a size of a path or a header.

    Raises:
        FormatError: It is none.
    """
    return parse_decimal(text.encode("utf-8", "surrogateescape"))


def _schema(kind: object) -> dict[str, object]:
    """Return the schema of a type that msgspec does not know; anything may be where an object is."""
    if kind in (LeafHash, Note):
        return {"type": "string"}
    if kind is object:
        return {"description": "Anything."}
    raise NotImplementedError


def _json_value(value: object) -> str:
    if isinstance(value, LeafHash):
        return value.value.hex()
    if isinstance(value, Note):
        return value.value.decode()
    raise TypeError(f"no JSON for {type(value).__name__}")


def _cbor_value(value: object) -> bytes:
    if isinstance(value, LeafHash | Note):
        return value.value
    raise TypeError(f"no CBOR for {type(value).__name__}")


def _tlog_proof(value: object) -> bytes:
    if isinstance(value, Added | Entry):
        return TlogProof(value.index, tuple(value.proof), value.checkpoint.value).format()
    raise TypeError(f"no proof file for {type(value).__name__}")


def _plain(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"no text for {type(value).__name__}")


_ENCODERS: Mapping[str, Callable[[object], bytes]] = {
    JSON: to_json,
    CBOR: to_cbor,
    TLOG_PROOF: _tlog_proof,
    TEXT: _plain,
    OCTETS: _plain,
}
