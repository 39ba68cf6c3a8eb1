"""The answer to a batch, and the request that asks for it."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lying_log import run_http
from tlog.cbor import decode, encode
from tlog.errors import FormatError, RefusedError
from tlog.fetch import (
    CBOR,
    BatchAnswer,
    Request,
    Response,
    Result,
    fetch_add,
    fetch_add_batch,
    parse_answer,
    parse_batch_answer,
)
from tlog.merkle import MAX_SIZE

HASHES = st.binary(min_size=32, max_size=32)
ANSWERS = st.builds(
    BatchAnswer,
    st.lists(st.builds(Result, st.integers(0, MAX_SIZE), HASHES, st.booleans()), max_size=4).map(tuple),
    st.lists(HASHES, max_size=300).map(tuple),
    st.binary(max_size=40),
    st.none() | st.tuples(st.integers(0, MAX_SIZE), st.lists(HASHES, max_size=5).map(tuple)),
)
ANSWER = BatchAnswer((Result(7, b"\x07" * 32, is_new=True),), (b"\x01" * 32,), b"note\n", (3, (b"\x02" * 32,)))


@given(ANSWERS)
def test_every_answer_is_read_back(answer: BatchAnswer) -> None:
    assert parse_batch_answer(answer.format()) == answer


def test_an_answer_is_a_map_of_deterministic_cbor() -> None:
    assert cbor2.loads(ANSWER.format()) == {
        "results": [{"index": 7, "leafHash": b"\x07" * 32, "isNew": True}],
        "proof": [b"\x01" * 32],
        "checkpoint": b"note\n",
        "consistency": {"from": 3, "proof": [b"\x02" * 32]},
    }


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("results", None),
        ("results", {}),
        ("results", [{"index": 7, "leafHash": b"\x07" * 32}]),
        ("results", [{"index": 7, "leafHash": b"\x07" * 31, "isNew": True}]),
        ("results", [{"index": -1, "leafHash": b"\x07" * 32, "isNew": True}]),
        ("results", [{"index": True, "leafHash": b"\x07" * 32, "isNew": True}]),
        ("results", [{"index": 7, "leafHash": b"\x07" * 32, "isNew": 1}]),
        ("results", [{"index": 7, "leafHash": b"\x07" * 32, "isNew": True, "more": 1}]),
        ("results", [7]),
        ("proof", [b"\x01" * 31]),
        ("proof", ["text"]),
        ("proof", b"\x01" * 32),
        ("checkpoint", "note\n"),
        ("consistency", None),
        ("consistency", {"from": 3}),
        ("more", 1),
    ],
)
def test_a_part_of_another_type_or_length_or_name_is_refused(part: str, value: object) -> None:
    whole = decode(ANSWER.format())
    assert isinstance(whole, dict)
    with pytest.raises(FormatError):
        parse_batch_answer(encode({**whole, part: value}))  # type: ignore[dict-item]  # wrong on purpose


@pytest.mark.parametrize("part", ["results", "proof", "checkpoint"])
def test_a_missing_part_is_refused(part: str) -> None:
    whole = decode(ANSWER.format())
    assert isinstance(whole, dict)
    del whole[part]
    with pytest.raises(FormatError):
        parse_batch_answer(encode(whole))
    with pytest.raises(FormatError):
        parse_answer(ANSWER.format())


def test_a_batch_is_one_array_of_byte_strings() -> None:
    asked: list[Request] = []

    def respond(requests: list[Request]) -> list[Response]:
        asked.extend(requests)
        return [Response(201 if len(asked) == 1 else 200, {}, ANSWER.format())]

    assert run_http(fetch_add_batch([b"a", b""]), respond) == ANSWER
    assert run_http(fetch_add_batch([b"a"], have=3, key="k"), respond) == ANSWER
    kinds = (("Accept", CBOR), ("Content-Type", CBOR))
    assert [(one.method, one.path, one.headers) for one in asked] == [
        ("POST", "v1/entries/batch", kinds),
        ("POST", "v1/entries/batch", (*kinds, ("Treehead-Have", "3"), ("Idempotency-Key", "k"))),
    ]
    assert [one.body for one in asked] == [b"\x82\x41a\x40", b"\x81\x41a"]
    assert asked[0].max_size > asked[1].max_size > 32


def test_a_key_goes_with_one_entry_too_and_a_refusal_is_an_error() -> None:
    with pytest.raises(RefusedError) as caught:
        run_http(fetch_add(b"a", key="k"), lambda asked: [Response(422, {}, str(asked[0].headers).encode())])
    assert caught.value.status == 422
