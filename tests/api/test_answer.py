"""Answers that are put together by hand are those that the general encoder writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tlog import cbor
from tlog.server.api.answer import (
    Added,
    BatchAdded,
    BatchResult,
    InclusionProof,
    LeafHash,
    Note,
    Proof,
    Proofs,
    to_cbor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES = st.binary(min_size=32, max_size=32)
LEAVES = st.builds(LeafHash, HASHES)
PATHS = st.lists(HASHES, max_size=63)
NOTES = st.builds(Note, st.binary(max_size=1000))
SIZES = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 300))

ADDED = st.builds(Added, index=SIZES, leaf_hash=LEAVES, proof=PATHS, checkpoint=NOTES)
INCLUSIONS = st.builds(InclusionProof, index=SIZES, size=SIZES, leaf_hash=LEAVES, proof=PATHS)
BATCHES = st.builds(
    BatchAdded,
    results=st.lists(st.builds(BatchResult, index=SIZES, leaf_hash=LEAVES, is_new=st.booleans()), max_size=30),
    proof=PATHS,
    checkpoint=NOTES,
)
PROOFS = st.builds(
    Proofs,
    proofs=st.lists(st.builds(Proof, index=SIZES, leaf_hash=LEAVES, proof=PATHS), max_size=30),
    checkpoint=NOTES,
)


def bytes_of(value: object) -> bytes:
    assert isinstance(value, LeafHash | Note)
    return value.value


@given(st.one_of(ADDED, BATCHES, INCLUSIONS, PROOFS))
def test_an_answer_in_cbor_is_the_map_of_its_fields(answer: msgspec.Struct) -> None:
    to_builtins = cast("Callable[..., cbor.Value]", msgspec.to_builtins)
    assert to_cbor(answer) == cbor.encode(to_builtins(answer, builtin_types=(bytes,), enc_hook=bytes_of))
