"""Deterministic CBOR: the examples of RFC 8949, and everything that the profile leaves out."""

import time
from contextlib import suppress
from itertools import pairwise

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import mutations
from tlog.cbor import MAX_DEPTH, Value, decode, encode, encode_array, encode_bytes, encode_head
from tlog.errors import FormatError

EXAMPLES: dict[str, Value] = {
    "00": 0,
    "01": 1,
    "0a": 10,
    "17": 23,
    "1818": 24,
    "1819": 25,
    "1864": 100,
    "1903e8": 1000,
    "1a000f4240": 1000000,
    "1b000000e8d4a51000": 1000000000000,
    "1bffffffffffffffff": 18446744073709551615,
    "3bffffffffffffffff": -18446744073709551616,
    "20": -1,
    "29": -10,
    "3863": -100,
    "3903e7": -1000,
    "f4": False,
    "f5": True,
    "f6": None,
    "40": b"",
    "4401020304": b"\x01\x02\x03\x04",
    "60": "",
    "6161": "a",
    "6449455446": "IETF",
    "62225c": '"\\',
    "62c3bc": "ü",
    "63e6b0b4": "水",
    "64f0908591": "\U00010151",
    "80": [],
    "83010203": [1, 2, 3],
    "8301820203820405": [1, [2, 3], [4, 5]],
    "98190102030405060708090a0b0c0d0e0f101112131415161718181819": list(range(1, 26)),
    "a0": {},
    "a201020304": {1: 2, 3: 4},
    "a26161016162820203": {"a": 1, "b": [2, 3]},
    "826161a161626163": ["a", {"b": "c"}],
    "a56161614161626142616361436164614461656145": {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"},
}
"""Those examples of RFC 8949 appendix A that the profile can say."""

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64 - 1), st.binary(max_size=300), st.text(max_size=70)
)
keys = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=30))
values: st.SearchStrategy[Value] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=25,
)


def refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data)


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_rfc_8949(text: str) -> None:
    assert encode(EXAMPLES[text]).hex() == text
    decoded = decode(bytes.fromhex(text))
    assert decoded == EXAMPLES[text]
    assert type(decoded) is type(EXAMPLES[text])


@given(values)
def test_every_value_of_the_profile_is_read_back(value: Value) -> None:
    data = encode(value)
    assert decode(data) == value
    assert cbor2.loads(data) == value


@given(st.dictionaries(keys, st.integers(0, 3), max_size=40))
def test_map_keys_are_in_bytewise_order_of_their_encoding(value: dict[int | str, int]) -> None:
    ordered = decode(encode(dict[int | str, Value](value)))
    assert isinstance(ordered, dict)
    encoded = [cbor2.dumps(key) for key in ordered]
    assert all(first < second for first, second in pairwise(encoded))


def test_the_order_is_that_of_rfc_8949_and_not_length_first() -> None:
    wanted: list[int | str] = [10, 100, -1, "z", "aa"]  # §4.2.1; §4.2.3 would have 10, -1, 100, "z", "aa"
    data = encode(dict.fromkeys(reversed(wanted)))
    assert data.hex() == "a50af61864f620f6617af6626161f6"
    assert list(cbor2.loads(data)) == wanted
    refused(bytes.fromhex("a50af620f61864f6617af6626161f6"))


@given(
    st.one_of(st.binary(max_size=60), mutations(values.map(encode), b"\x00\x18\xa1\xc0\xd8\xf9\xff\x5f\x7f\x9f\xbf"))
)
def test_anything_else_is_a_format_error(data: bytes) -> None:
    try:
        value = decode(data)
    except FormatError:
        return
    assert encode(value) == data


def head(major: int, argument: int) -> bytes:
    """Return the shortest head of a data item."""
    for size, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if argument < 24:
            break
        if argument < 256**size:
            return bytes([major << 5 | code]) + argument.to_bytes(size, "big")
    return bytes([major << 5 | argument])


TAGS = sorted(
    {*range(300), *range(0, 70_001, 137), 1004, 1040, 43_000, 43_001, 55_799, 65_535, 65_536, 2**32, 2**64 - 1}
)
CONTENTS = (
    "00",
    "20",
    "40",
    "4101",
    "60",
    "6161",
    "80",
    "820102",
    "a0",
    "a10102",
    "f4",
    "f6",
    "6a323032362d30312d3031",
)


def test_every_tag_is_refused_whatever_it_holds() -> None:
    for tag in TAGS:
        for content in CONTENTS:
            item = head(6, tag) + bytes.fromhex(content)
            for data in (item, b"\x81" + item, b"\xa1" + item + b"\x00", b"\xa1\x00" + item):
                refused(data)


@pytest.mark.parametrize(
    "text",
    [
        *("f90000", "f93c00", "fa47c35000", "fb3ff199999999999a", "f97e00", "f97c00", "fb7ff0000000000000"),  # floats
        *("f7", "f0", "f8ff", "f820", "e0", "f3", "f818", "f814", "f816"),  # undefined and simple values
        *(
            "5f42010243030405ff",
            "5fff",
            "7f657374726561646d696e67ff",
            "7fff",
            "9fff",
            "9f0102ff",
            "bfff",
            "bf6161 01ff",
        ),
        *("ff", "81ff", "a1ff", "1f", "3f", "df00"),  # breaks and reserved lengths
        *("a2 0101 0102", "a2 616101 616102", "a2 0101 f502", "a1 a2010201020 0"),  # duplicate keys
        *("a2 02 00 01 00", "a2 6161 00 01 00", "a2 20 00 1864 00"),  # another order
        *(
            "1800",
            "1817",
            "190000",
            "1900ff",
            "1a0000ffff",
            "1b00000000ffffffff",
            "3800",
            "5800",
            "7800",
            "9800",
            "b800",
        ),
        *("580161", "7900016 1", "98020102", "b9000101 02"),  # longer lengths than needed
        *("0000", "f6f6", "00ff", "8000"),  # bytes left over
        *("", "18", "19ff", "41", "6261", "81", "a1", "a101", "1bffff", "9bffffffffffffffff", "5bffffffffffffffff"),
        *("bbffffffffffffffff", "7b7fffffffffffffff", "9a00ffffff", "1c", "1d", "1e", "fc", "fd", "fe"),
        *("61ff", "62c328", "63eda080", "66eda080edb080", "64f4908080", "62c0af"),  # not UTF-8, and surrogates
        *("a1f500", "a1f600", "a1400 0", "a18000", "a1a000", "a1f9000000", "a1f700"),  # other keys
    ],
)
def test_what_is_outside_of_the_profile_is_refused(text: str) -> None:
    refused(bytes.fromhex(text.replace(" ", "")))


def test_sixteen_levels_are_read_and_seventeen_are_not() -> None:
    for opening in (b"\x81", b"\xa1\x00"):
        assert MAX_DEPTH == 16
        assert encode(decode(opening * 16 + b"\x00")) == opening * 16 + b"\x00"
        refused(opening * 17 + b"\x00")
    deep: Value = 0
    for _ in range(17):
        deep = [deep]
    with pytest.raises(FormatError):
        encode(deep)


@pytest.mark.parametrize(
    "value",
    [
        *(2**64, -(2**64) - 1, 1.0, (1,), {1}, "\ud800", [2**70]),
        *({True: 1}, {None: 1}, {b"": 1}, {"\udcff": 1}, {2**64: 1}),
    ],
)
def test_what_cannot_be_said_is_not_written(value: Value) -> None:
    with pytest.raises(FormatError):
        encode(value)


# --------------------------------------------------------------------------------------------------- hostile encodings


HOSTILE = {
    "arrays": b"\x81" * 100_000,
    "maps": b"\xa1\x00" * 50_000,
    "map keys": b"\xa1" * 100_000,
    "indefinite arrays": b"\x9f" * 100_000,
    "tags": b"\xc1" * 100_000 + b"\x00",
    "bignum": b"\xc2" + head(2, 99_000) + b"\xff" * 99_000,
    "decimal fraction": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "claimed array": b"\x9b" + b"\x7f" * 8 + b"\x00" * 99_000,
    "claimed map": b"\xbb" + b"\x7f" * 8 + b"\x00" * 99_000,
    "references": b"\x9a\x00\x00\xff\xff" + b"\xd8\x1c\x81\xd8\x1d\x00" * 16_000,
    "duplicate keys": b"\xb9\xc3\x50" + b"\x00\x00" * 50_000,
    "low bits equal": head(5, 9000) + b"".join(head(0, key << 40 | 2**60) + b"\x00" for key in range(9000)),
    "equal hashes": head(5, 8) + b"".join(head(0, 5 + step * (2**61 - 1)) + b"\x00" for step in range(8)),
    "empty arrays": head(4, 99_000) + b"\x80" * 99_000 + b"\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_100_kb_is_judged_at_once(name: str) -> None:
    begin = time.process_time()
    with suppress(FormatError):
        decode(HOSTILE[name])
    assert time.process_time() - begin < 2


# Put together from parts.


@pytest.mark.parametrize("major", range(8))
@pytest.mark.parametrize("value", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_a_head_is_in_its_shortest_form(major: int, value: int) -> None:
    head = encode_head(major, value)
    assert head[0] >> 5 == major
    assert head[:1][0] & 31 == (value if value < 24 else 23 + (len(head) - 1).bit_length())
    assert value < 24 or int.from_bytes(head[1:]) == value
    if major == 0:
        assert head == cbor2.dumps(value)
    if major == 1:
        assert head == cbor2.dumps(-1 - value)


@given(st.lists(st.binary(max_size=300), max_size=300))
def test_byte_strings_and_arrays_that_are_put_together_are_those_of_cbor2(items: list[bytes]) -> None:
    assert encode_array([encode_bytes(item) for item in items]) == cbor2.dumps(items)
