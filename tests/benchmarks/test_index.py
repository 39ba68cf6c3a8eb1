"""The index is read as the client reads it, from every answer that a log writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.index import cbor_index, plain_index
from benchmarks.load.wire import WireError
from tlog.fetch import Answer, parse_answer

INDEXES = st.integers(0, 2**63 - 1) | st.sampled_from([0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32])


@given(INDEXES, st.none() | st.just((5, (bytes(32),))))
def test_the_index_of_an_answer_in_cbor_is_the_clients(
    index: int, consistency: tuple[int, tuple[bytes, ...]] | None
) -> None:
    body = Answer(index, bytes(32), (bytes(32),), b"note\n\n", None, consistency).format()
    assert cbor_index(body) == parse_answer(body).index == index


@given(INDEXES)
def test_a_plain_index_is_decimal_and_may_end_its_line(index: int) -> None:
    assert plain_index(b"%d" % index) == plain_index(b"%d\n" % index) == index


@pytest.mark.parametrize("body", [b"", b"-1", b"1 2", "٣".encode(), b"1_0", b"\n", b"0x1", b"1\n\n"])
def test_what_is_no_decimal_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        plain_index(body)


@pytest.mark.parametrize(
    "body", [b"", b"\xa4\x65index", b"\xa4\x65index\x61x", b"\xa4\x65index\x1a\x00", b"\xa0", b'{"index": 1}']
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        cbor_index(body)
