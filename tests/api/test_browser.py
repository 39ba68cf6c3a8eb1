"""What a browser needs to let a page of another origin use the log (Fetch standard, CORS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.routes import EXAMPLES
from tlog.server.api.openapi import OF_A_LOG, OF_THE_SERVER

if TYPE_CHECKING:
    from tests.api.conftest import Api
    from tlog.server.api.operation import Operation


@pytest.mark.parametrize("operation", OF_A_LOG, ids=[each.handler.__name__ for each in OF_A_LOG])
async def test_a_preflight_allows_what_the_route_takes(api: Api, operation: Operation) -> None:
    path = EXAMPLES[operation.path]
    response = await api.request(
        "OPTIONS",
        path,
        None,
        (
            ("Origin", "https://example.com"),
            ("Access-Control-Request-Method", operation.method),
            ("Access-Control-Request-Headers", "idempotency-key,treehead-have,content-type"),
        ),
    )
    assert (response.status, response.body) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert operation.method in response.headers["access-control-allow-methods"].split(", ")
    assert response.headers["allow"] == response.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {"idempotency-key", "treehead-have", "content-type", "accept"} <= allowed
    assert int(response.headers["access-control-max-age"]) > 0
    assert response.headers["cache-control"] == "no-store"


async def test_a_script_may_read_what_it_must_wait_for(api: Api) -> None:
    for response in (await api.post("/v1/entries", b"entry"), await api.get("/v1/entries/7000")):
        exposed = {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}
        assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= exposed
        assert response.headers["access-control-allow-origin"] == "*"


async def test_what_is_for_the_operator_is_not_for_pages(api: Api) -> None:
    for operation in OF_THE_SERVER:
        response = await api.get(operation.path)
        assert response.status == 200
        assert "access-control-allow-origin" not in response.headers
        assert (await api.request("OPTIONS", operation.path)).status == 405
