"""The entry that ends a log: to the byte, and what is never taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlog.checkpoint import Checkpoint, parse_checkpoint
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.freeze import Freeze, freeze_entry, is_freeze, open_freeze, parse_freeze
from tlog.note import Signer, sign_note, split_note

SIGNER = Signer("log.example/x", bytes(range(32)))
OTHER = Signer("log.example/x", bytes(32))
KEY = SIGNER.verifier

reasons = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=200)


@given(st.integers(0, 2**63 - 1), reasons)
def test_a_freeze_entry_says_what_it_was_made_of(index: int, reason: str) -> None:
    entry = freeze_entry(SIGNER, index, reason)
    assert open_freeze(entry, index, KEY) == Freeze("log.example/x", index, reason)
    assert is_freeze(entry, index, KEY)
    assert len(entry) < 1 << 16


def test_a_freeze_entry_is_a_note_whose_text_is_what_its_description_says() -> None:
    text, lines = split_note(freeze_entry(SIGNER, 12, "done"))
    assert text == b"treehead/freeze/v1\nlog.example/x\n12\ndone\n"
    assert [line.name for line in lines] == ["log.example/x"]


def test_it_counts_at_its_own_index_and_under_its_own_key_only() -> None:
    entry = freeze_entry(SIGNER, 12)
    assert not is_freeze(entry, 11, KEY)
    assert not is_freeze(entry, 13, KEY)
    assert not is_freeze(entry, 12, OTHER.verifier)
    assert not is_freeze(entry, 12, Signer("log.example/y", bytes(range(32))).verifier)
    assert not is_freeze(freeze_entry(OTHER, 12), 12, KEY)
    with pytest.raises(VerificationError, match="of another log, or of another index"):
        open_freeze(entry, 13, KEY)


def test_every_flipped_bit_is_refused() -> None:
    entry = freeze_entry(SIGNER, 12, "x")
    for at in range(8 * len(entry)):
        changed = bytearray(entry)
        changed[at // 8] ^= 1 << at % 8
        assert not is_freeze(bytes(changed), 12, KEY), at


@pytest.mark.parametrize(
    "text",
    [
        "treehead/freeze/v1\nlog.example/x\n12\n",
        "treehead/freeze/v1\nlog.example/x\n12\na\nb\n",
        "treehead/freeze/v1\nlog.example/x\n012\na\n",
        "treehead/freeze/v1\nlog.example/x\n-1\na\n",
        "treehead/freeze/v1\n\n12\na\n",
        "treehead/freeze/v2\nlog.example/x\n12\na\n",
        "treehead/freeze/v1\nlog.example/x\n12\n" + "a" * 1001 + "\n",
    ],
)
def test_what_format_does_not_write_is_refused_even_when_signed(text: str) -> None:
    with pytest.raises(FormatError):
        parse_freeze(text.encode())
    assert not is_freeze(sign_note(text.encode(), [SIGNER]), 12, KEY)


@pytest.mark.parametrize("reason", ["a\nb", "a\rb", "\x00", "x" * 1001, "ü" * 501, "\udcff"])
def test_a_reason_that_is_too_long_or_not_one_line_is_refused(reason: str) -> None:
    with pytest.raises(FormatError):
        freeze_entry(SIGNER, 1, reason)


@given(st.integers(0, 2**63 - 1), reasons, st.sampled_from(["log.example/x", "treehead/freeze/v1", "12"]))
def test_no_freeze_is_a_checkpoint_and_no_checkpoint_is_a_freeze(index: int, reason: str, origin: str) -> None:
    with pytest.raises(TreeheadError):
        parse_checkpoint(Freeze(origin, index, reason).format(), extensions=True)
    for extension in ((), (reason or "x",)):
        with pytest.raises(TreeheadError):
            parse_freeze(Checkpoint(origin, index, bytes(32), extension).format())
