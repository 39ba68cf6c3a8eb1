"""Records of idempotency keys, and how long they count."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlog.errors import FormatError, PushbackError
from tlog.server.errors import KeyReusedError
from tlog.server.idempotency import KEY_MS, KeyRecord, Keys, RequestKey, parse_key_records, request_key

DIGESTS = st.binary(min_size=32, max_size=32)
RECORDS = st.lists(
    st.builds(
        KeyRecord,
        st.builds(RequestKey, DIGESTS, DIGESTS),
        st.lists(st.integers(0, 2**63 - 1), max_size=5).map(tuple),
    ),
    max_size=5,
)


@given(RECORDS)
def test_records_are_read_back_as_they_were_written(records: list[KeyRecord]) -> None:
    assert list(parse_key_records(b"".join(record.format() for record in records))) == records


@given(RECORDS.filter(bool), st.data())
def test_a_record_that_is_cut_off_is_refused(records: list[KeyRecord], data: st.DataObject) -> None:
    whole = b"".join(record.format() for record in records)
    length = len(records[-1].format())
    with pytest.raises(FormatError, match="cut off"):
        list(parse_key_records(whole[: len(whole) - data.draw(st.integers(1, length - 1))]))


def test_a_request_is_its_key_its_route_and_its_body() -> None:
    request = request_key("key", "route", b"body")
    assert request.key == sha256(b"key").digest()
    assert request.body == sha256(b"treehead/idempotency/v1\nroute\nbody").digest()
    assert request != request_key("key", "route", b"other")
    assert request != request_key("key", "other", b"body")


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ä", "a" * 256, "\x7f"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(FormatError, match="Idempotency-Key"):
        request_key(key, "route", b"")


def test_a_key_counts_for_24_hours() -> None:
    keys = Keys(1 << 20)
    request = request_key("key", "route", b"body")
    keys.put(KeyRecord(request, (7,)), 1000)
    assert keys.find(request, 1000 + KEY_MS - 1) == KeyRecord(request, (7,))
    with pytest.raises(KeyReusedError):
        keys.find(request_key("key", "route", b"other"), 2000)
    assert keys.find(request, 1000 + KEY_MS) is None


def test_room_comes_back_with_time() -> None:
    keys = Keys(430)
    keys.check_room(0)
    keys.put(KeyRecord(request_key("key", "route", b""), (1,)), 0)
    with pytest.raises(PushbackError):
        keys.check_room(1)
    keys.check_room(KEY_MS)
