"""A log that Go's libraries wrote in files, with a key of theirs: the core reads and verifies all of it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, TypeVar

import pytest

from tlog.checkpoint import Checkpoint, parse_checkpoint
from tlog.errors import FormatError, VerificationError
from tlog.fetch import Response, over_http
from tlog.merkle import verify_consistency
from tlog.note import open_note, parse_skey, parse_vkey
from tlog.policy import Policy
from tlog.proof import parse_proof, verify_proof
from tlog.reader import read_consistency_proof, read_entries

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.conftest import Tools
    from tlog.fetch import Fetching

T = TypeVar("T")

pytestmark = pytest.mark.timeout(600)  # the first test waits until everything is built


@pytest.fixture(scope="session", params=[1, 2, 300])
def written(tools: Tools, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A log that Go wrote, in files; its parameter is the size."""
    folder = tmp_path_factory.mktemp("written")
    tools.output("interop", "write", folder, "go.example/log", str(request.param))
    return folder


def head_in(note: Path) -> Checkpoint:
    folder = note.parent
    text, signed = open_note(note.read_bytes(), [parse_vkey((folder / "vkey").read_text())])
    assert [one.name for one in signed] == ["go.example/log"]
    return parse_checkpoint(text)


def entries_in(folder: Path) -> list[bytes]:
    size = len(list(folder.glob("*.entry")))
    return [(folder / f"{index}.entry").read_bytes() for index in range(size)]


def read_files(folder: Path, flow: Fetching[T]) -> T:
    """Drive a flow of `tlog.fetch` over files."""
    try:
        requests = next(flow)
        while True:
            requests = flow.send([Response(200, {}, (folder / request.path).read_bytes()) for request in requests])
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # StopIteration is not generic


def test_keys_have_one_form(written: Path) -> None:
    signer = parse_skey((written / "skey").read_text())
    assert signer.skey == (written / "skey").read_text()
    assert signer.verifier == parse_vkey((written / "vkey").read_text())


def test_a_head_by_go_opens_and_ed25519_signs_the_same_bytes(written: Path) -> None:
    head = head_in(written / "checkpoint")
    assert (head.origin, head.size) == ("go.example/log", len(entries_in(written)))
    signer = parse_skey((written / "skey").read_text())
    text = (written / "checkpoint").read_bytes().rpartition(b"\n\n")[0] + b"\n"
    assert head.format() == text
    assert b64encode(signer.verifier.key_id + signer.sign(text)) in (written / "checkpoint").read_bytes()


def test_a_cosigned_head_opens_under_the_logs_key(written: Path) -> None:
    cosigned = (written / "cosigned").read_bytes()
    assert cosigned.count("\n— ".encode()) == 2
    policy = Policy.of_log((written / "vkey").read_text())
    assert policy.open_checkpoint(cosigned) == head_in(written / "checkpoint")


def test_an_extension_line_is_read_only_by_those_who_ask_for_it(written: Path) -> None:
    text, _ = open_note((written / "extended").read_bytes(), [parse_vkey((written / "vkey").read_text())])
    assert parse_checkpoint(text, extensions=True).extensions == ("an extension",)
    with pytest.raises(FormatError, match="extension"):
        parse_checkpoint(text)


def test_the_core_reads_every_entry_from_tiles_and_bundles_by_go(written: Path) -> None:
    head, entries = head_in(written / "checkpoint"), entries_in(written)
    assert read_files(written, over_http(read_entries(head, 0, head.size))) == entries


def test_proof_files_by_torchwood_verify_and_format_back_to_themselves(written: Path) -> None:
    policy = Policy.of_log((written / "vkey").read_text())
    for index, entry in enumerate(entries_in(written)):
        data = (written / f"{index}.tlog-proof").read_bytes()
        proof = parse_proof(data)
        assert proof.format() == data
        assert proof.index == index
        assert proof.extra == (bytes([0, 255, index % 256]) if index % 2 else None)
        verify_proof(proof, entry, policy)
        with pytest.raises(VerificationError):
            verify_proof(proof, entry + b" ", policy)


def test_a_consistency_proof_by_go_verifies_and_is_what_the_core_makes_from_the_tiles(written: Path) -> None:
    old, head = head_in(written / "old"), head_in(written / "checkpoint")
    proof = [b64decode(part) for part in json.loads((written / "consistency").read_text())]
    verify_consistency(old.size, head.size, proof, old.root, head.root)
    assert read_files(written, over_http(read_consistency_proof(head, old.size))) == proof
