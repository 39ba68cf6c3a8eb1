"""A running tlogd does what its committed description says, tried with requests made from it by schemathesis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cbor2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.support.server import Server, init_log
from tlog.cbor import decode, encode
from tlog.server.api.openapi import PATH
from tlog.server.api.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case

DESCRIBED = schemathesis.openapi.from_path(PATH).exclude(path="/v1/checkpoints/stream")  # it never ends

TYPES = {each.type for each in PROBLEMS}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real server."""
    data = tmp_path_factory.mktemp("described") / "log"
    init_log(data)
    with Server(data) as running:
        yield f"http://127.0.0.1:{running.port}"
        assert running.events("request.failed") == []


@schemathesis.serializer("application/cbor")
def to_cbor(_: schemathesis.SerializationContext, value: object) -> bytes:
    """Write a body that schemathesis made: of a batch, its strings are byte strings."""
    if isinstance(value, list):
        value = [each.encode("utf-8", "replace") if isinstance(each, str) else each for each in value]
    return cbor2.dumps(value)


def header(response: schemathesis.Response, name: str) -> str:
    """Return the only value of a header."""
    (value,) = {key.lower(): values for key, values in response.headers.items()}[name]
    return value


def check(case: Case[Any], url: str) -> None:
    """Send a request twice, for an answer in JSON and one in CBOR, and check both."""
    about_all = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    response = case.call_and_validate(
        base_url=url,
        checks=[*about_all, checks.response_headers_conformance, checks.response_schema_conformance],
    )
    if response.status_code >= 400:
        assert response.json()["type"] in TYPES
        assert header(response, "cache-control") == "no-store"
    response = case.call_and_validate(base_url=url, headers={"Accept": "application/cbor"}, checks=about_all)
    if response.status_code >= 400:
        assert cbor2.loads(response.content)[7807][0] in TYPES
    elif response.status_code != 204 and header(response, "content-type") == "application/cbor":  # 204 for OPTIONS
        assert encode(decode(response.content)) == response.content, "not deterministic"


@DESCRIBED.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
def test_an_answer_is_as_described(case: Case[Any], url: str) -> None:
    check(case, url)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@DESCRIBED.parametrize()
@settings(max_examples=1000, suppress_health_check=list(HealthCheck), deadline=None)
def test_many_answers_are_as_described(case: Case[Any], url: str) -> None:
    check(case, url)
