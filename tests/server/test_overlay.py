"""Every tile and bundle of every size, cut from memory or from the tile store, against the definition."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfc6962 import Tree
from tests.support.static import addresses, content, every_width, framed
from tests.support.writing import Thread, memory_tiles
from tlog.edge import Edge, Growth, extend
from tlog.errors import NotFoundError
from tlog.server.derived import _open_overlay
from tlog.server.follower import derive, encoded, gunzip
from tlog.server.overlay import Overlay
from tlog.server.tree import Tree as ServedTree
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from tlog.server.storage.tiles import TileStore

pytestmark = pytest.mark.invariant("I5")

MAX = 700
TREE = Tree([b"%d" % number * (number % 5) for number in range(MAX + 1)])
LEAVES = b"".join(TREE.mth(index, index + 1) for index in range(MAX))


@cache
def edge(size: int) -> Edge:
    return extend(Edge(), leaves(0, size)).new


def leaves(start: int, end: int) -> list[bytes]:
    return [TREE.mth(index, index + 1) for index in range(start, end)]


def growth(old: int, new: int) -> Growth:
    return extend(edge(old), leaves(old, new))


def grow(overlay: Overlay, size: int) -> None:
    overlay.extend(growth(overlay.size, size), list(TREE.entries[overlay.size : size]))


def follow(store: TileStore, overlay: Overlay) -> None:
    """Do what the follower does."""
    while (derived := derive(overlay)) is not None:
        store.write(encoded(derived))
        overlay.trim(derived.size)


@pytest.mark.parametrize("position", [0, 256, 512])
def test_every_width_of_every_tile_above_the_position_is_there_at_every_size(position: int) -> None:
    overlay = Overlay(0, {})
    if position:
        grow(overlay, position)
        overlay.trim(position)
    for size in range(position, MAX + 1):
        if size > position:
            grow(overlay, size)
        for index in range(3):
            at, end = 256 * index, min(256 * (index + 1), size)
            for width in range(1, 257):
                visible = position <= at and at + width <= size
                wanted = LEAVES[32 * at : 32 * (at + width)] if visible else None
                assert overlay.tile(Tile(0, index, width)) == wanted
            for width in {1, 2, end - at - 1, end - at, end - at + 1, 256} - set(range(-1000, 1)):
                visible = position <= at and at + width <= size
                wanted = framed(TREE.entries[at : at + width]) if visible and width <= 256 else None
                assert width > 256 or overlay.bundle(Bundle(index, width)) == wanted
        for width in range(1, 4):
            wanted = content(TREE, (1, 0, width)) if 256 * width <= size else None
            assert overlay.tile(Tile(1, 0, width)) == wanted
        assert overlay.tile(Tile(1, 1, 1)) is overlay.tile(Tile(2, 0, 1)) is overlay.tile(Tile(63, 0, 1)) is None


def test_every_width_of_every_bundle_is_there_at_sizes_around_the_edges_of_bundles() -> None:
    for size in (1, 2, 3, 255, 256, 257, 511, 512, 513, 699, 700):
        overlay = Overlay(0, {})
        grow(overlay, size)
        for position in range(0, size + 1, 256):
            overlay.trim(position)
            for index in range(3):
                for width in range(1, 257):
                    visible = position <= 256 * index and 256 * index + width <= size
                    wanted = framed(TREE.entries[256 * index : 256 * index + width]) if visible else None
                    assert overlay.bundle(Bundle(index, width)) == wanted


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 300, 511, 512, 513, 700])
async def test_memory_and_store_together_hold_every_width_at_every_position(size: int) -> None:
    for position in range(0, size + 1, 256):
        store, overlay = memory_tiles(), Overlay(0, {})
        if position:
            grow(overlay, position)
            follow(store, overlay)
        if size > position:
            grow(overlay, size)
        assert overlay.position == position
        await check(store, overlay, size)


async def check(store: TileStore, overlay: Overlay, size: int) -> None:
    served = ServedTree(overlay, Thread(), store)
    for level, index, width in every_width(size):
        wanted = content(TREE, (level, index, width))
        if level is None:
            assert gunzip(await served.bundle(Bundle(index, width))) == wanted
        else:
            assert await served.tile(Tile(level, index, width)) == wanted
    for level, index, width in set(every_width(size + 300)) - set(every_width(size)):
        with pytest.raises(NotFoundError):
            await (served.bundle(Bundle(index, width)) if level is None else served.tile(Tile(level, index, width)))
    nodes = [(level, index) for level in range(11) for index in range(size >> level)]
    assert await served.hashes(nodes) == [TREE.mth(index << level, index + 1 << level) for level, index in nodes]
    assert [await served.entry(index) for index in range(size)] == list(TREE.entries[:size])
    with pytest.raises(NotFoundError):
        await served.entry(size)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.data())
async def test_any_batches_and_any_progress_of_the_follower_show_the_same_tiles(
    batches: list[int], data: st.DataObject
) -> None:
    store, overlay = memory_tiles(), Overlay(0, {})
    for batch in batches:
        size = min(MAX, overlay.size + batch)
        if size == overlay.size:
            break
        grow(overlay, size)
        if data.draw(st.booleans()):
            follow(store, overlay)
        served = ServedTree(overlay, Thread(), store)
        for level, index, width in addresses(size):
            got = served.bundle(Bundle(index, width)) if level is None else served.tile(Tile(level, index, width))
            found = await got
            assert (gunzip(found) if level is None else found) == content(TREE, (level, index, width))
        reopened = _open_overlay(store, None)
        assert reopened.position == overlay.position
        for level, index, width in addresses(overlay.position):
            if level == 1:
                assert reopened.tile(Tile(1, index, width)) == content(TREE, (1, index, width))


def test_a_commit_that_does_not_follow_is_refused() -> None:
    overlay = Overlay(0, {})
    grow(overlay, 5)
    for old in (0, 4, 6):
        with pytest.raises(ValueError, match="the overlay ends at 5"):
            overlay.extend(growth(old, 10), [])


def test_nodes_and_entries_below_the_position_and_beyond_the_end_are_not_there() -> None:
    overlay = Overlay(0, {})
    grow(overlay, 600)
    overlay.trim(512)
    assert overlay.hash_of((0, 511)) is overlay.hash_of((0, 600)) is overlay.hash_of((3, 63)) is None
    assert overlay.hash_of((8, 0)) == TREE.mth(0, 256)
    assert overlay.hash_of((9, 0)) == TREE.mth(0, 512)
    assert overlay.hash_of((3, 64)) == TREE.mth(512, 520)
    assert overlay.hash_of((-1, 0)) is overlay.hash_of((0, -1)) is overlay.hash_of((40, 0)) is None
    assert overlay.entry(511) is overlay.entry(600) is overlay.entry(-1) is None
    assert overlay.entry(512) == TREE.entries[512]
