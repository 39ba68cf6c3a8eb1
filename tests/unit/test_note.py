"""Signed notes: the vectors of Go, C2SP, Sigsum and others, the rules one by one, and openssl as a second opinion."""

import base64
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutation import flip, mutations
from tests.support.rfc8032 import verifies
from tests.support.skips import need_tool, vectors
from tlog.errors import FormatError, VerificationError
from tlog.note import (
    MAX_NOTE_SIZE,
    MAX_SIGNATURES,
    SignatureLine,
    Signer,
    Verifier,
    open_note,
    parse_skey,
    parse_vkey,
    sign_note,
    split_note,
)

ALICE = Signer("alice.example/log", bytes(range(32)))
BOB = Signer("bob.example/log", bytes(range(1, 33)))
TEXT = b"text\n\nof several lines\n"

names = st.text(st.characters(exclude_characters="+", exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=60)
seeds = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), max_size=80).map(
    lambda text: f"{text}\n".encode()
)


def load(name: str) -> Any:  # noqa: ANN401  # JSON of others
    return json.loads((vectors("signed_note") / name).read_text())


def unopened(note: bytes, *verifiers: Verifier) -> None:
    """Check that a note is refused, as malformed or as wrong."""
    with pytest.raises((FormatError, VerificationError)):
        open_note(note, verifiers)


# --------------------------------------------------------------------------------------------------------------- keys


@given(names, seeds)
def test_every_key_is_read_back_from_its_text(name: str, seed: bytes) -> None:
    signer = Signer(name, seed)
    assert parse_vkey(signer.verifier.vkey) == signer.verifier
    assert parse_skey(signer.skey).skey == signer.skey
    assert parse_skey(signer.skey).verifier == signer.verifier


@given(mutations(st.sampled_from([ALICE.verifier.vkey, BOB.verifier.vkey]).map(str.encode), b"+/=aA0 \n\xff"))
def test_any_other_vkey_is_a_format_error(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with suppress(FormatError):
        assert parse_vkey(text).vkey == text


@given(mutations(st.just(ALICE.skey.encode()), b"+/=aA0 \n\xff"))
def test_any_other_skey_is_a_format_error(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with suppress(FormatError):
        assert parse_skey(text).skey == text


def test_a_refused_private_key_is_not_shown() -> None:
    secret = ALICE.skey.split("+", 4)[4]
    for text in (ALICE.skey[:-1], ALICE.skey.removeprefix("PRIVATE+"), ALICE.skey.replace("alice", "malice")):
        with pytest.raises(FormatError) as caught:
            parse_skey(text)
        assert secret[:8] not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert secret not in repr(ALICE)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\n", "a\u2028", "\udcff", "a" * 256])
def test_a_key_with_another_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        Verifier(name, ALICE.verifier.public_key)
    with pytest.raises(FormatError):
        Signer(name, bytes(32))
    encoded = base64.b64encode(b"\x01" + ALICE.verifier.public_key).decode()
    with pytest.raises(FormatError):
        parse_vkey(f"{name}+00000000+{encoded}")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        Verifier("name", (ALICE.verifier.public_key * 2)[:size])
    with pytest.raises(FormatError):
        Signer("name", bytes(size))


def test_every_part_of_a_go_vkey_and_every_change_of_it_is_refused() -> None:
    case = load("go_sumdb_note.json")
    vkey = case["vkey"]
    assert parse_vkey(vkey).vkey == vkey
    others = {vkey[start:end] for start in range(len(vkey)) for end in range(start, len(vkey) + 1)} - {vkey}
    others |= {vkey[:at] + chr(ord(vkey[at]) + 1) + vkey[at + 1 :] for at in range(len(vkey))}
    others |= {*case["bad_vkeys"], vkey.replace("c74f20a3", "C74F20A3"), vkey + "=", vkey + "\n", " " + vkey}
    for other in others:
        with pytest.raises(FormatError):
            parse_vkey(other)


def test_the_vkeys_of_others_are_read_when_they_are_of_type_1() -> None:
    case = load("formats_vkeys.json")
    for item in case["valid_vkeys"]:
        if item["type"] == 1:
            assert parse_vkey(item["vkey"]).vkey == item["vkey"]
            continue
        with pytest.raises(FormatError, match="type 0x01"):
            parse_vkey(item["vkey"])
    for item in case["invalid_vkeys"]:
        with pytest.raises(FormatError):
            parse_vkey(item["vkey"])
    pair = case["ed25519_pair"]
    assert parse_skey(pair["skey"]).verifier.vkey == pair["vkey"]


def test_a_vkey_with_a_wrong_key_id_is_refused() -> None:
    """Lenient elsewhere: transparency-dev/formats does not compare the ID of ML-DSA keys. Here the type is refused."""
    for item in load("formats_vkeys.json")["vkey_with_wrong_key_id"]:
        with pytest.raises(FormatError):
            parse_vkey(item["vkey"])
    with pytest.raises(FormatError, match="key ID does not belong"):
        parse_vkey(ALICE.verifier.vkey.replace(ALICE.verifier.key_id.hex(), "00000000"))


def test_a_plus_in_the_base64_is_no_separator() -> None:
    for item in ("vkey_with_plus_in_base64", "vkey_plus_heavy"):
        with pytest.raises(FormatError, match="of the type 0x01"):  # split rightly, and of another type
            parse_vkey(load("sigsum_lines.json")[item]["vkey"])
    signer = next(
        s for s in (Signer("name", bytes([seed]) * 32) for seed in range(256)) if s.verifier.vkey.count("+") > 2
    )
    assert parse_vkey(signer.verifier.vkey) == signer.verifier


def test_the_key_id_of_rekor() -> None:
    case = load("rekor_tiles_keyids.json")
    pem = case["ed25519_private_key_pem"].split("\n")[1]
    verifier = Signer(case["name"], base64.b64decode(pem)[-32:]).verifier
    assert int.from_bytes(verifier.key_id, "big") == case["ed25519"]["key_id_uint32"]
    assert case["ed25519"]["full_sha256"].startswith(verifier.key_id.hex())
    assert parse_vkey(case["witness_policy_yaml_vkey"]).name == "rekor-witness-test"


# ------------------------------------------------------------------------------------------------------------ Ed25519

RFC_8032 = [  # seed, public key, message, signature (§7.1, tests 1 to 3)
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize("number", range(len(RFC_8032)))
def test_the_test_vectors_of_rfc_8032(number: int) -> None:
    seed, public_key, message, signature = map(bytes.fromhex, RFC_8032[number])
    signer = Signer("name", seed)
    assert signer.verifier.public_key == public_key
    assert signer.sign(message) == signature
    signer.verifier.verify(message, signature)
    assert verifies(public_key, message, signature)
    for bit in range(0, 512, 13):
        with pytest.raises(VerificationError):
            signer.verifier.verify(message, flip(signature, bit))


@pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(VerificationError, match=f"{size} bytes instead of 64"):
        ALICE.verifier.verify(TEXT, (ALICE.sign(TEXT) * 2)[:size])


def test_keys_that_no_honest_signer_has_are_refused_and_other_signatures_judged_as_rfc_8032_does() -> None:
    """The 914 edge cases of CCTV: their flags say what is odd, not who is right. The oracle is the code of RFC 8032."""
    judged = accepted = 0
    bad_keys = {"low_order_A", "low_order_component_A", "non_canonical_A"}
    for item in json.loads((vectors("ed25519") / "cctv_ed25519vectors.json").read_text()):
        key, signature, message = bytes.fromhex(item["key"]), bytes.fromhex(item["sig"]), item["msg"].encode()
        if bad_keys & set(item["flags"] or ()):
            with pytest.raises(FormatError):
                Verifier("name", key)
            continue
        try:
            Verifier("name", key).verify(message, signature)
            holds = True
        except VerificationError:
            holds = False
        judged, accepted = judged + 1, accepted + holds
        if holds:
            assert verifies(key, message, signature)
        else:  # libsodium refuses an R of small order too, which RFC 8032 §6 leaves open
            assert not verifies(key, message, signature) or "low_order_R" in item["flags"]
    assert (judged, accepted) == (28, 1)


def test_openssl_accepts_our_signatures_and_refuses_others(tmp_path: Path) -> None:
    openssl = need_tool("openssl")
    der = bytes.fromhex("302a300506032b6570032100") + ALICE.verifier.public_key
    text, signed = (
        open_note(sign_note(TEXT, [BOB, ALICE]), [ALICE.verifier])[0],
        split_note(sign_note(TEXT, [BOB, ALICE]))[1],
    )
    files = {"key": der, "text": text, "good": signed[1].signature, "bob": signed[0].signature}
    files["bad"] = flip(signed[1].signature, 300)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, expected in (("good", 0), ("bob", 1), ("bad", 1)):
        command = [openssl, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key", "-rawin", "-in", "text"]
        done = subprocess.run([*command, "-sigfile", name], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == expected, done


def test_a_signature_of_openssl_opens_a_note(tmp_path: Path) -> None:
    openssl = need_tool("openssl")
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "key").write_bytes(bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32)))
    command = [openssl, "pkeyutl", "-sign", "-keyform", "DER", "-inkey", "key", "-rawin", "-in", "text", "-out", "sig"]
    subprocess.run(command, cwd=tmp_path, check=True)
    line = SignatureLine(ALICE.verifier.name, ALICE.verifier.key_id, (tmp_path / "sig").read_bytes()).format()
    assert open_note(TEXT + b"\n" + line, [ALICE.verifier]) == (TEXT, [ALICE.verifier])
    assert TEXT + b"\n" + line == sign_note(TEXT, [ALICE])


# -------------------------------------------------------------------------------------------------------------- notes


def test_the_example_of_the_specification_opens() -> None:
    case = load("c2sp_example.json")
    verifier = parse_vkey(case["vkey"])
    assert open_note(case["signed_note"].encode(), [verifier]) == (case["text"].encode(), [verifier])
    for item in case["parse_only"]:  # the text itself holds an empty line
        text, lines = split_note(item["note"].encode())
        assert text.endswith("ed è subito sera.\n".encode())
        assert [line.name for line in lines] == ["quasimodo.example/salvatore"]


def test_the_notes_of_go_are_signed_to_the_byte() -> None:
    case = load("go_sumdb_note.json")
    peter, enoch = parse_skey(case["skey"]), Signer("EnochRoot", bytes.fromhex(case["enoch_seed_hex"]))
    assert (peter.verifier.vkey, enoch.verifier.vkey) == (case["vkey"], case["vkey2"])
    text = case["text"].encode()
    assert sign_note(text, [peter]) == case["signed_note"].encode()
    assert sign_note(text, [peter, enoch]) == case["signed_note_two_signers"].encode()


def test_the_notes_that_go_opens_or_refuses() -> None:
    for case in load("go_sumdb_note.json")["open_cases"]:
        if "sign_text" in case:
            with pytest.raises(FormatError):
                sign_note(case["sign_text"].encode(), [ALICE])
            continue
        note = case["note"].encode() if "note" in case else base64.b64decode(case["note_b64"])
        verifiers = [parse_vkey(vkey) for vkey in case["vkeys"]]
        if case["ok"] and not case["name"].startswith("duplicated"):
            _, signed = open_note(note, verifiers)
            assert [verifier.name for verifier in signed] == case["verified"]
        elif case["ok"]:  # Go keeps the first of two lines; tlog-checkpoint 1.1 forbids them
            with pytest.raises(VerificationError, match="two signatures of PeterNeumann"):
                open_note(note, verifiers)
        else:
            unopened(note, *verifiers)


def test_the_signature_lines_of_sigsum() -> None:
    """Lenient elsewhere: Sigsum skips a line of 3 bytes; signed-note has no such line, and Go refuses the note too."""
    case = load("sigsum_lines.json")
    for item in [*case["signature_lines"], {**case["cosignature_line"], "ok": True, "name": "example.org/witness-key"}]:
        note = TEXT + f"\n{item['line']}\n".encode()
        if item["ok"] is not True:
            with pytest.raises(FormatError):
                split_note(note)
            continue
        (line,) = split_note(note)[1]
        assert (line.name, line.key_id.hex()) == (item["name"], item["key_id"])


@given(texts, st.lists(st.sampled_from([ALICE, BOB]), unique=True, min_size=1))
def test_every_signed_text_is_opened_again(text: bytes, signers: list[Signer]) -> None:
    verifiers = [signer.verifier for signer in signers]
    assert open_note(sign_note(text, signers), [ALICE.verifier, BOB.verifier]) == (text, verifiers)


@given(mutations(st.builds(sign_note, texts, st.sampled_from([[ALICE], [ALICE, BOB]])), "— \n+A=/ é\x00".encode()))
def test_what_is_split_is_written_back_to_the_byte(note: bytes) -> None:
    with suppress(FormatError):
        text, lines = split_note(note)
        assert text + b"\n" + b"".join(line.format() for line in lines) == note


@given(st.binary(max_size=200))
def test_junk_is_a_format_error(note: bytes) -> None:
    with suppress(FormatError):
        split_note(note)


def test_one_flipped_bit_anywhere_refuses_the_note() -> None:
    note = sign_note(TEXT, [ALICE])
    for bit in range(8 * len(note)):
        unopened(flip(note, bit), ALICE.verifier)


def test_one_missing_or_one_more_byte_anywhere_refuses_the_note() -> None:
    note = sign_note(TEXT, [ALICE])
    for at in range(len(note)):
        unopened(note[:at] + note[at + 1 :], ALICE.verifier)
        unopened(note[:at], ALICE.verifier)
        for more in b"\n A=+\r":
            unopened(note[:at] + bytes([more]) + note[at:], ALICE.verifier) if note[at] != more else None


def test_lines_of_unknown_keys_are_ignored_even_where_half_is_known() -> None:
    text, (line,) = split_note(sign_note(TEXT, [ALICE]))
    unknown = [
        SignatureLine("carol.example/log", line.key_id, line.signature),
        SignatureLine(line.name, b"\x00\x00\x00\x00", line.signature),
        SignatureLine(line.name, BOB.verifier.key_id, b"\x00"),
    ]
    note = text + b"\n" + b"".join(other.format() for other in [*unknown, line, *unknown, *unknown])
    assert open_note(note, [ALICE.verifier, BOB.verifier]) == (TEXT, [ALICE.verifier])
    with pytest.raises(VerificationError, match="no signature by a known key"):
        open_note(text + b"\n" + b"".join(other.format() for other in unknown), [ALICE.verifier, BOB.verifier])
    with pytest.raises(VerificationError, match="no signature by a known key"):
        open_note(note, [])


def test_one_bad_signature_of_a_known_key_refuses_the_note() -> None:
    text, (alice, bob) = split_note(sign_note(TEXT, [ALICE, BOB]))
    for bad in (flip(bob.signature, 5), bob.signature[:-1], bob.signature + b"\x00", alice.signature):
        line = SignatureLine(bob.name, bob.key_id, bad)
        with pytest.raises(VerificationError, match="signature of bob"):
            open_note(text + b"\n" + alice.format() + line.format(), [ALICE.verifier, BOB.verifier])
        assert open_note(text + b"\n" + alice.format() + line.format(), [ALICE.verifier])[1] == [ALICE.verifier]


def test_two_lines_of_one_known_key_refuse_the_note() -> None:
    with pytest.raises(VerificationError, match="two signatures of alice"):
        open_note(sign_note(TEXT, [ALICE, BOB, ALICE]), [ALICE.verifier])
    assert open_note(sign_note(TEXT, [ALICE, BOB, ALICE]), [BOB.verifier])[1] == [BOB.verifier]


@pytest.mark.parametrize(
    "line",
    [
        *("", "—", "— ", "— name", "— name ", "— name AAAA", "— name AAAAAA", "— name AAAAAAB="),
        *("— name  AAAAAAA=", "-- name AAAAAAA="),
        *("—\u00a0name AAAAAAA=", "name AAAAAAA=", "— na+me AAAAAAA=", "— na\u2003me AAAAAAA="),
        *("— name AAAAAAA= ", "— name AAAAAAA=\r"),
        *("— name AAAA AAA=", " — name AAAAAAA=", "— name AAAAAA-_", f"— {'n' * 256} AAAAAAA="),
    ],
)  # fmt: skip
def test_a_malformed_line_refuses_the_note(line: str) -> None:
    good = sign_note(TEXT, [ALICE])
    unopened(good + f"{line}\n".encode(), ALICE.verifier)
    unopened(TEXT + f"\n{line}\n".encode(), ALICE.verifier)


def test_a_hundred_lines_and_one_mebibyte_are_read_and_no_more() -> None:
    line = SignatureLine("other", b"\x00" * 4, b"\x01").format()
    good = sign_note(TEXT, [ALICE])
    assert open_note(good + line * (MAX_SIGNATURES - 1), [ALICE.verifier])[1] == [ALICE.verifier]
    with pytest.raises(FormatError, match="more than 100 signatures"):
        open_note(good + line * MAX_SIGNATURES, [ALICE.verifier])
    room = MAX_NOTE_SIZE - len(sign_note(b"\n", [ALICE]))
    largest = sign_note(b"a" * room + b"\n", [ALICE])
    assert len(largest) == MAX_NOTE_SIZE == 1 << 20
    assert open_note(largest, [ALICE.verifier])[1] == [ALICE.verifier]
    with pytest.raises(FormatError, match="a note of more than 1048576 bytes"):
        open_note(sign_note(b"a" * room + b"a\n", [ALICE]), [ALICE.verifier])


@pytest.mark.parametrize("text", [b"", b"abc", b"abc\x00\n", b"abc\r\n", b"\xff\n", b"a\tb\n"])
def test_what_is_not_text_is_not_signed(text: bytes) -> None:
    with pytest.raises(FormatError):
        sign_note(text, [ALICE])


@settings(max_examples=20)
@given(texts)
def test_a_note_of_another_text_is_refused(text: bytes) -> None:
    if text != TEXT:
        lines = split_note(sign_note(TEXT, [ALICE]))[1]
        with pytest.raises(VerificationError):
            open_note(text + b"\n" + lines[0].format(), [ALICE.verifier])
