"""What is written and read: notes, bundles, and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.micro.fixture import entries, hashes
from tlog.checkpoint import Checkpoint
from tlog.fetch import CBOR
from tlog.note import Signer, sign_note
from tlog.policy import Policy
from tlog.server.api.answer import Added, LeafHash, Note, encode
from tlog.server.api.media import JSON, TLOG_PROOF
from tlog.tile import TILE_WIDTH, format_bundle, parse_bundle

if TYPE_CHECKING:
    from benchmarks.micro.fixture import Benchmark

_SIGNER = Signer("localhost/micro", bytes(range(32)))
_HEAD = Checkpoint("localhost/micro", 1_000_003, hashes(1)[0])


def test_sign(benchmark: Benchmark) -> None:
    """Sign a checkpoint."""
    assert benchmark(lambda: sign_note(_HEAD.format(), [_SIGNER]))


def test_open(benchmark: Benchmark) -> None:
    """Open a signed checkpoint, as step 6 of a commit and every client do."""
    policy, note = Policy((_SIGNER.verifier,)), sign_note(_HEAD.format(), [_SIGNER])
    assert benchmark(lambda: policy.open_checkpoint(note)) == _HEAD


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_format_bundle(benchmark: Benchmark, count: int) -> None:
    """Frame a batch."""
    batch = entries(count)
    assert len(benchmark(lambda: format_bundle(batch))) == count * 302


def test_parse_bundle(benchmark: Benchmark) -> None:
    """Split a full bundle."""
    batch = entries(TILE_WIDTH)
    framed = format_bundle(batch)
    assert benchmark(lambda: parse_bundle(framed, TILE_WIDTH)) == batch


@pytest.mark.parametrize("media_type", [JSON, CBOR, TLOG_PROOF])
def test_encode_added(benchmark: Benchmark, media_type: str) -> None:
    """Encode the answer to an added entry, with a proof of 20 hashes."""
    leaf, *proof = hashes(21)
    note = Note(sign_note(_HEAD.format(), [_SIGNER]))
    assert benchmark(
        lambda: encode(Added(index=1_000_000, leaf_hash=LeafHash(leaf), proof=proof, checkpoint=note), media_type)
    )
