"""Numbers, base64, hashes and lines exactly as the specifications allow, never as Python would also take them.

`int("1_000")`, `int("٣")`, `b64decode("AA==junk")` and `str.splitlines()` at U+2028 all succeed in Python; in signed
text each of them would give two spellings of one value. Every parser of the core therefore goes through this module.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error

from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE, MAX_SIZE

MAX_NAME_SIZE = 255
"""Largest key name and origin in bytes (tlog-checkpoint 1.1)."""

_DIGITS = frozenset(b"0123456789")
_MAX_DIGITS = len(str(MAX_SIZE))
_NO_CONTROL = b"\n" + bytes(range(0x20, 0x100))
_NAME = re.compile(r"[^\s\x00-\x1f+]+")


def parse_decimal(text: bytes, *, maximum: int = MAX_SIZE) -> int:
    """Parse an ASCII decimal: digits only, no sign, no leading zero, at most `maximum` (tlog-checkpoint).

    Raises:
        FormatError: Anything else.
    """
    if not text or len(text) > _MAX_DIGITS or not _DIGITS.issuperset(text) or (text[:1] == b"0" and text != b"0"):
        raise FormatError(f"not a decimal number: {text[:40]!r}")
    value = int(text)
    if value > maximum:
        raise FormatError(f"number above {maximum}: {text!r}")
    return value


def parse_base64(text: bytes) -> bytes:
    """Parse standard base64 with padding, canonical only: zero trailing bits, no other byte (RFC 4648 §4).

    Raises:
        FormatError: Anything that encoding the result would not give back.
    """
    try:
        value = b64decode(text, validate=True)
    except (Base64Error, ValueError) as error:
        raise FormatError(f"not base64: {text[:40]!r}") from error
    if b64encode(value) != text:
        raise FormatError(f"not canonical base64: {text[:40]!r}")
    return value


def parse_hash(text: bytes) -> bytes:
    """Parse the canonical base64 of a hash of 32 bytes.

    Raises:
        FormatError: Anything else.
    """
    value = parse_base64(text)
    if len(value) != HASH_SIZE:
        raise FormatError(f"a hash of {len(value)} bytes instead of {HASH_SIZE}")
    return value


def split_lines(text: bytes) -> list[bytes]:
    """Split text at LF, and only there; the last line must end in LF too. Lines come without it.

    Raises:
        FormatError: The text is empty or does not end in LF.
    """
    if text[-1:] != b"\n":
        raise FormatError("text does not end in a line feed")
    return text[:-1].split(b"\n")


def check_text(text: bytes) -> None:
    """Refuse text that is not UTF-8 or holds a control character other than LF (signed-note).

    Raises:
        FormatError: It is, or does.
    """
    if text.translate(None, _NO_CONTROL):
        raise FormatError("text holds a control character")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("text is not UTF-8") from error


def check_name(name: str) -> None:
    """Refuse a key name that is empty, over 255 bytes, or holds white space, a control character or "+" (signed-note).

    Raises:
        FormatError: It is, or does.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:  # the surrogates that stand for junk bytes on a command line
        raise FormatError("a key name is not UTF-8") from error
    if not 1 <= size <= MAX_NAME_SIZE:
        raise FormatError(f"a key name has 1 to {MAX_NAME_SIZE} bytes")
    if not _NAME.fullmatch(name):
        raise FormatError(f"not a key name: {name[:40]!r}")
