"""The follower: what it derives, in which order it lets go, and what a failure leaves visible."""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.support.rfc6962 import Tree
from tests.support.static import content
from tests.support.writing import Thread, memory_leaves, memory_tiles
from tlog.edge import Edge, extend
from tlog.server import follower as module
from tlog.server.follower import Follower, derive, encoded, gunzip, gzip
from tlog.server.overlay import Overlay
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from tlog.server.storage.tiles import TileStore


class Log:
    """A tree that grows in an overlay."""

    def __init__(self, size: int = 0) -> None:
        self.tree = Tree([])
        self.edge = Edge()
        self.overlay = Overlay(0, {})
        self.grow(size)

    def grow(self, count: int) -> None:
        size = self.edge.size
        entries = [b"entry %d" % number for number in range(size, size + count)]
        self.tree = Tree([*self.tree.entries, *entries])
        growth = extend(self.edge, [self.tree.mth(index, index + 1) for index in range(size, size + count)])
        self.overlay.extend(growth, entries)
        self.edge = growth.new

    def check(self, store: TileStore) -> None:
        """Check that the store holds all full tiles and bundles below the position, and no other."""
        position = self.overlay.position
        assert store.position() == position
        for level in range(4):
            count = position >> 8 * (level + 1)
            tiles = store.tiles([Tile(level, index) for index in range(count + 1)])
            assert tiles == [*(content(self.tree, (level, index, 256)) for index in range(count)), None]
        for index in range(position // 256):
            data = store.bundle(index)
            assert data is not None
            assert zlib.decompress(data, 31) == content(self.tree, (None, index, 256))
        assert store.bundle(position // 256) is None


@pytest.mark.parametrize("size", [0, 1, 255])
def test_nothing_is_derived_before_a_bundle_is_full(size: int) -> None:
    assert derive(Log(size).overlay) is None


@pytest.mark.parametrize("size", [256, 257, 511, 512, 513, 1000])
async def test_what_is_full_is_written_and_then_dropped_from_memory(size: int) -> None:
    log, store = Log(size), memory_tiles()
    await Follower(Thread(), store, log.overlay, memory_leaves()).catch_up()
    assert log.overlay.position == size // 256 * 256
    log.check(store)
    assert log.overlay.entry(log.overlay.position - 1) is None


async def test_upper_tiles_are_written_when_they_are_full() -> None:
    log, store, thread = Log(), memory_tiles(), Thread()
    follower = Follower(thread, store, log.overlay, memory_leaves())
    for count in (65_000, 535, 1, 300):
        log.grow(count)
        await follower.catch_up()
        assert store.tiles([Tile(1, 0)]) == [content(log.tree, (1, 0, 256)) if log.edge.size >= 65_536 else None]
    log.check(store)
    assert log.overlay.tile(Tile(1, 1, 1)) == content(log.tree, (1, 1, 1))
    assert log.overlay.tile(Tile(2, 0, 1)) == content(log.tree, (2, 0, 1))


async def test_one_transaction_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BUNDLES", 2)
    log, store, thread = Log(256 * 5 + 7), memory_tiles(), Thread()
    await Follower(thread, store, log.overlay, memory_leaves()).catch_up()
    assert thread.runs == 3
    log.check(store)


async def test_it_follows_while_the_log_grows() -> None:
    log, store = Log(), memory_tiles()
    advanced = asyncio.Event()
    run = asyncio.create_task(Follower(Thread(), store, log.overlay, memory_leaves()).run(advanced))
    for _ in range(20):
        log.grow(97)
        advanced.set()
        while advanced.is_set() or log.overlay.position != log.edge.size // 256 * 256:  # noqa: ASYNC110  # one step
            await asyncio.sleep(0)
        log.check(store)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_everything_stays_in_memory_until_it_is_written() -> None:
    log, store, thread = Log(600), memory_tiles(), Thread()
    thread.gate.clear()
    task = asyncio.create_task(Follower(thread, store, log.overlay, memory_leaves()).catch_up())
    for _ in range(10):
        await asyncio.sleep(0)
    assert thread.runs == 1
    assert log.overlay.bundle(Bundle(0)) == content(log.tree, (None, 0, 256))
    assert log.overlay.tile(Tile(0, 1)) == content(log.tree, (0, 1, 256))
    log.grow(300)  # what comes meanwhile is left for later
    thread.gate.set()
    await task
    assert log.overlay.position == 768
    log.check(store)


async def test_a_failed_write_leaves_everything_in_memory_and_nothing_in_the_store() -> None:
    log, store = Log(600), memory_tiles()
    store._connection.execute("CREATE TRIGGER full BEFORE INSERT ON bundle BEGIN SELECT raise(ABORT, 'disk full'); END")
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        await Follower(Thread(), store, log.overlay, memory_leaves()).catch_up()
    assert log.overlay.position == store.position() == 0
    assert log.overlay.bundle(Bundle(1)) == content(log.tree, (None, 1, 256))
    assert store.tiles([Tile(0, 0)]) == [None]
    store._connection.execute("DROP TRIGGER full")
    await Follower(Thread(), store, log.overlay, memory_leaves()).catch_up()
    log.check(store)


async def test_tiles_are_written_once_and_never_replaced() -> None:
    log, store = Log(256), memory_tiles()
    derived = derive(log.overlay)
    assert derived is not None
    store.write(encoded(derived))
    with pytest.raises(sqlite3.IntegrityError):
        store.write(encoded(derived))


def test_only_full_tiles_are_stored() -> None:
    with pytest.raises(ValueError, match="only full tiles"):
        memory_tiles().tiles([Tile(0, 0, 255)])


def test_gzip_is_read_by_zlib_and_always_the_same() -> None:
    for data in (b"", b"x", bytes(100_000), bytes(range(256)) * 300):
        assert zlib.decompress(gzip(data), 31) == data
        assert gunzip(gzip(data)) == data
        assert gzip(data) == gzip(bytes(data))
