"""POST /v1/entries/batch: one CBOR array in, a result for each entry and one proof for all out."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from hashlib import sha256
from typing import TYPE_CHECKING

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.conftest import serving
from tests.api.test_entries import CBOR, JSON, leaf, policy, problem
from tests.support.wire import head_of
from tlog.cbor import decode, encode
from tlog.errors import FormatError
from tlog.fetch import parse_batch_answer
from tlog.multiproof import cut_inclusion_proofs, verify_multiproof
from tlog.server.api.batch import parse_batch
from tlog.server.errors import TooLargeError
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Api
    from tlog.fetch import Response

ROUTE = "/v1/entries/batch"
IS_CBOR = ("Content-Type", CBOR)


async def post(api: Api, entries: list[bytes], *headers: tuple[str, str]) -> Response:
    return await api.post(ROUTE, cbor2.dumps(entries), IS_CBOR, *headers)


# Adding.


async def test_a_batch_is_appended_in_order_in_one_commit(api: Api) -> None:
    entries = [b"batch %d" % number for number in range(300)]
    response = await post(api, entries, ("Accept", CBOR))
    assert (response.status, response.headers["content-type"]) == (201, CBOR)
    assert response.headers["cache-control"] == "no-store"
    body = cbor2.loads(response.body)
    assert set(body) == {"results", "proof", "checkpoint"}
    wanted = [
        {"index": index, "leafHash": leaf(entry), "isNew": True} for index, entry in enumerate(entries, start=700)
    ]
    assert body["results"] == wanted
    tree = type(api.tree)([*api.tree.entries, *entries])
    assert head_of(body["checkpoint"]) == (1000, tree.mth(0, 1000))
    nodes = verify_multiproof(
        {index: leaf(entry) for index, entry in enumerate(entries, start=700)}, 1000, body["proof"], tree.mth(0, 1000)
    )
    assert list(cut_inclusion_proofs([777], 1000, nodes)) == [tree.path(777, 0, 1000)]
    assert [(await api.log.read_entry(index))[0] for index in (700, 999)] == [entries[0], entries[-1]]
    assert encode(decode(response.body)) == response.body, "not deterministic"
    assert parse_batch_answer(response.body).format() == response.body


async def test_a_batch_is_answered_in_json_by_default_with_the_same_content(api: Api) -> None:
    response = await post(api, [b"one", b"two"], ("Treehead-Have", "5"))
    assert (response.status, response.headers["content-type"], response.headers["vary"]) == (201, JSON, "Accept")
    assert response.body.endswith(b"}\n")
    body = json.loads(response.body)
    assert [(each["index"], each["leafHash"], each["isNew"]) for each in body["results"]] == [
        (700, leaf(b"one").hex(), True),
        (701, leaf(b"two").hex(), True),
    ]
    again = cbor2.loads((await post(api, [b"one", b"two"], ("Treehead-Have", "5"), ("Accept", CBOR))).body)
    assert [b64decode(part) for part in body["proof"]] == again["proof"]
    assert body["checkpoint"].encode() == again["checkpoint"]
    assert body["consistency"]["from"] == again["consistency"]["from"] == 5
    assert [b64decode(part) for part in body["consistency"]["proof"]] == again["consistency"]["proof"]
    assert policy(api).open_checkpoint(again["checkpoint"]).size == 702


async def test_duplicates_in_a_batch_get_the_first_index_and_only_new_entries_make_it_a_201(api: Api) -> None:
    old = api.tree.entries[3]
    response = await post(api, [b"new", old, b"new", b"other"])
    assert response.status == 201
    results = [(each["index"], each["isNew"]) for each in json.loads(response.body)["results"]]
    assert [index for index, _ in results] == [700, 3, 700, 701]
    assert [is_new for _, is_new in results] == [True, False, False, True]
    response = await post(api, [old, b"new"])
    assert response.status == 200
    assert [(each["index"], each["isNew"]) for each in json.loads(response.body)["results"]] == [
        (3, False),
        (700, False),
    ]
    assert api.log.head.size == 702


async def test_a_batch_proves_consistency_from_the_size_that_the_client_has(api: Api) -> None:
    response = await post(api, [b"a", b"b"], ("Accept", CBOR), ("Treehead-Have", "333"))
    tree = type(api.tree)([*api.tree.entries, b"a", b"b"])
    assert cbor2.loads(response.body)["consistency"] == {"from": 333, "proof": tree.proof(333, 702)}
    for have in ("0", "703"):
        response = await post(api, [b"a"], ("Accept", CBOR), ("Treehead-Have", have))
        assert "consistency" not in cbor2.loads(response.body)


async def test_the_same_batch_under_the_same_key_is_carried_out_once(api: Api) -> None:
    key = ("Idempotency-Key", "batch-1")
    first = json.loads((await post(api, [b"a", b"b"], key)).body)
    again = json.loads((await post(api, [b"a", b"b"], key)).body)
    assert [each["index"] for each in first["results"]] == [each["index"] for each in again["results"]] == [700, 701]
    response = await post(api, [b"a", b"c"], key)
    assert (response.status, problem(response)) == (422, "key-reused")
    assert api.log.head.size == 702


# Refusing.

_NOT_BATCHES = [
    b"",
    b"\x80",  # no entry
    b"\x40",  # a byte string
    b"\xf6",
    b"\xa0",
    b"\x81\x61a",  # text
    b"\x81\x01",
    b"\x81\x80",
    b"\x81\xf6",
    b"\x81\xc2\x41a",  # a tag
    b"\x81",  # cut off
    b"\x81\x42a",
    b"\x82\x41a",
    b"\x81\x41ab",  # left over
    b"\x81\x41a\x00",
    b"\x98\x01\x41a",  # not in the fewest bytes
    b"\x99\x00\x01\x41a",
    b"\x9a\x00\x00\x00\x01\x41a",
    b"\x9b\x00\x00\x00\x00\x00\x00\x00\x01\x41a",
    b"\x81\x58\x01a",
    b"\x81\x59\x00\x01a",
    b"\x81\x5a\x00\x00\x00\x01a",
    b"\x81\x5b\x00\x00\x00\x00\x00\x00\x00\x01a",
    b"\x9f\x41a\xff",  # indefinite
    b"\x81\x5f\x41a\xff",
    b"\x9c\x41a",  # reserved
    b"\x81\x5c",
    b"\x98",
    b"\x9b\x00",
    b"\x81" * 100_000,  # nested
    b"[]",
    b'["YQ=="]',
]


@pytest.mark.parametrize("body", _NOT_BATCHES, ids=[str(number) for number in range(len(_NOT_BATCHES))])
async def test_a_body_that_is_no_batch_is_refused_and_adds_nothing(api: Api, body: bytes) -> None:
    response = await api.post(ROUTE, body, IS_CBOR)
    assert (response.status, problem(response)) == (400, "bad-request")
    assert api.log.head.size == 700


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (cbor2.dumps([b""] * 4097), "4,096"),
        (b"\x9a\x7f\xff\xff\xff", "4,096"),
        (b"\x9b" + b"\xff" * 8, "4,096"),
        (cbor2.dumps([b"a", bytes(65_536)]), "65,535"),
        (b"\x81\x5a\x7f\xff\xff\xff", "65,535"),
        (b"\x81\x5b" + b"\xff" * 8, "65,535"),
    ],
)
async def test_a_batch_beyond_a_limit_is_too_large_and_the_limit_is_named(api: Api, body: bytes, limit: str) -> None:
    response = await api.post(ROUTE, body, IS_CBOR)
    assert (response.status, problem(response)) == (413, "too-large")
    assert limit in json.loads(response.body)["detail"]
    assert api.log.head.size == 700


async def test_the_limits_of_a_batch_are_settings(copy: Path) -> None:
    async with serving(copy, Limits(batch_entries=2, batch_bytes=1 << 16)) as api:
        assert (await post(api, [b"a", b"b"])).status == 201
        response = await post(api, [b"c", b"d", b"e"])
        assert (response.status, "at most 2 entries" in response.body.decode()) == (413, True)
        response = await post(api, [bytes(60_000), bytes(6_000)])
        assert (response.status, "65,536 bytes" in response.body.decode()) == (413, True)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/cbor\r\nContent-Length: 65537\r\n\r\n"
        assert (await api.connection.send(head % ROUTE.encode())).status == 413


async def test_a_batch_of_the_largest_size_is_taken(api: Api) -> None:
    entries = [b"%d " % number + bytes(2000) for number in range(4096)]
    assert (await post(api, entries)).status == 201
    assert (await api.log.read_entry(700 + 4095))[0] == entries[-1]


async def test_a_large_body_of_small_values_is_refused_at_once(api: Api) -> None:
    began = time.perf_counter()
    for body in (b"\x81\x9a\x00\x7f\xff\x00" + b"\x01" * (8 << 20), b"\x99\x10\x00" + b"\x80" * (7 << 20)):
        response = await api.post(ROUTE, body[: 8 << 20], IS_CBOR)
        assert (response.status, problem(response)) == (400, "bad-request")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("value", ["", "application/json", "application/cbor-seq", "text/plain", "junk"])
async def test_a_batch_of_another_media_type_is_refused_and_told_which(api: Api, value: str) -> None:
    headers = [("Content-Type", value)] if value else []
    response = await api.post(ROUTE, cbor2.dumps([b"a"]), *headers)
    assert (response.status, problem(response)) == (415, "media-type")
    assert "application/cbor" in json.loads(response.body)["detail"]
    assert api.log.head.size == 700


async def test_a_media_type_with_a_parameter_is_the_same(api: Api) -> None:
    response = await api.post(ROUTE, cbor2.dumps([b"a"]), ("Content-Type", "Application/CBOR; x=y"))
    assert response.status == 201


async def test_an_encoded_batch_is_refused(api: Api) -> None:
    response = await post(api, [b"a"], ("Content-Encoding", "gzip"))
    assert (response.status, problem(response)) == (415, "encoding")


async def test_a_batch_costs_an_address_as_much_as_it_has_entries(copy: Path) -> None:
    async with serving(copy, Limits(rate=1, burst=5)) as api:
        response = await post(api, [b"%d" % number for number in range(10_000, 10_004)])
        assert (response.status, response.headers["ratelimit"].split(";")[1]) == (201, "r=1")
        response = await post(api, [b"a", b"b", b"c"])
        assert (response.status, problem(response)) == (429, "rate")
        assert int(response.headers["retry-after"]) >= 1


# The parser.


def reference(data: bytes, most: int) -> list[bytes] | None:
    """Parse a batch with the general decoder."""
    try:
        value = decode(data)
    except FormatError:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        return None
    entries = [entry for entry in value if isinstance(entry, bytes)]
    return entries if len(entries) == len(value) else None


def parsed(data: bytes, most: int) -> list[bytes] | None:
    try:
        return parse_batch(data, most)
    except (FormatError, TooLargeError):
        return None


@given(st.lists(st.binary(max_size=300), max_size=30), st.data())
def test_a_batch_is_read_as_the_general_decoder_reads_it(entries: list[bytes], data: st.DataObject) -> None:
    body = bytearray(cbor2.dumps(entries))
    assert parsed(bytes(body), 20) == reference(bytes(body), 20)
    for _ in range(3):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
        assert parsed(bytes(body), 20) == reference(bytes(body), 20)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_batch_only_if_the_general_decoder_says_so(body: bytes) -> None:
    assert parsed(body, 20) == reference(body, 20)


def test_sizes_around_each_form_of_length_are_read() -> None:
    for size in (0, 1, 23, 24, 255, 256, 65_535):
        entries = [sha256(b"%d" % size).digest()[:1] * size]
        assert parse_batch(cbor2.dumps(entries), 1) == entries
    for count in (1, 23, 24, 255, 256, 4096):
        assert parse_batch(cbor2.dumps([b""] * count), 4096) == [b""] * count
