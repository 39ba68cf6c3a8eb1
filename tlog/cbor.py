"""Deterministic CBOR (RFC 8949 §4.2.1), in the small profile that Treehead uses.

    values   unsigned and negative integers of 64 bits, byte strings, text in UTF-8, arrays, maps, false, true, null
    keys     text or integers
    refused  floats, tags, other simple values, indefinite lengths, duplicate keys, more than 16 levels, trailing bytes

Map keys are sorted bytewise by their encoded form; cbor2's own canonical mode sorts by length first (RFC 7049), so the
order is made here. Reading re-encodes and compares: exactly one byte string stands for each value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Never, TypeAlias, cast

import cbor2

from tlog.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[int | str, Value] | None"
"""What can be encoded."""

MAX_DEPTH = 16
"""Levels of arrays and maps; far above any format of ours, far below the stack."""

_INT_LIMIT = 2**64


def _refuse_tag(_content: object, _immutable: object) -> Never:
    raise FormatError("tags are outside the CBOR profile")


_BUILT_IN_TAGS = (*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_NO_TAGS = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)  # cbor2 would build dates, patterns, fractions … from these


def encode(value: Value) -> bytes:
    """Encode a value of the profile (RFC 8949 §4.2.1).

    Raises:
        FormatError: The value is outside the profile.
    """
    return cbor2.dumps(_ordered(value, MAX_DEPTH))


# Encodings put together from encoded parts, for formats whose parts are known to be of the profile and in order.


def encode_head(major: int, value: int) -> bytes:
    """Return the head of an item: its major type, 0 to 7, and its value below 2^64, in the shortest form."""
    if value < 24:
        return bytes((major << 5 | value,))
    size = 0 if value < 1 << 8 else 1 if value < 1 << 16 else 2 if value < 1 << 32 else 3
    return bytes((major << 5 | 24 + size,)) + value.to_bytes(1 << size, "big")


def encode_bytes(data: bytes) -> bytes:
    """Encode a byte string."""
    return encode_head(2, len(data)) + data


def encode_array(items: Sequence[bytes]) -> bytes:
    """Encode an array of items that are encoded already."""
    return encode_head(4, len(items)) + b"".join(items)


def decode(data: bytes) -> Value:
    """Decode exactly one value that is encoded as `encode` would.

    Raises:
        FormatError: Not CBOR, not deterministic, outside the profile, or bytes are left over.
    """
    try:
        value = cast(
            "Value",
            cbor2.loads(
                data,
                max_depth=MAX_DEPTH + 1,
                allow_indefinite=False,
                allow_duplicate_keys=False,
                semantic_decoders=_NO_TAGS,
            ),
        )
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise FormatError(f"not deterministic CBOR: {error}") from error
    if encode(value) != data:
        raise FormatError("not deterministic CBOR: another encoding of the same value")
    return value


def _ordered(value: object, depth: int) -> Value:
    """Return the value with the keys of every map in bytewise order, refusing what is outside the profile."""
    if value is None or isinstance(value, (bool, bytes)):
        return value
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, int):
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise FormatError("integer of more than 64 bits")
        return value
    if not isinstance(value, (list, dict)) or depth == 0:
        raise FormatError(f"not a value of the CBOR profile: {type(value).__name__}, or nested too deep")
    if isinstance(value, list):
        return [_ordered(item, depth - 1) for item in value]
    if not all(isinstance(key, (int, str)) and not isinstance(key, bool) for key in value):
        raise FormatError("map key is neither text nor an integer")
    keys = sorted(value, key=_encoded_key)
    return {key: _ordered(value[key], depth - 1) for key in keys}


@lru_cache(maxsize=256)  # the keys of a format are few, and come again with each value
def _encoded_key(key: int | str) -> bytes:
    return cbor2.dumps(_ordered(key, 0))


def _utf8(text: str) -> str:
    """Return the text, refusing lone surrogates, which no UTF-8 can stand for."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("text is not Unicode") from error
    return text
