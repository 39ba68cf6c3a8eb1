"""Expanded tiles and the tails of proofs, against the definition, and with every hash changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfc6962 import Tree
from tests.support.writing import Thread, memory_tiles
from tlog.edge import Edge, extend
from tlog.server.errors import DamageError
from tlog.server.expanded import EXPANDED_SIZE, expand, hash_in, siblings_in
from tlog.server.follower import derive, encoded
from tlog.server.overlay import Overlay
from tlog.server.tails import Tails
from tlog.server.tree import Tree as ServedTree

pytestmark = pytest.mark.invariant("I16")

SIZE = 1500
TREE = Tree([b"%d" % number for number in range(SIZE)])
LEAVES = [TREE.mth(index, index + 1) for index in range(SIZE)]


def test_every_node_of_an_expanded_tile_is_that_of_the_definition() -> None:
    expanded, parent = expand(b"".join(LEAVES[256:512]))
    assert len(expanded) == EXPANDED_SIZE
    assert parent == TREE.mth(256, 512)
    for height in range(8):
        for index in range(256 >> height):
            start = 256 + (index << height)
            assert hash_in(expanded, height, index) == TREE.mth(start, start + (1 << height))
    for index in range(256):
        assert siblings_in(expanded, index) == TREE.path(index, 256, 512)


async def served() -> ServedTree:
    """Return a tree of which everything up to entry 1,280 is in a tile store, and has been read."""
    store, overlay = memory_tiles(), Overlay(0, {})
    overlay.extend(extend(Edge(), LEAVES), TREE.entries)
    while (derived := derive(overlay)) is not None:
        store.write(encoded(derived))
        overlay.trim(derived.size)
    tree = ServedTree(overlay, Thread(), store)
    await tree.hashes([(0, index) for index in range(0, 1280, 256)])
    return tree


async def test_a_proof_is_that_of_the_definition_at_every_size() -> None:
    tails = Tails(await served())
    for size in (256, 257, 511, 512, 700, 1024, 1279, 1280, 1281, SIZE):
        for index in (*range(0, size, 37), size - 1):
            found = tails.prove(index, size, TREE.mth(0, size))
            if (index // 256 + 1) * 256 <= min(size, 1280):
                assert found == (LEAVES[index], TREE.path(index, 0, size))
            else:
                assert found is None, "it is in no full tile"


async def test_what_was_not_read_is_nobodys_proof() -> None:
    tree = await served()
    tree._tiles.clear()
    assert Tails(tree).prove(3, SIZE, TREE.mth(0, SIZE)) is None


async def test_a_root_that_is_not_the_trees_is_damage_also_when_the_tail_is_kept() -> None:
    tails = Tails(await served())
    assert tails.prove(3, SIZE, TREE.mth(0, SIZE)) is not None
    with pytest.raises(DamageError, match="consistency"):
        tails.prove(3, SIZE, bytes(32))
    assert tails.prove(3, SIZE, TREE.mth(0, SIZE)) is not None


@given(at=st.integers(0, EXPANDED_SIZE - 1), bit=st.integers(0, 7), is_read_first=st.booleans())
async def test_a_bit_that_flips_in_a_tile_in_memory_is_never_in_a_proof(
    at: int, bit: int, *, is_read_first: bool
) -> None:
    tree = await served()
    tails = Tails(tree)
    if is_read_first:
        tails.prove(256, SIZE, TREE.mth(0, SIZE))
    tile = bytearray(tree._tiles[0, 1])
    tile[at] ^= 1 << bit
    tree._tiles[0, 1] = bytes(tile)
    for index in range(256, 512):
        try:
            found = tails.prove(index, SIZE, TREE.mth(0, SIZE))
        except DamageError:
            continue
        assert found == (LEAVES[index], TREE.path(index, 0, SIZE))
