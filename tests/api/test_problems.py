"""Errors: one form in JSON, one in CBOR, never cached, and each exception in the table."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING

import cbor2
import pytest
from aiohttp import http_exceptions

import tlog.errors
import tlog.server.errors
from tests.api.test_entries import CBOR, JSON, problem
from tests.support.wire import connected, raw
from tlog.cbor import decode, encode
from tlog.errors import PushbackError, TreeheadError
from tlog.server.api import media
from tlog.server.api.problems import PROBLEMS, problem_of_parser_error
from tlog.server.errors import (
    CommitError,
    ConfigError,
    CreateError,
    DamageFoundError,
    SignerAwayError,
    SigningError,
    SourceError,
    StartRefusedError,
)

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.invariant("I22")

CONCISE = "application/concise-problem-details+cbor"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        (JSON, "application/problem+json"),
        (CBOR, CONCISE),
        (CONCISE, CONCISE),
        ("application/problem+cbor", CONCISE),
        (f"{CBOR}, {JSON}", "application/problem+json"),
        (f"{CBOR}, {JSON};q=0.9", CONCISE),
        (f"{CBOR}, application/problem+json", "application/problem+json"),
        (f"{CBOR}, */*;q=0.1", CONCISE),
        (f"{CBOR};q=0, */*", "application/problem+json"),
        ("text/html", "application/problem+json"),
    ],
)
async def test_a_problem_comes_in_the_form_that_accept_wants_more(api: Api, accept: str, form: str) -> None:
    response = await api.get("/v1/entries/700", ("Accept", accept))
    assert response.headers["content-type"] == form
    assert response.headers["cache-control"] == "no-store"


async def test_accept_may_be_sent_in_several_headers(api: Api) -> None:
    headers = (("Accept", "text/html"), ("Accept", CBOR))
    assert (await api.get("/v1/entries/3", *headers)).headers["content-type"] == CBOR
    assert (await api.get("/v1/entries/700", *headers)).headers["content-type"] == CONCISE


async def test_a_problem_in_cbor_says_the_same_as_in_json(api: Api) -> None:
    for route, status in (("/v1/entries/700", 404), ("/v1/entries/x", 400), ("/nowhere", 404)):
        in_json = json.loads((await api.get(route)).body)
        response = await api.get(route, ("Accept", CBOR))
        assert (response.status, response.headers["access-control-allow-origin"]) == (status, "*")
        body = cbor2.loads(response.body)
        assert body.pop(-2, None) == in_json.get("detail")
        assert body == {-1: in_json["title"], 7807: {0: in_json["type"], 1: status}}
        assert encode(decode(response.body)) == response.body, "not deterministic"


async def test_what_is_wrong_with_a_parameter_is_said_by_its_name_and_not_as_python_would(api: Api) -> None:
    for response, name in (
        (await api.get("/v1/entries/x"), "index"),
        (await api.get("/v1/proofs/inclusion/1/-1"), "size"),
        (await api.get("/v1/leaves/x"), "leafHash"),
        (await api.post("/v1/entries", b"", ("Treehead-Have", "x")), "Treehead-Have"),
    ):
        assert problem(response) == "bad-request"
        assert json.loads(response.body)["detail"].startswith(f"{name}: not ")


async def test_an_error_without_a_body_says_how_long_it_would_be(api: Api) -> None:
    response = await api.request("HEAD", "/v1/entries/700")
    assert (response.status, response.headers["content-type"]) == (404, "application/problem+json")
    assert int(response.headers["content-length"]) > 0
    assert (response.body, response.headers["cache-control"]) == (b"", "no-store")


@pytest.mark.parametrize("route", ["/checkpoint", "/nowhere", "/v1/entries"])
async def test_an_expectation_that_nobody_can_meet_is_a_problem_on_every_route(api: Api, route: str) -> None:
    response = await api.request("POST", route, b"entry", (("Expect", "miracles"),))
    assert (response.status, problem(response)) in ((417, "expectation"), (404, "not-found"), (405, "method"))


@pytest.mark.parametrize(
    "data",
    [
        b"junk\r\n\r\n",
        b"GET /checkpoint HTTP/9.9\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    ],
)
async def test_what_is_no_request_is_a_problem_and_ends_the_connection(api: Api, data: bytes) -> None:
    async with connected(api.port) as connection:
        try:
            response = await connection.send(data)
        except ConnectionResetError:
            return  # more was sent than was read
        assert (response.status, problem(response)) == (400, "bad-request")
        with pytest.raises(ConnectionResetError):
            await connection.request("GET", "/livez")


async def test_a_chunk_that_is_none_is_a_problem(api: Api) -> None:
    for body in (b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"-1\r\n\r\n", b"3;x\r\nab\x00\r\n\r\n"):
        async with raw(api.port) as (reader, writer):
            writer.write(b"POST /add HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 400 " in head.split(b"\r\n")[0]
            assert b"application/problem+json" in head
            assert b"no-store" in head
    assert api.log.head.size == 700


async def test_a_defect_says_nothing_about_the_inside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("secret"), CommitError("secret"), TimeoutError("secret")):

        async def fail(_: int, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(api.log, "read_entry", fail)
        response = await api.get("/v1/entries/1")
        assert (response.status, problem(response)) in ((500, "internal"), (408, "timeout"))
        assert b"secret" not in response.body


async def test_a_wait_is_told_only_where_it_is_known(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int = 1) -> None:
        raise PushbackError("later", retry_after=7)

    monkeypatch.setattr(api.log._writer, "check_admission", refuse)
    response = await api.post("/add", b"entry", ("Accept", CBOR))
    assert (response.status, response.headers["retry-after"]) == (503, "7")
    assert cbor2.loads(response.body)[-2] == "later"


def test_every_exception_that_can_reach_a_client_has_its_problem() -> None:
    never = {"VerificationError", "ForkError", "PolicyError", "CouldNotCheckError", "RefusedError", "UnavailableError"}
    ends = (
        StartRefusedError,
        SignerAwayError,
        SigningError,
        SourceError,
        CommitError,
        CreateError,
        ConfigError,
        DamageFoundError,
    )
    for module in (tlog.errors, tlog.server.errors, media):
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if not issubclass(kind, TreeheadError) or kind is TreeheadError or name in never or issubclass(kind, ends):
                continue
            means = [each for each in PROBLEMS if issubclass(kind, each.errors)]
            assert len(means) == 1, name


def test_types_are_unique_and_statuses_are_errors() -> None:
    assert len({each.type for each in PROBLEMS}) == len(PROBLEMS)
    assert all(400 <= each.status <= 599 and each.title and each.when.endswith(".") for each in PROBLEMS)


def test_what_fails_outside_every_handler_is_a_problem_too() -> None:
    too_long = problem_of_parser_error(400, http_exceptions.LineTooLong(b"x"))
    defect = problem_of_parser_error(500, ValueError("secret"))
    assert (too_long.status, defect.status) == (400, 500)
    for response in (too_long, defect):
        assert isinstance(response.body, bytes)
        assert json.loads(response.body)["status"] == response.status
        assert b"secret" not in response.body
        assert response.headers["Cache-Control"] == "no-store"
        assert not response.keep_alive
