"""POST /v1/proofs and GET /v1/leaves, and the CBOR forms of proofs."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING

import cbor2
import pytest

from tests.api.test_entries import CBOR, IMMUTABLE, JSON, leaf, policy, problem
from tests.support.wire import head_of
from tlog.cbor import decode, encode

if TYPE_CHECKING:
    from tests.api.conftest import Api
    from tlog.fetch import Response

pytestmark = pytest.mark.invariant("I16")

ROUTE = "/v1/proofs"


async def post(api: Api, body: object, *headers: tuple[str, str]) -> Response:
    return await api.post(ROUTE, json.dumps(body).encode(), ("Content-Type", JSON), *headers)


async def test_proofs_are_given_in_the_order_asked_for_to_one_head(api: Api) -> None:
    indexes = [699, 0, 256, 255, 0]
    for body, content_type in (
        (json.dumps({"indexes": indexes}).encode(), f"{JSON}; charset=utf-8"),
        (cbor2.dumps({"indexes": indexes}), CBOR),
    ):
        response = await api.post(ROUTE, body, ("Content-Type", content_type), ("Accept", CBOR))
        assert (response.status, response.headers["content-type"], response.headers["vary"]) == (200, CBOR, "Accept")
        assert response.headers["cache-control"] == "no-store"
        answer = cbor2.loads(response.body)
        assert answer["proofs"] == [
            {"index": index, "leafHash": leaf(api.tree.entries[index]), "proof": api.tree.path(index, 0, 700)}
            for index in indexes
        ]
        assert head_of(answer["checkpoint"]) == (700, api.tree.mth(0, 700))
        assert "consistency" not in answer
        assert encode(decode(response.body)) == response.body, "not deterministic"


async def test_proofs_in_json_have_the_same_content(api: Api) -> None:
    response = await post(api, {"indexes": [5, 6]}, ("Treehead-Have", "300"))
    assert (response.status, response.headers["content-type"]) == (200, JSON)
    assert response.body.endswith(b"}\n")
    body = json.loads(response.body)
    assert [each["index"] for each in body["proofs"]] == [5, 6]
    assert body["proofs"][1]["leafHash"] == leaf(api.tree.entries[6]).hex()
    assert [b64decode(part) for part in body["proofs"][1]["proof"]] == api.tree.path(6, 0, 700)
    assert body["consistency"]["from"] == 300
    assert [b64decode(part) for part in body["consistency"]["proof"]] == api.tree.proof(300, 700)
    assert policy(api).open_checkpoint(body["checkpoint"].encode()).size == 700


async def test_up_to_256_proofs_are_given(api: Api) -> None:
    body = json.loads((await post(api, {"indexes": list(range(256))})).body)
    assert [each["index"] for each in body["proofs"]] == list(range(256))
    response = await post(api, {"indexes": list(range(257))})
    assert (response.status, problem(response)) == (400, "bad-request")


async def test_proofs_of_entries_that_are_not_signed_are_not_found(api: Api) -> None:
    for index in (700, 2**63 - 1):
        response = await post(api, {"indexes": [0, index]})
        assert (response.status, problem(response)) == (404, "not-found")
        assert str(index) in json.loads(response.body)["detail"]


_NOT_LISTS: list[tuple[str, bytes]] = [
    *[
        (JSON, body)
        for body in (
            b"",
            b"{",
            b"null",
            b"[]",
            b"[1]",
            b"{}",
            b'{"indexes":1}',
            b'{"indexes":[]}',
            b'{"indexes":[-1]}',
            b'{"indexes":[1.5]}',
            b'{"indexes":["1"]}',
            b'{"indexes":[true]}',
            b'{"indexes":[null]}',
            b'{"indexes":[9223372036854775808]}',
            b'{"indexes":[1e400]}',
            b'{"indexes":[' + b"9" * 10_000 + b"]}",
            b'{"indexes":[1],"more":1}',
            b'{"indexes":' + b"[" * 10_000,
            b'{"more":' + b"[" * 10_000,
            b'{"more":' + b'{"a":' * 3_000,
            b'{"indexes":[1]}x',
            b'{"indexes":["\xff"]}',
            b"\xff\xfe",
            b"\xef\xbb\xbf{}",
            b'{"indexes\\ud800":[1]}',
        )
    ],
    *[
        (CBOR, body)
        for body in (
            b"",
            b"\xff",
            b"\xa0",
            b"\x81\x01",
            cbor2.dumps({"indexes": []}),
            cbor2.dumps({"indexes": [-1]}),
            cbor2.dumps({"indexes": [2**63]}),
            cbor2.dumps({"indexes": [2**64]}),
            cbor2.dumps({"indexes": ["1"]}),
            cbor2.dumps({"indexes": [1.0]}),
            cbor2.dumps({"indexes": [True]}),
            cbor2.dumps({"indexes": b"1"}),
            cbor2.dumps({"indexes": [1], "more": 1}),
            cbor2.dumps({1: [1]}),
            cbor2.dumps({b"indexes": [1]}),
            b"\xa1\x67indexes\x81\x18\x01",
            b"\xa1\x67indexes\x9f\x01\xff",
            b"\xa2\x67indexes\x81\x01\x67indexes\x81\x01",
            b"\xa1\x67indexes\x9b" + b"\xff" * 8,
            b"\xa1\x67indexes\x7b" + b"\xff" * 8,
            b"\xa1\x67indexes" + b"\x81" * 10_000,
            b"\xa1\x67indexes\x81\x01\x00",
        )
    ],
]


@pytest.mark.parametrize(("media_type", "body"), _NOT_LISTS, ids=[str(number) for number in range(len(_NOT_LISTS))])
async def test_a_body_that_is_no_list_of_indexes_is_refused(api: Api, media_type: str, body: bytes) -> None:
    response = await api.post(ROUTE, body, ("Content-Type", media_type))
    assert (response.status, problem(response)) == (400, "bad-request")


async def test_a_list_of_another_media_type_is_refused_and_told_which(api: Api) -> None:
    for headers in ([], [("Content-Type", "text/plain")]):
        response = await api.post(ROUTE, b'{"indexes":[1]}', *headers)
        assert (response.status, problem(response)) == (415, "media-type")
        assert json.loads(response.body)["detail"].endswith("application/json or application/cbor")


async def test_a_list_that_is_too_large_is_refused(api: Api) -> None:
    response = await post(api, {"indexes": [1], "padding": "x" * 20_000})
    assert (response.status, problem(response)) == (413, "too-large")


async def test_an_entry_is_found_by_its_leaf_hash(api: Api) -> None:
    for index in (0, 255, 256, 699):
        value = leaf(api.tree.entries[index])
        response = await api.get(f"/v1/leaves/{value.hex()}")
        assert (response.status, response.headers["content-type"]) == (200, JSON)
        assert (response.headers["cache-control"], response.headers["vary"]) == (IMMUTABLE, "Accept")
        assert json.loads(response.body) == {"index": index, "leafHash": value.hex()}
        response = await api.get(f"/v1/leaves/{value.hex()}", ("Accept", CBOR))
        assert cbor2.loads(response.body) == {"index": index, "leafHash": value}


async def test_an_entry_is_found_once_it_is_signed(api: Api) -> None:
    route = f"/v1/leaves/{leaf(b'entry').hex()}"
    response = await api.get(route)
    assert (response.status, problem(response)) == (404, "not-found")
    await api.post("/add", b"entry")
    assert json.loads((await api.get(route)).body)["index"] == 700


@pytest.mark.parametrize(
    "text",
    ["", "0", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "\u0661" * 64, "%30" * 64 + "0", "a" * 64 + "%0a", "%FF" * 64],
)
async def test_a_leaf_hash_that_is_none_is_refused(api: Api, text: str) -> None:
    response = await api.get(f"/v1/leaves/{text}")
    assert response.status == (400 if text else 404)
    assert problem(response) in ("bad-request", "not-found")


async def test_proofs_that_never_change_come_in_cbor_too(api: Api) -> None:
    response = await api.get("/v1/proofs/inclusion/3/700", ("Accept", CBOR))
    assert (response.headers["cache-control"], response.headers["vary"]) == (IMMUTABLE, "Accept")
    wanted = {"index": 3, "size": 700, "leafHash": leaf(api.tree.entries[3]), "proof": api.tree.path(3, 0, 700)}
    assert cbor2.loads(response.body) == wanted
    response = await api.get("/v1/proofs/consistency/3/700", ("Accept", CBOR))
    assert cbor2.loads(response.body) == {"from": 3, "to": 700, "proof": api.tree.proof(3, 700)}
    response = await api.get("/v1/proofs/consistency/3/700", ("Accept", "text/html"))
    assert (response.status, problem(response)) == (406, "not-acceptable")
