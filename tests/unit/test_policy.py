"""Policies: whose signatures make a checkpoint trusted."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import flip, mutations
from tests.support.rfc6962 import Tree
from tests.support.skips import vectors
from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError, VerificationError
from tlog.merkle import EMPTY_ROOT
from tlog.note import SignatureLine, Signer, parse_vkey, sign_note
from tlog.policy import MAX_POLICY_SIZE, Policy, parse_policy

LOG, ROTATED, OTHER = (Signer(name, bytes([seed]) * 32) for seed, name in enumerate(["log", "log", "other"]))
VKEY = LOG.verifier.vkey
ROOT = Tree([b"entry"]).mth(0, 1)
HEAD = Checkpoint("log", 1, ROOT)
POLICY = Policy.of_log(VKEY)


def refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_policy(text.encode("utf-8", "surrogateescape"))


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_that_the_log_signed_opens() -> None:
    assert POLICY.open_checkpoint(sign_note(HEAD.format(), [LOG])) == HEAD
    assert POLICY.open_checkpoint(sign_note(HEAD.format(), [OTHER, LOG])) == HEAD
    empty = Checkpoint("log", 0, EMPTY_ROOT)
    assert POLICY.open_checkpoint(sign_note(empty.format(), [LOG])) == empty


def test_any_one_of_the_keys_of_an_origin_is_enough() -> None:
    policy = parse_policy(f"log {VKEY}\nlog {ROTATED.verifier.vkey}\nquorum none\n".encode())
    for signers in ([LOG], [ROTATED], [LOG, ROTATED]):
        assert policy.open_checkpoint(sign_note(HEAD.format(), signers)) == HEAD
    broken = SignatureLine("log", ROTATED.verifier.key_id, LOG.sign(HEAD.format())).format()
    with pytest.raises(VerificationError):
        policy.open_checkpoint(sign_note(HEAD.format(), [LOG]) + broken)


def test_a_checkpoint_of_an_unknown_origin_is_refused_whoever_signed_it() -> None:
    for origin in ("other", "log2", "lo", "LOG", "log "):
        note = sign_note(Checkpoint(origin, 1, ROOT).format(), [LOG, OTHER])
        with pytest.raises(VerificationError, match="is trusted"):
            POLICY.open_checkpoint(note)
    with pytest.raises(VerificationError, match="is trusted"):
        Policy(()).open_checkpoint(sign_note(HEAD.format(), [LOG]))


def test_the_key_of_another_trusted_log_does_not_count() -> None:
    policy = Policy((LOG.verifier, OTHER.verifier))
    with pytest.raises(VerificationError, match="no signature by a known key"):
        policy.open_checkpoint(sign_note(HEAD.format(), [OTHER]))


def test_a_checkpoint_without_a_signature_that_holds_is_refused() -> None:
    for note in (
        sign_note(HEAD.format(), [ROTATED]),
        sign_note(HEAD.format(), [LOG, LOG]),
        HEAD.format() + b"\n" + SignatureLine("log", LOG.verifier.key_id, bytes(64)).format(),
    ):
        with pytest.raises(VerificationError):
            POLICY.open_checkpoint(note)
    for note in (HEAD.format(), HEAD.format() + b"\n", sign_note(b"\n", [LOG]), sign_note(b"log\n1\n", [LOG])):
        with pytest.raises(FormatError):
            POLICY.open_checkpoint(note)


def test_one_flipped_bit_anywhere_refuses_the_checkpoint() -> None:
    note = sign_note(HEAD.format(), [LOG])
    for bit in range(8 * len(note)):
        with pytest.raises((FormatError, VerificationError)):
            POLICY.open_checkpoint(flip(note, bit))


def test_extension_lines_are_refused_though_signed() -> None:
    note = sign_note(Checkpoint("log", 1, ROOT, ("extension",)).format(), [LOG])
    with pytest.raises(FormatError, match="extension lines"):
        POLICY.open_checkpoint(note)


def test_size_0_with_the_root_of_another_size_is_refused_though_signed() -> None:
    with pytest.raises(VerificationError, match="size 0"):
        POLICY.open_checkpoint(sign_note(Checkpoint("log", 0, ROOT).format(), [LOG]))


# -------------------------------------------------------------------------------------------------------------- files


def test_a_policy_names_logs_and_a_quorum() -> None:
    text = f"# a comment\n\n \t\n  # indented\nlog {VKEY}\n\tlog\t{OTHER.verifier.vkey}  url \nquorum none"
    assert parse_policy(text.encode()) == Policy((LOG.verifier, OTHER.verifier))
    assert parse_policy(b"quorum none\n") == Policy(())
    assert parse_policy(f"quorum  none\nlog {VKEY}\n".encode()) == POLICY


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "# quorum none\n", f"log {VKEY}\n", "quorum\n", "quorum none\nquorum none\n", "quorum none none\n"),
        *("quorum w\n", "quorum NONE\n", "Quorum none\n"),
        *("quorum none # comment\n", "quorum none\r\n", "quorum\x00none\n"),
        *("quorum\u00a0none\n", "quorum\u2003none\n"),
        *("quorum none\nunknown\n", "quorum none\n\x7f\n", "quorum none\x0b\n"),
        *("quorum none\nlog\n", "quorum none\nlog x\n"),
        *(f"quorum none\nlog {VKEY} url more\n", f"quorum none\n{VKEY}\n"),
        *(f"quorum none\nlog {VKEY}\nlog {VKEY}\n", f"quorum none\nlog {VKEY}\nlog {VKEY} url\n"),
        *(f"quorum none\nwitness w {VKEY}\n", "quorum none\ngroup g any w\n", "witness\n", "group\n"),
        *("quorum none\nlog \udcff+00000000+AAAA\n", "quorum none\nlog \udced\udca0\udc80\n"),
    ],
)  # fmt: skip
def test_another_policy_is_refused(text: str) -> None:
    refused(text)


def test_one_key_under_two_names_is_refused() -> None:
    twice = Signer("name", bytes(32)).verifier
    assert twice.public_key == LOG.verifier.public_key
    refused(f"log {VKEY}\nlog {twice.vkey}\nquorum none\n")


def test_junk_in_a_name_never_becomes_another_name() -> None:
    replaced = Signer("log\ufffd", bytes(32)).verifier.vkey
    assert parse_policy(f"log {replaced}\nquorum none\n".encode()).logs[0].name == "log\ufffd"
    with pytest.raises(FormatError):
        parse_policy(b"log " + replaced.encode().replace("\ufffd".encode(), b"\xff") + b"\nquorum none\n")


def test_a_policy_of_more_than_a_mebibyte_is_refused() -> None:
    comment = "#" * (MAX_POLICY_SIZE - 12) + "\nquorum none"
    assert len(comment) == MAX_POLICY_SIZE
    assert parse_policy(comment.encode()) == Policy(())
    refused(comment + "\n")


def test_thirty_two_logs_are_read() -> None:
    keys = [Signer(f"log{number}", bytes([number]) * 32).verifier for number in range(32)]
    text = "".join(f"log {key.vkey}\n" for key in keys) + "quorum none\n"
    assert parse_policy(text.encode()).logs == tuple(keys)


@given(mutations(st.just(f"log {VKEY} url\n# c\nquorum none\n".encode()), b" \t\n#\xff\x00l"))
def test_any_other_policy_is_a_format_error(data: bytes) -> None:
    with suppress(FormatError):
        assert set(parse_policy(data).logs) <= {LOG.verifier}


def test_a_policy_of_one_log_needs_a_vkey() -> None:
    assert POLICY.logs == (parse_vkey(VKEY),)
    with pytest.raises(FormatError):
        Policy.of_log(LOG.skey)


def test_the_policies_of_others_are_refused_because_they_name_witnesses_or_are_invalid() -> None:
    """A quorum that is not checked must never look as if it were. Among them the three that repeat one key."""
    case = json.loads((vectors("policy") / "policies.json").read_text())
    refused(case["vkey_style_real"])
    for item in [*case["vkey_style_valid"], *case["vkey_style_implementation_specific"], *case["vkey_style_invalid"]]:
        refused(item["policy"])
    for text in case["vkey_style_group_thresholds"]:
        refused(text)
