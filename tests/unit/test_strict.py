"""Numbers, base64, names and lines: what Python takes and the specifications do not."""

import base64
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.mutation import mutations
from tlog.errors import FormatError
from tlog.merkle import MAX_SIZE
from tlog.strict import check_name, check_text, parse_base64, parse_decimal, parse_hash, split_lines


def refused(parse: Callable[[bytes], object], text: bytes) -> None:
    with pytest.raises(FormatError):
        parse(text)


# ----------------------------------------------------------------------------------------------------------- decimals


@given(st.integers(0, MAX_SIZE))
@example(0)
@example(MAX_SIZE)
def test_every_size_is_read_back(value: int) -> None:
    assert parse_decimal(str(value).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "-1", "-0", "+1", "01", "00", "1_000", "٣", "¹", " 1", "1 ", "1\n", "\n1", "0x10", "1e3", "1.0", "1,0"),
        *("\x001", str(MAX_SIZE + 1), str(2**64), "9" * 19, "9" * 5000, "1" * 20),
    ],
)
def test_other_spellings_of_a_number_are_refused(text: str) -> None:
    refused(parse_decimal, text.encode())


@given(mutations(st.integers(0, 2**65).map(lambda value: str(value).encode())))
def test_a_decimal_is_what_the_rule_says(text: bytes) -> None:
    if re.fullmatch(rb"0|[1-9][0-9]*", text) and int(text) <= MAX_SIZE:
        assert parse_decimal(text) == int(text)
    else:
        refused(parse_decimal, text)


def test_a_maximum_is_the_largest_number_taken() -> None:
    assert parse_decimal(b"63", maximum=63) == 63
    with pytest.raises(FormatError, match="above 63"):
        parse_decimal(b"64", maximum=63)


# ------------------------------------------------------------------------------------------------------------- base64


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"", b""),
        (b"Zg==", b"f"),
        (b"Zm8=", b"fo"),
        (b"Zm9v", b"foo"),
        (b"Zm9vYg==", b"foob"),
        (b"Zm9vYmE=", b"fooba"),
        (b"Zm9vYmFy", b"foobar"),
    ],
)
def test_the_test_vectors_of_rfc_4648(text: bytes, value: bytes) -> None:
    assert parse_base64(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(b"Zg", b"Zg=", b"Zg===", b"Zh==", b"Zm9=", b"Zm8", b"=", b"====", b"Z", b"Zm9vY", b"Zg==Zg==", b"AA==junk"),
        *(b"Zm9v\n", b"Zm\n9v", b"Zm\r9v", b" Zm9v", b"Zm9v ", b"Zm-_", b"Zm9\x00", b"Zm9\xff", "Zm9é".encode()),
    ],
)
def test_other_spellings_of_base64_are_refused(text: bytes) -> None:
    refused(parse_base64, text)


@given(mutations(st.binary(max_size=40).map(base64.b64encode), b"A/+=-_\n "))
def test_only_the_encoding_of_a_value_is_read(text: bytes) -> None:
    try:
        value = parse_base64(text)
    except FormatError:
        return
    assert base64.b64encode(value) == text


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_hash_of_another_length_is_refused(size: int) -> None:
    refused(parse_hash, base64.b64encode(bytes(size)))


def test_a_hash_of_32_bytes_is_read() -> None:
    assert parse_hash(b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").hex().startswith("e3b0c44298fc1c14")


# ------------------------------------------------------------------------------------------------------ lines and text


def test_lines_end_at_lf_and_nowhere_else() -> None:
    text = "a\u2028b\rc\x85d\x0be\n\nf\n".encode()
    assert split_lines(text) == ["a\u2028b\rc\x85d\x0be".encode(), b"", b"f"]
    assert split_lines(b"\n") == [b""]


@pytest.mark.parametrize("text", [b"", b"a", b"a\nb", b"\nb", b"a\r"])
def test_text_without_a_last_lf_is_refused(text: bytes) -> None:
    refused(split_lines, text)


@pytest.mark.parametrize("byte", [*range(10), *range(11, 32)])
def test_control_characters_are_refused(byte: int) -> None:
    refused(check_text, b"text " + bytes([byte]) + b"\n")


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "é".encode()[:1]])
def test_what_is_not_utf_8_is_refused(text: bytes) -> None:
    refused(check_text, text)


def test_every_other_character_is_text() -> None:
    check_text("".join(map(chr, [10, *range(32, 0xD800), *range(0xE000, 0x11000)])).encode())


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a", "example.com/log", "é" * 127 + "a", "a" * 255, "名前", "\u200b", "—", "a\x7f"])
def test_a_name_is_taken(name: str) -> None:
    check_name(name)


# The white space of Unicode's property White_Space, which is what Go's unicode.IsSpace takes.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
)


@pytest.mark.parametrize("char", sorted({*WHITE_SPACE, "\u202f", "\u205f", "\u3000", "+", *map(chr, range(32))}))
def test_a_name_with_white_space_plus_or_a_control_character_is_refused(char: str) -> None:
    for name in (char, f"{char}name", f"na{char}me", f"name{char}"):
        with pytest.raises(FormatError):
            check_name(name)


@pytest.mark.parametrize("name", ["", "a" * 256, "é" * 128, "\ud800", "a\udcffb"])
def test_a_name_of_another_length_or_outside_of_utf_8_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        check_name(name)
