"""Proofs that travel with an entry: the form, the vectors, and that nothing else verifies."""

import base64
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import flip, mutations
from tests.support.rfc6962 import Tree
from tests.support.skips import vectors
from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError, VerificationError
from tlog.merkle import MAX_SIZE
from tlog.note import Signer, sign_note
from tlog.policy import Policy
from tlog.proof import MAX_EXTRA_SIZE, MAX_PROOF_HASHES, MAX_PROOF_SIZE, TlogProof, parse_proof, verify_proof

TREE = Tree([b"entry %d" % number for number in range(13)])
SIGNER, STRANGER = Signer("log.example", bytes(32)), Signer("log.example", bytes(31) + b"\x01")
POLICY = Policy.of_log(SIGNER.verifier.vkey)

proofs = st.builds(
    TlogProof,
    st.integers(0, MAX_SIZE),
    st.lists(st.binary(min_size=32, max_size=32), max_size=6).map(tuple),
    st.binary(min_size=1, max_size=40),
    st.none() | st.binary(max_size=20),
)


def head(size: int, signer: Signer = SIGNER) -> bytes:
    return sign_note(Checkpoint("log.example", size, TREE.mth(0, size)).format(), [signer])


def proof_of(index: int, size: int) -> TlogProof:
    return TlogProof(index, tuple(TREE.path(index, 0, size)), head(size))


# --------------------------------------------------------------------------------------------------------------- form


@given(proofs)
def test_every_proof_is_read_back(proof: TlogProof) -> None:
    assert parse_proof(proof.format()) == proof


@given(mutations(proofs.map(TlogProof.format), b"\n =Aei\x00\xff1"))
def test_any_other_file_is_a_format_error(data: bytes) -> None:
    with suppress(FormatError):
        assert parse_proof(data).format() == data


def test_a_proof_is_written_as_the_specification_says() -> None:
    text = b"c2sp.org/tlog-proof@v1\nextra ZXh0cmE=\nindex 5\n" + base64.b64encode(b"\x01" * 32) + b"\n\nnote\n"
    assert TlogProof(5, (b"\x01" * 32,), b"note\n", b"extra").format() == text


def test_the_proofs_of_others_are_written_to_the_byte() -> None:
    for case in json.loads((vectors("tlog_proof") / "format_cases.json").read_text())["marshal"]:
        extra = None if case["extra_hex"] is None else bytes.fromhex(case["extra_hex"])
        hashes = tuple(map(base64.b64decode, case["hashes_b64"]))
        proof = TlogProof(case["index"], hashes, case["checkpoint"].encode(), extra)
        assert proof.format() == case["text"].encode()
        assert parse_proof(case["text"].encode()) == proof


def test_the_malformed_proofs_of_others_are_refused() -> None:
    """Lenient elsewhere: Go's base64 takes non-zero padding bits, and CR; the specifications of 2026 do not."""
    for case in json.loads((vectors("tlog_proof") / "format_cases.json").read_text())["unmarshal_errors"]:
        with pytest.raises(FormatError):
            parse_proof(case["proof"].encode())


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n\n"),
        *("c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v1\nindex 0\n", "c2sp.org/tlog-proof@v1\nindex 0\n\n"),
        *("c2sp.org/tlog-proof@v2\nindex 0\n\nnote\n",),
        *("c2sp.org/tlog-proof@v1\r\nindex 0\n\nnote\n", "index 0\n\nnote\n"),
        *("c2sp.org/tlog-proof@v1\n\nnote\n", "c2sp.org/tlog-proof@v1\nextra \n\nnote\n"),
        *("c2sp.org/tlog-proof@v1\nindex 01\n\nnote\n", "c2sp.org/tlog-proof@v1\nindex\n\nnote\n"),
        *("c2sp.org/tlog-proof@v1\nindex 0\nextra AA==\n\nnote\n",),
        *("c2sp.org/tlog-proof@v1\nindex 0\nindex 0\n\nnote\n",),
        *("c2sp.org/tlog-proof@v1\nextra AA==\nextra AA==\nindex 0\n\nnote\n",),
        *("c2sp.org/tlog-proof@v1\nindex 0\n \n\nnote\n",),
        *("c2sp.org/tlog-proof@v1\nindex 0\nAA==\n\nnote\n", "c2sp.org/tlog-proof@v1\nextra AB==\nindex 0\n\nnote\n"),
        *(f"c2sp.org/tlog-proof@v1\nindex {MAX_SIZE + 1}\n\nnote\n", "c2sp.org/tlog-proof@v1 \nindex 0\n\nnote\n"),
    ],
)  # fmt: skip
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_proof(text.encode())


def test_the_limits_are_read_and_no_more() -> None:
    hashes = (bytes(32),) * MAX_PROOF_HASHES
    assert parse_proof(TlogProof(0, hashes, b"note").format()).hashes == hashes
    with pytest.raises(FormatError, match="at most 63 hashes"):
        parse_proof(TlogProof(0, (*hashes, bytes(32)), b"note").format())
    extra = bytes(MAX_EXTRA_SIZE)
    assert parse_proof(TlogProof(0, (), b"note", extra).format()).extra == extra
    with pytest.raises(FormatError, match="extra data of more than"):
        parse_proof(TlogProof(0, (), b"note", extra + b"\x00").format())
    room = MAX_PROOF_SIZE - len(TlogProof(0, (), b"").format())
    assert len(parse_proof(TlogProof(0, (), b"a" * room).format()).checkpoint) == room
    with pytest.raises(FormatError, match="a proof of more than"):
        parse_proof(TlogProof(0, (), b"a" * room + b"a").format())


# ------------------------------------------------------------------------------------------------------------- verify


def test_every_entry_of_every_size_is_proven() -> None:
    for size in range(1, 14):
        for index in range(size):
            proof = parse_proof(proof_of(index, size).format())
            verify_proof(proof, TREE.entries[index], POLICY)
            verify_proof(replace(proof, extra=b"whatever"), TREE.entries[index], POLICY)


def refused(proof: TlogProof, entry: bytes, policy: Policy = POLICY) -> None:
    with pytest.raises((VerificationError, FormatError)):
        verify_proof(proof, entry, policy)


def test_a_proof_with_one_thing_wrong_is_refused() -> None:
    proof, entry = proof_of(5, 13), TREE.entries[5]
    verify_proof(proof, entry, POLICY)
    for at, value in enumerate(proof.hashes):
        before, after = proof.hashes[:at], proof.hashes[at + 1 :]
        for hashes in ((*before, flip(value, 9), *after), before + after, (*before, value, value, *after)):
            refused(replace(proof, hashes=hashes), entry)
        refused(replace(proof, hashes=(*before, value[:31], *after)), entry)
    refused(replace(proof, hashes=proof.hashes[::-1]), entry)
    refused(replace(proof, hashes=(*proof.hashes, bytes(32))), entry)
    for index in (*range(5), *range(6, 14), -1, MAX_SIZE, 2**64 + 5):
        refused(replace(proof, index=index), entry)
    for other in (b"", entry + b"\x00", flip(entry, 0), TREE.entries[4], b"\x00" + entry):
        refused(proof, other)
    for size in range(13):
        refused(replace(proof, checkpoint=head(size)), entry)


def test_a_proof_with_a_head_that_nobody_trusted_signed_is_refused() -> None:
    proof, entry = proof_of(5, 13), TREE.entries[5]
    refused(replace(proof, checkpoint=head(13, STRANGER)), entry)
    refused(replace(proof, checkpoint=b"\n" + proof.checkpoint), entry)
    refused(replace(proof, checkpoint=b"junk"), entry)
    refused(proof, entry, Policy(()))
    refused(proof, entry, Policy.of_log(STRANGER.verifier.vkey))
    for bit in range(0, 8 * len(proof.checkpoint), 3):
        refused(replace(proof, checkpoint=flip(proof.checkpoint, bit)), entry)


def test_one_flipped_bit_anywhere_in_the_file_is_refused() -> None:
    data = proof_of(5, 13).format()
    for bit in range(8 * len(data)):
        with pytest.raises((FormatError, VerificationError)):
            verify_proof(parse_proof(flip(data, bit)), TREE.entries[5], POLICY)
