"""Adding and reading entries, and proofs: media types, sizes, limits."""

from __future__ import annotations

import json
from base64 import b64decode
from hashlib import sha256
from typing import TYPE_CHECKING

import cbor2
import pytest

from tests.api.conftest import serving
from tests.support.wire import head_of, raw
from tlog.errors import PushbackError
from tlog.policy import Policy
from tlog.proof import parse_proof, verify_proof
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Api
    from tlog.fetch import Response

pytestmark = pytest.mark.invariant("I16", "I20", "I21")

IMMUTABLE = "public, max-age=31536000, immutable"
CBOR, JSON, PROOF = "application/cbor", "application/json", "text/x.tlog.proof"


def problem(response: Response) -> str:
    """Return the type of a problem, after everything that holds for each of them."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.body.endswith(b"}\n")
    body = json.loads(response.body)
    assert body["status"] == response.status
    assert body["title"]
    assert "Traceback" not in response.body.decode()
    assert "b'" not in response.body.decode(), "a value as Python writes it"
    return str(body["type"]).removeprefix("urn:treehead:problem:")


def leaf(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def root_of(leaf_hash: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """Fold an inclusion proof from the top of the tree down, by RFC 6962's recursion."""
    if size == 1:
        assert proof == []
        return leaf_hash
    split = 1 << (size - 1).bit_length() - 1
    *below, sibling = proof
    if index < split:
        return sha256(b"\x01" + root_of(leaf_hash, index, split, below) + sibling).digest()
    return sha256(b"\x01" + sibling + root_of(leaf_hash, index - split, size - split, below)).digest()


def policy(api: Api) -> Policy:
    return Policy.of_log((api.data / "vkey").read_text().strip())


# Adding.


async def test_add_answers_with_the_index_alone(api: Api) -> None:
    for index in (700, 701):
        response = await api.post("/add", b"entry %d" % index)
        assert (response.status, response.body) == (200, b"%d" % index)
        assert response.headers["content-type"].startswith("text/plain")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["access-control-allow-origin"] == "*"
    assert (await api.log.read_entry(700))[0] == b"entry 700"


async def test_an_entry_is_answered_in_json_by_default(api: Api) -> None:
    response = await api.post("/v1/entries", b"entry")
    assert response.status == 201
    assert response.headers["content-type"] == JSON
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["access-control-allow-origin"] == "*"
    body = json.loads(response.body)
    assert set(body) == {"index", "leafHash", "proof", "checkpoint"}
    assert (body["index"], body["leafHash"]) == (700, leaf(b"entry").hex())
    proof = [b64decode(part, validate=True) for part in body["proof"]]
    note = body["checkpoint"].encode()
    assert head_of(note) == (701, root_of(leaf(b"entry"), 700, 701, proof))
    assert policy(api).open_checkpoint(note).size == 701


async def test_an_entry_is_answered_in_cbor(api: Api) -> None:
    response = await api.post("/v1/entries", b"entry", ("Accept", CBOR))
    assert (response.status, response.headers["content-type"]) == (201, CBOR)
    body = cbor2.loads(response.body)
    assert set(body) == {"index", "leafHash", "proof", "checkpoint"}
    assert head_of(body["checkpoint"]) == (701, root_of(leaf(b"entry"), body["index"], 701, body["proof"]))


async def test_an_entry_is_answered_with_a_proof_that_verifies_offline(api: Api) -> None:
    response = await api.post("/v1/entries", b"entry", ("Accept", PROOF))
    assert (response.status, response.headers["content-type"]) == (201, f"{PROOF}; charset=utf-8")
    assert response.body.startswith(b"c2sp.org/tlog-proof@v1\nindex 700\n")
    verify_proof(parse_proof(response.body), b"entry", policy(api))


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        ("", JSON),
        ("text/html, application/cbor", CBOR),
        ("APPLICATION/CBOR; q=0.5", CBOR),
        ("text/html, */*;q=0.1", JSON),
        (f"{PROOF}, {JSON}", JSON),
        (f"{PROOF}, {JSON};q=0.9", PROOF),
        (f"{JSON};q=0, */*", CBOR),
        (f"{JSON};q=0.000, */*;q=0.001", CBOR),
        ("*/*;q=0", None),
        (f"{JSON};q=0", None),
        ("text/*", PROOF),
        ("text/*;q=0.2, application/*;q=0.1", PROOF),
        (f"*/*, {CBOR};q=0.5, {JSON};q=0.1", PROOF),
        (f"{CBOR};q=2", None),
        (f"{CBOR};q=x, {PROOF};q=0.1", PROOF),
        (f"{PROOF};charset=utf-8", PROOF),
        (f" {CBOR} ;\tQ=1.000 ", CBOR),
        (",".join(["text/html"] * 500), None),
        ("text/html", None),
        ("application/xml, text/plain", None),
        ("junk", None),
        (";;;,,,", JSON),
    ],
)
async def test_the_media_type_is_the_most_wanted_and_the_first_offered_of_several(
    api: Api, accept: str, wanted: str | None
) -> None:
    for response in (
        await api.post("/v1/entries", b"entry", ("Accept", accept)),
        await api.get("/v1/entries/3", ("Accept", accept)),
    ):
        if wanted is None:
            assert (response.status, problem(response)) == (406, "not-acceptable")
        else:
            assert response.status in (200, 201)
            assert response.headers["content-type"].split(";")[0] == wanted
    assert api.log.head.size == (700 if wanted is None else 701)


@pytest.mark.parametrize("route", ["/add", "/v1/entries"])
async def test_entries_of_0_and_of_65535_bytes_are_taken(api: Api, route: str) -> None:
    for index, entry in enumerate([b"", bytes(65_535), b"\xff" * 65_535], 700):
        response = await api.post(route, entry)
        assert response.status in (200, 201)
        assert (await api.log.read_entry(index))[0] == entry


@pytest.mark.parametrize("route", ["/add", "/v1/entries"])
@pytest.mark.parametrize("size", [65_536, 65_537, 1 << 20])
async def test_an_entry_of_more_than_65535_bytes_is_too_large(api: Api, route: str, size: int) -> None:
    response = await api.post(route, bytes(size))
    assert (response.status, problem(response)) == (413, "too-large")
    assert api.log.head.size == 700


@pytest.mark.parametrize("route", ["/add", "/v1/entries"])
async def test_a_chunked_body_is_an_entry_like_any_other_up_to_the_limit(api: Api, route: str) -> None:
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    response = await api.connection.send(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert response.status in (200, 201)
    assert (await api.log.read_entry(700))[0] == b"abcde"
    response = await api.connection.send(head + b"10000\r\n" + bytes(65_536) + b"\r\n0\r\n\r\n")
    assert (response.status, problem(response)) == (413, "too-large")
    assert api.log.head.size == 701


@pytest.mark.parametrize("route", ["/add", "/v1/entries"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "junk", "identity, gzip", "GZIP"])
async def test_an_encoded_body_is_refused_and_not_undone(api: Api, route: str, encoding: str) -> None:
    for body in (b"entry", b"\x1f\x8b\x08\x00junk", b""):
        response = await api.post(route, body, ("Content-Encoding", encoding))
        assert (response.status, problem(response)) == (415, "encoding")
    assert api.log.head.size == 700


async def test_any_content_type_is_opaque(api: Api) -> None:
    types = [
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "junk",
        "a/b;;=",
    ]
    for index, value in enumerate(types, 700):
        entry = b"a=%d&b=\xff" % index
        assert (await api.post("/add", entry, ("Content-Type", value))).body == b"%d" % index
        assert (await api.log.read_entry(index))[0] == entry


@pytest.mark.parametrize("have", [1, 2, 255, 256, 512, 699, 700, 701])
async def test_an_answer_proves_consistency_from_the_size_that_the_client_has(api: Api, have: int) -> None:
    response = await api.post("/v1/entries", b"entry", ("Accept", CBOR), ("Treehead-Have", str(have)))
    assert response.status == 201
    consistency = cbor2.loads(response.body)["consistency"]
    tree = type(api.tree)([*api.tree.entries, b"entry"])
    assert consistency == {"from": have, "proof": tree.proof(have, 701)}
    response = await api.post("/v1/entries", b"another", ("Treehead-Have", str(have)))
    tree = type(api.tree)([*tree.entries, b"another"])
    assert [b64decode(part) for part in json.loads(response.body)["consistency"]["proof"]] == tree.proof(have, 702)


@pytest.mark.parametrize("have", ["0", "702", "999999", "9223372036854775807"])
async def test_from_nothing_or_from_a_size_that_is_not_signed_yet_there_is_no_proof(api: Api, have: str) -> None:
    response = await api.post("/v1/entries", b"entry", ("Accept", CBOR), ("Treehead-Have", have))
    assert response.status == 201
    assert "consistency" not in cbor2.loads(response.body)


@pytest.mark.parametrize(
    "have",
    ["", "-1", "+1", "01", "1.0", "1e3", "x", "1_0", "0x1", "1 2", "9223372036854775808", "9" * 400, "\u0661", "1,2"],
)
async def test_a_size_that_is_none_is_refused_before_the_entry_is_taken(api: Api, have: str) -> None:
    response = await api.post("/v1/entries", b"entry", ("Treehead-Have", have))
    assert (response.status, problem(response)) == (400, "bad-request")
    assert api.log.head.size == 700


async def test_a_full_pool_asks_to_come_back_and_still_serves(copy: Path) -> None:
    async with serving(copy, Limits(pool_entries=0)) as api:
        for route in ("/add", "/v1/entries"):
            response = await api.post(route, b"entry")
            assert (response.status, problem(response)) == (503, "busy")
            assert response.headers["retry-after"] == "1"
        assert (await api.get("/v1/entries/1")).status == 200


async def test_a_full_pool_is_told_before_the_body_is_read(copy: Path) -> None:
    async with serving(copy, Limits(pool_entries=0)) as api:
        head = b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
        assert (await api.connection.send(head)).status == 503


async def test_a_body_that_will_be_too_large_is_refused_before_it_is_read(api: Api) -> None:
    head = b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n"
    response = await api.connection.send(head)
    assert (response.status, problem(response)) == (413, "too-large")
    assert "65,535" in json.loads(response.body)["detail"]


async def test_a_client_that_expects_to_continue_is_told_so_only_if_the_body_would_be_taken(api: Api) -> None:
    async with raw(api.port) as (reader, writer):
        head = b"POST /add HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % 5)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"entry")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(3) == b"700"
        writer.write(head % 70_000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_a_log_that_lags_asks_to_come_back(copy: Path) -> None:
    async with serving(copy, Limits(lag=100)) as api:
        response = await api.post("/add", b"entry")
        assert (response.status, problem(response), response.headers["retry-after"]) == (503, "busy", "1")


async def test_a_log_of_the_largest_size_takes_nothing_and_still_serves(copy: Path) -> None:
    async with serving(copy, Limits(tree_size=700)) as api:
        response = await api.post("/v1/entries", b"entry")
        assert (response.status, problem(response)) == (403, "read-only")
        assert (await api.get("/v1/entries/699")).status == 200


async def test_a_log_that_is_served_read_only_takes_nothing_and_still_serves(copy: Path) -> None:
    async with serving(copy, read_only=True) as api:
        response = await api.post("/v1/entries", b"entry")
        assert (response.status, problem(response)) == (403, "read-only")
        assert (await api.get("/v1/entries/699")).status == 200


async def test_a_disk_without_space_takes_nothing_and_still_serves(copy: Path) -> None:
    async with serving(copy, Limits(free_bytes=1 << 62)) as api:
        response = await api.post("/v1/entries", b"entry")
        assert (response.status, problem(response)) == (507, "no-space")
        assert (await api.get("/v1/entries/699")).status == 200


async def test_an_address_beyond_its_rate_is_told_when_to_come_back(copy: Path) -> None:
    async with serving(copy, Limits(rate=1, burst=2)) as api:
        for left in ("1", "0"):
            response = await api.post("/v1/entries", b"entry %s" % left.encode())
            assert (response.status, response.headers["ratelimit"].split(";")[1]) == (201, f"r={left}")
        response = await api.post("/v1/entries", b"one too many")
        assert (response.status, problem(response), response.headers["retry-after"]) == (429, "rate", "1")
        assert "RateLimit" in response.headers["access-control-expose-headers"]


async def test_a_closing_log_takes_nothing_and_still_serves(api: Api) -> None:
    assert api.log._writer is not None
    api.log._writer.close()
    response = await api.post("/add", b"entry")
    assert (response.status, problem(response)) == (503, "stopping")
    assert (await api.get("/v1/entries/699")).status == 200


async def test_a_retry_after_is_only_sent_where_it_is_known(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int = 1) -> None:
        raise PushbackError("later")

    monkeypatch.setattr(api.log._writer, "check_admission", refuse)
    response = await api.post("/add", b"entry")
    assert response.status == 503
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_entries_are_added_by_post_alone(api: Api, method: str) -> None:
    for route in ("/add", "/v1/entries"):
        response = await api.request(method, route, b"")
        assert (response.status, problem(response), response.headers["allow"]) == (405, "method", "OPTIONS,POST")


# Duplicates and keys.


async def test_an_entry_that_the_log_has_is_answered_with_its_first_index_and_a_proof(api: Api) -> None:
    for accept in (JSON, CBOR, PROOF):
        response = await api.post("/v1/entries", api.tree.entries[3], ("Accept", accept))
        assert response.status == 200
        if accept == JSON:
            assert json.loads(response.body)["index"] == 3
        elif accept == CBOR:
            body = cbor2.loads(response.body)
            assert (body["index"], body["proof"]) == (3, api.tree.path(3, 0, 700))
        else:
            verify_proof(parse_proof(response.body), api.tree.entries[3], policy(api))
    assert (await api.post("/add", api.tree.entries[3])).body == b"3"
    assert api.log.head.size == 700


async def test_the_same_request_under_the_same_key_is_carried_out_once(copy: Path) -> None:
    config = copy / "treehead.toml"
    config.write_text(config.read_text().replace("\n[http]", "dedup = false\n\n[http]"))
    async with serving(copy) as api:
        key = ("Idempotency-Key", "one")
        for route, size in (("/add", 701), ("/v1/entries", 702)):
            answers = [await api.post(route, b"entry", (key[0], route[1:4])) for _ in range(3)]
            assert {json.loads(answer.body)["index"] if size == 702 else int(answer.body) for answer in answers} == {
                size - 1
            }
            assert api.log.head.size == size
        await api.post("/v1/entries", b"entry", key)
        assert api.log.head.size == 703
        for route, body in (("/v1/entries", b"other"), ("/add", b"entry")):
            response = await api.post(route, body, key)
            assert (response.status, problem(response)) == (422, "key-reused")
        assert api.log.head.size == 703


@pytest.mark.parametrize("key", ["", " ", "a b", "\u00e9", "x" * 256, '"a"\t"b"'])
@pytest.mark.parametrize("route", ["/add", "/v1/entries"])
async def test_a_key_that_is_none_is_refused_and_adds_nothing(api: Api, route: str, key: str) -> None:
    response = await api.post(route, b"entry", ("Idempotency-Key", key))
    assert (response.status, problem(response)) == (400, "bad-request")
    assert api.log.head.size == 700


@pytest.mark.parametrize("name", ["Idempotency-Key", "Treehead-Have"])
async def test_a_header_that_is_sent_twice_is_refused(api: Api, name: str) -> None:
    response = await api.post("/v1/entries", b"entry", (name, "1"), (name, "1"))
    assert (response.status, problem(response)) == (400, "bad-request")
    assert name in json.loads(response.body)["detail"]
    assert api.log.head.size == 700


# Reading.


@pytest.mark.parametrize("index", [0, 1, 255, 256, 511, 512, 513, 699])
async def test_an_entry_is_served_with_its_proof_to_the_newest_head(api: Api, index: int) -> None:
    entry, wanted = api.tree.entries[index], api.tree.path(index, 0, 700)
    response = await api.get(f"/v1/entries/{index}")
    assert (response.status, response.headers["content-type"]) == (200, JSON)
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["cache-control"] == "no-store"
    body = json.loads(response.body)
    assert body["index"] == index
    assert b64decode(body["entry"]) == entry
    assert body["leafHash"] == leaf(entry).hex()
    assert [b64decode(part) for part in body["proof"]] == wanted
    assert head_of(body["checkpoint"].encode()) == (700, api.tree.mth(0, 700))
    found = cbor2.loads((await api.get(f"/v1/entries/{index}", ("Accept", CBOR))).body)
    assert found.pop("checkpoint") == body["checkpoint"].encode()
    assert found == {"index": index, "entry": entry, "leafHash": leaf(entry), "proof": wanted}
    response = await api.get(f"/v1/entries/{index}", ("Accept", PROOF))
    verify_proof(parse_proof(response.body), entry, policy(api))


@pytest.mark.parametrize("index", ["700", "701", "9223372036854775807"])
async def test_an_entry_that_is_not_signed_is_not_found(api: Api, index: str) -> None:
    response = await api.get(f"/v1/entries/{index}")
    assert (response.status, problem(response)) == (404, "not-found")


BAD_NUMBERS = [
    "-1",
    "+1",
    "01",
    "00",
    "1.0",
    "x",
    "1_0",
    "0x1",
    "%31%20",
    "%20",
    "9223372036854775808",
    "9" * 4000,
    "\u0661",
    "%D9%A1",
    "\uff11",
    "1%00",
    "1%2F2",
    "..%2f1",
    "1;2",
    "%FF",
    "1%0a",
]


@pytest.mark.parametrize(
    "route",
    [
        "/v1/entries/{}",
        "/v1/proofs/inclusion/{}/5",
        "/v1/proofs/inclusion/0/{}",
        "/v1/proofs/consistency/{}/5",
        "/v1/proofs/consistency/1/{}",
    ],
)
async def test_a_number_that_is_none_is_refused_everywhere(api: Api, route: str) -> None:
    for number in BAD_NUMBERS:
        response = await api.get(route.format(number))
        assert (response.status, problem(response)) == (400, "bad-request"), number


# Proofs.


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 699, 700])
async def test_inclusion_proofs_are_those_of_the_rfc_at_every_size(api: Api, size: int) -> None:
    for index in {0, 1, 254, 255, 256, size // 2, size - 1}:
        response = await api.get(f"/v1/proofs/inclusion/{index}/{size}")
        if index >= size:
            assert (response.status, problem(response)) == (404, "not-found")
            continue
        assert (response.status, response.headers["content-type"]) == (200, JSON)
        assert response.headers["cache-control"] == IMMUTABLE
        assert response.headers["access-control-allow-origin"] == "*"
        body = json.loads(response.body)
        proof = [b64decode(part) for part in body.pop("proof")]
        assert body == {"index": index, "size": size, "leafHash": leaf(api.tree.entries[index]).hex()}
        assert proof == api.tree.path(index, 0, size)


@pytest.mark.parametrize("new", [1, 2, 255, 256, 257, 512, 513, 700])
async def test_consistency_proofs_are_those_of_the_rfc_at_every_size(api: Api, new: int) -> None:
    for old in {0, 1, 2, 128, 255, 256, 257, 511, new - 1, new}:
        response = await api.get(f"/v1/proofs/consistency/{old}/{new}")
        if old > new:
            assert (response.status, problem(response)) == (404, "not-found")
            continue
        assert response.status == 200
        assert response.headers["cache-control"] == IMMUTABLE
        assert response.headers["access-control-allow-origin"] == "*"
        body = json.loads(response.body)
        assert [b64decode(part) for part in body.pop("proof")] == api.tree.proof(old, new)
        assert body == {"from": old, "to": new}


@pytest.mark.parametrize(
    "route",
    [
        "inclusion/0/0",
        "inclusion/5/5",
        "inclusion/6/5",
        "inclusion/0/701",
        "inclusion/700/701",
        "inclusion/0/9223372036854775807",
        "inclusion/9223372036854775807/9223372036854775807",
        "consistency/5/4",
        "consistency/0/701",
        "consistency/700/701",
        "consistency/701/701",
        "consistency/0/9223372036854775807",
        "consistency/9223372036854775807/9223372036854775807",
    ],
)
async def test_proofs_of_sizes_that_are_not_signed_are_not_found(api: Api, route: str) -> None:
    response = await api.get(f"/v1/proofs/{route}")
    assert (response.status, problem(response)) == (404, "not-found")


async def test_a_proof_appears_with_its_size(api: Api) -> None:
    assert (await api.get("/v1/proofs/inclusion/700/701")).status == 404
    await api.post("/add", b"entry")
    assert (await api.get("/v1/proofs/inclusion/700/701")).status == 200
