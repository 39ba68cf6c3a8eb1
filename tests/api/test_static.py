"""`/checkpoint`, tiles and bundles, as tlog-tiles says, and nothing else below `/tile/`."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest

from tests.api.test_entries import problem
from tests.support.static import addresses, content, every_width, path
from tests.support.wire import decoded, head_of
from tlog.policy import Policy

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.invariant("I5", "I22")

IMMUTABLE = "public, max-age=31536000, immutable"


async def test_the_checkpoint_is_signed_fresh_and_for_everybody(api: Api) -> None:
    response = await api.get("/checkpoint")
    assert response.status == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "content-encoding" not in response.headers
    assert head_of(response.body) == (700, api.tree.mth(0, 700))
    vkey = (api.data / "vkey").read_text().strip()
    assert Policy.of_log(vkey).open_checkpoint(response.body).size == 700


async def test_every_tile_and_bundle_is_as_defined_and_immutable(api: Api) -> None:
    for address in addresses(700):
        response = await api.get(path(address))
        assert response.status == 200
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["cache-control"] == IMMUTABLE
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers.get("content-encoding") == ("gzip" if address[0] is None else None)
        assert decoded(response).body == content(api.tree, address)


async def test_every_width_up_to_the_signed_size_is_there_and_none_beyond(api: Api) -> None:
    for address in list(every_width(700))[::7]:
        assert decoded(await api.get(path(address))).body == content(api.tree, address)
    for address in sorted(set(every_width(1024)) - set(every_width(700)), key=path)[::17]:
        response = await api.get(path(address))
        assert (response.status, response.headers["cache-control"]) == (404, "no-store")


async def test_what_is_not_there_yet_is_there_once_it_is_signed(api: Api) -> None:
    assert (await api.get("/tile/0/002.p/189")).status == 404
    assert (await api.get("/tile/entries/002.p/189")).status == 404
    await api.log.add(b"one more")
    assert (await api.get("/tile/0/002.p/189")).status == 200
    bundle = await api.get("/tile/entries/002.p/189")
    assert zlib.decompress(bundle.body, 31).endswith(b"\x00\x08one more")


async def test_a_bundle_is_gzip_also_for_those_who_do_not_ask_for_it(api: Api) -> None:
    for value in ("identity", "br", ""):
        response = await api.get("/tile/entries/000", ("Accept-Encoding", value))
        assert response.headers["content-encoding"] == "gzip"


async def test_head_requests_get_headers_alone(api: Api) -> None:
    for route in ("/checkpoint", "/tile/0/000", "/tile/entries/000", "/readyz"):
        response = await api.request("HEAD", route)
        assert (response.status, response.body) == (200, b"")
        assert int(response.headers["content-length"]) > 0


BAD_PATHS = [
    "/tile/0",
    "/tile/0/",
    "/tile/",
    "/tile",
    "/tile/0/0",
    "/tile/0/00",
    "/tile/0/0000",
    "/tile/0/000/",
    "/tile//000",
    "//tile/0/000",
    "/tile/0//000",
    "/tile/00/000",
    "/tile/01/000",
    "/tile/64/000",
    "/tile/-1/000",
    "/tile/+0/000",
    "/tile/ 0/000",
    "/tile/0/x000/000",
    "/tile/0/x000/001",
    "/tile/0/x001/000.p/0",
    "/tile/0/000.p/0",
    "/tile/0/000.p/00",
    "/tile/0/000.p/01",
    "/tile/0/000.p/256",
    "/tile/0/000.p/257",
    "/tile/0/000.p/1000",
    "/tile/0/000.p/-1",
    "/tile/0/000.p/",
    "/tile/0/000.p",
    "/tile/0/000.p/1/",
    "/tile/0/000.P/1",
    "/tile/0/X001/000",
    "/tile/0/001/000",
    "/tile/0/x001/x000",
    "/tile/0/x01/000",
    "/tile/0/1",
    "/tile/0/abc",
    "/tile/0/0x0",
    "/tile/0/1_0",
    "/tile/0/x999/x999/x999/x999/x999/x999/999",
    "/tile/0/" + "x999/" * 300 + "999",
    "/tile/0/999999999",
    "/tile/63/x999/x999/x999/x999/x999/999",
    "/tile/0/x999/x999/x999/x999/x999/999",
    "/tile/" + "9" * 5000 + "/000",
    "/tile/0/000;x",
    "/tile/0/000%00",
    "/tile/0/%2e%2e/0/000",
    "/tile/0/../0/000",
    "/tile/../tile/0/000",
    "/tile/./0/000",
    "/tile/%30/000",
    "/tile/0/%30%30%30",
    "/tile/0%2f000",
    "/tile/entries",
    "/tile/entries/",
    "/tile/entries/0",
    "/tile/entries/000.p/256",
    "/tile/entries/000.p/0",
    "/tile/entries/../entries/000",
    "/tile/Entries/000",
    "/tile/data/000",
    "/tile/\u0660/000",
    "/tile/0/\u0660\u0660\u0660",
    "/tile/0/\uff10\uff10\uff10",
    "/tile/0/000.p/\u0661",
    "/tile/%D9%A0/000",
    "/tile/0/%EF%BC%90%EF%BC%90%EF%BC%90",
    "/tile/0/%FF%FE",
    "/tile/0/%",
    "/tile/0/%zz",
    "/checkpoint/",
    "/checkpoint/..",
    "/../checkpoint",
    "/%2e%2e/key",
    "/../key",
    "/tile/../../key",
    "/tile/%2e%2e/%2e%2e/key",
    "/log.db",
    "/key",
    "/",
    "/v1",
    "/v1/",
    "/v1/entries/",
    "/v1/proofs/inclusion/1",
    "/v2/entries/1",
]


async def test_a_path_that_is_none_is_not_found_or_refused_and_never_a_defect(api: Api) -> None:
    for route in BAD_PATHS:
        response = await api.get(route)
        assert response.status in (400, 404), route
        assert problem(response) in ("not-found", "bad-request"), route
        assert b"Traceback" not in response.body, route


async def test_a_query_does_not_make_another_tile(api: Api) -> None:
    assert (await api.get("/tile/0/000?width=3")).body == content(api.tree, (0, 0, 256))
    assert (await api.get("/checkpoint?x=1")).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_static_routes_have_no_other_methods(api: Api, method: str) -> None:
    for route in ("/checkpoint", "/tile/0/000"):
        response = await api.request(method, route, b"")
        assert response.status == 405
        assert response.headers["allow"] == "GET,HEAD,OPTIONS"
        assert response.headers["cache-control"] == "no-store"
