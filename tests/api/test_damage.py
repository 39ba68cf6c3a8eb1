"""A damaged tile store gives 500 "damaged", and never a wrong answer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.api.test_entries import problem
from tests.support.grow import edit
from tests.support.static import addresses, content, path
from tests.support.wire import decoded
from tlog.server.follower import gunzip, gzip

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.conftest import Api

pytestmark = pytest.mark.invariant("I16", "I24")


def change(api: Api, table: str, column: str, number: int, by: Callable[[bytes], bytes]) -> None:
    """Change one value in tiles.db while the log runs."""
    with closing(sqlite3.connect(api.data / "tiles.db")) as connection:
        (data,) = connection.execute(f"SELECT {column} FROM {table} WHERE id = ?", (number,)).fetchone()
    edit(api.data / "tiles.db", (f"UPDATE {table} SET {column} = ? WHERE id = ?", (by(data), number)))


def flip(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


async def assert_damaged(api: Api, route: str) -> None:
    response = await api.get(route)
    assert (response.status, problem(response)) == (500, "damaged")


PROOFS = ["/v1/entries/3", "/v1/proofs/inclusion/3/700", "/v1/proofs/inclusion/3/300", "/v1/proofs/consistency/3/300"]
TILES = ["/tile/0/000", "/tile/0/000.p/255", "/tile/0/000.p/1"]
BUNDLES = ["/tile/entries/000", "/tile/entries/000.p/255", "/tile/entries/000.p/1"]


@pytest.mark.parametrize("at", [0, 32 * 2, 32 * 3, 8191])
async def test_a_changed_tile_proves_nothing_and_is_not_served(api: Api, at: int) -> None:
    change(api, "tile", "hashes", 0, lambda data: flip(data, at))
    for route in (*PROOFS, *TILES, *BUNDLES):
        await assert_damaged(api, route)


async def test_a_tile_of_another_place_proves_nothing_and_is_not_served(api: Api) -> None:
    change(api, "tile", "hashes", 0, lambda _: content(api.tree, (0, 1, 256)))
    for route in (*PROOFS, *TILES, *BUNDLES):
        await assert_damaged(api, route)


async def test_a_missing_tile_proves_nothing_and_is_no_404(api: Api) -> None:
    edit(api.data / "tiles.db", "DELETE FROM tile WHERE id = 0")
    for route in (*PROOFS, *TILES, *BUNDLES):
        await assert_damaged(api, route)


@pytest.mark.parametrize(
    "by",
    [
        lambda data: gzip(flip(gunzip(data), 2 + len(gunzip(data)) // 2)),
        lambda data: gzip(flip(gunzip(data), 0)),
        lambda data: gzip(gunzip(data)[:-1]),
        lambda data: gzip(gunzip(data) + b"\x00\x00"),
        lambda _: gzip(b""),
        lambda data: flip(data, len(data) // 2),
        lambda data: data[: len(data) // 2],
        lambda data: flip(data, 0),
        lambda _: b"",
        lambda data: data + b"junk",
        lambda data: data + gzip(b"more"),
    ],
    ids=["entry", "framing", "short", "long", "nothing", "bit", "cut", "no gzip", "no bytes", "junk behind", "two"],
)
async def test_a_changed_bundle_gives_no_entry_and_is_not_served(api: Api, by: Callable[[bytes], bytes]) -> None:
    change(api, "bundle", "gzip", 0, by)
    for route in (*BUNDLES, "/v1/entries/0", "/v1/entries/3", "/v1/entries/255"):
        await assert_damaged(api, route)
    for route in ("/tile/0/000", "/v1/proofs/inclusion/3/700"):
        assert (await api.get(route)).status == 200


async def test_what_was_checked_once_is_served_although_it_was_damaged_since(api: Api) -> None:
    before = [decoded(await api.get(route)).body for route in (TILES[0], BUNDLES[0])]
    change(api, "tile", "hashes", 0, flip)
    change(api, "bundle", "gzip", 0, lambda data: data[:9])
    assert [decoded(await api.get(route)).body for route in (TILES[0], BUNDLES[0])] == before


async def test_a_missing_bundle_is_no_404(api: Api) -> None:
    edit(api.data / "tiles.db", "DELETE FROM bundle WHERE id = 1")
    for route in ("/tile/entries/001", "/tile/entries/001.p/3", "/v1/entries/256"):
        await assert_damaged(api, route)


async def test_what_is_not_damaged_is_still_served(api: Api) -> None:
    change(api, "tile", "hashes", 0, flip)
    edit(api.data / "tiles.db", "DELETE FROM bundle WHERE id = 0")
    for address in addresses(700):
        if address not in ((0, 0, 256), (None, 0, 256)):
            assert decoded(await api.get(path(address))).body == content(api.tree, address)
    assert (await api.get("/v1/entries/600")).status == 200
    assert (await api.post("/v1/entries", b"still taken")).status == 201
    assert (await api.get("/readyz")).status == 200
