"""Reading through tiles: what an honest log gives is right, and every lie is refused."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lying_log import LyingLog, addresses, run, run_http
from tests.support.mutation import flip
from tests.support.rfc6962 import Tree
from tests.support.skips import vectors
from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.fetch import over_http
from tlog.merkle import MAX_SIZE, verify_consistency, verify_inclusion
from tlog.policy import Policy
from tlog.reader import (
    ReadBundles,
    Reading,
    ReadTiles,
    TileCache,
    read_bundles,
    read_consistency_proof,
    read_entries,
    read_hashes,
    read_inclusion_proof,
    read_root,
)
from tlog.tile import Bundle, Tile, parse_path

ENTRIES = [b"entry %d" % number for number in range(66_100)]
SIZES = [0, 1, 2, 5, 255, 256, 257, 511, 512, 513, 600, 1000]
LARGE = Tree(ENTRIES)


def log_of(size: int) -> LyingLog:
    return LyingLog(ENTRIES[:size])


def log_of_66_100() -> LyingLog:
    log = LyingLog(())
    log.tree = log.bundles_of = log.tiles_of = LARGE  # its hashes are remembered from test to test
    return log


# ----------------------------------------------------------------------------------------------------- an honest log


@pytest.mark.parametrize("size", SIZES)
def test_an_honest_log_is_read(size: int) -> None:
    log = log_of(size)
    head, tree = log.head(), log.tree
    nodes = [(level, index) for level in range(size.bit_length()) for index in range(size >> level)]
    assert run(read_hashes(head, nodes), log) == [tree.mth(i << level, i + 1 << level) for level, i in nodes]
    for old in {0, 1, size // 3, size // 2, max(0, size - 1), size} & set(range(size + 1)):
        assert run(read_root(head, old), log) == tree.mth(0, old)
        assert run(read_consistency_proof(head, old), log) == tree.proof(old, size)
        assert run(read_entries(head, old, size), log) == ENTRIES[old:size]
        assert run(read_bundles(old // 2, old, size), log) == ENTRIES[old // 2 : old]
    for index in {0, size // 2, size - 1} & set(range(size)):
        assert run(read_inclusion_proof(head, index), log) == tree.path(index, 0, size)


@settings(max_examples=40)
@given(st.data())
def test_a_log_of_three_tile_levels_is_read(data: st.DataObject) -> None:
    log = log_of_66_100()
    size = data.draw(st.one_of(st.integers(65_000, 66_100), st.sampled_from([65_535, 65_536, 65_537, 65_792])))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start, min(size, start + 400)))
    head = log.head(size)
    cache = TileCache()
    for flow in (read_entries(head, start, end, cache), read_entries(head, start, end, cache)):
        assert run(flow, log) == ENTRIES[start:end]
    path = run(read_inclusion_proof(head, start, cache), log)
    verify_inclusion(LARGE.mth(start, start + 1), start, size, path, head.root)
    proof = run(read_consistency_proof(head, start, cache), log)
    verify_consistency(start, size, proof, LARGE.mth(0, start), head.root)
    assert run(read_root(head, start, cache), log) == LARGE.mth(0, start)
    full_tiles = [path for path in log.asked if ".p/" not in path and "entries" not in path]
    assert len(full_tiles) == len(set(full_tiles))  # none is asked for twice


def test_one_request_asks_for_all_tiles_of_a_flow() -> None:
    log = log_of_66_100()
    flow = read_inclusion_proof(log.head(), 12_345)
    request = next(flow)
    assert isinstance(request, ReadTiles)
    assert [tile.path for tile in request.tiles] == [
        "tile/2/000.p/1",
        *("tile/1/000", "tile/1/001.p/2"),
        *("tile/0/048", "tile/0/258.p/52"),
    ]
    with pytest.raises(StopIteration):
        flow.send(log.answer(request))


def test_the_empty_tree_is_read_without_a_request() -> None:
    log = log_of(0)
    assert run(read_hashes(log.head(), []), log) == []
    assert run(read_root(log.head(), 0), log) == log.tree.mth(0, 0)
    assert run(read_entries(log.head(), 0, 0), log) == []
    assert run(read_consistency_proof(log.head(), 0), log) == []
    assert log.asked == []
    with pytest.raises(VerificationError):
        run(read_hashes(replace(log.head(), root=bytes(32)), []), log)


def test_entries_that_are_in_one_bundle_ask_for_that_bundle() -> None:
    assert next(read_bundles(256, 257, 1000)) == ReadBundles((Bundle(1),))
    assert next(read_bundles(255, 257, 300)) == ReadBundles((Bundle(0), Bundle(1, 44)))
    assert next(read_bundles(1, 2, 2)) == ReadBundles((Bundle(0, 2),))
    assert run(read_bundles(256, 256, 256), log_of(256)) == []


def test_what_is_outside_of_the_tree_is_not_asked_for() -> None:
    log = log_of(5)
    head = log.head()
    flows: list[Reading[object]] = [
        *(read_hashes(head, [node]) for node in [(0, 5), (0, -1), (1, 2), (2, 1), (3, 0), (64, 0), (-1, 0)]),
        *(read_root(head, size) for size in (-1, 6, MAX_SIZE, MAX_SIZE + 1)),
        *(read_inclusion_proof(head, index) for index in (-1, 5, MAX_SIZE)),
        *(read_consistency_proof(head, size) for size in (-1, 6)),
        *(read_entries(head, start, end) for start, end in [(-1, 2), (2, 1), (0, 6), (5, 6), (6, 6)]),
        *(read_bundles(start, end, 5) for start, end in [(-1, 2), (2, 1), (0, 6)]),
    ]
    for flow in flows:
        with pytest.raises(ValueError, match=r"."):
            next(flow)
    assert log.asked == []


# ---------------------------------------------------------------------------------------------------------- every lie

FLOWS: dict[str, Callable[[Checkpoint, TileCache | None], Reading[object]]] = {
    "hashes": lambda head, cache: read_hashes(head, [(0, 0), (1, head.size // 2 - 1), (0, head.size - 1)], cache),
    "no hashes": lambda head, cache: read_hashes(head, [], cache),
    "root": lambda head, cache: read_root(head, head.size - 1, cache),
    "old root": lambda head, cache: read_root(head, head.size // 2, cache),
    "entries": lambda head, cache: read_entries(head, 0, head.size, cache),
    "inclusion proof": lambda head, cache: read_inclusion_proof(head, head.size // 2, cache),
    "consistency proof": lambda head, cache: read_consistency_proof(head, head.size // 2, cache),
}

CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda data: flip(data, 0),
    "bit in the middle": lambda data: flip(data, 4 * len(data)),
    "last bit": lambda data: flip(data, -1),
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\x00",
    "one hash less": lambda data: data[:-32],
    "one hash more": lambda data: data + data[-32:],
    "first hash twice": lambda data: data[:32] + data[:-32],
    "nothing": lambda _: b"",
    "reversed": lambda data: data[::-1],
}


def refused(flow: Reading[object], log: LyingLog) -> None:
    with pytest.raises((VerificationError, FormatError)):
        run(flow, log)


def refused_both_ways(make: Callable[[], Reading[object]], log: LyingLog) -> None:
    refused(make(), log)
    with pytest.raises((VerificationError, FormatError)):
        run_http(over_http(make()), log.respond)


def differs(change: Callable[[bytes], bytes], data: bytes) -> bool:
    return change(data) != data


@pytest.mark.parametrize("size", [2, 5, 256, 257, 600])
@pytest.mark.parametrize("name", FLOWS)
def test_every_change_to_anything_asked_for_is_refused(name: str, size: int) -> None:
    honest = log_of(size)
    run(FLOWS[name](honest.head(), None), honest)
    for path in set(honest.asked):
        for change in CHANGES.values():
            log = log_of(size)
            if differs(change, log.read(parse_path(path))):
                log.lie(path, change)
                cache = TileCache()
                refused_both_ways(partial(FLOWS[name], log.head(), cache), log)
                assert all(data == honest.read(tile) for tile, data in held(cache).items())


@pytest.mark.parametrize("name", ["root", "old root", "inclusion proof", "consistency proof"])
def test_every_change_is_refused_in_a_log_of_three_tile_levels(name: str) -> None:
    log = log_of_66_100()
    run(FLOWS[name](log.head(), None), log)
    for path in set(log.asked):
        for change in CHANGES.values():
            log = log_of_66_100()
            if differs(change, log.read(parse_path(path))):
                log.lie(path, change)
                refused(FLOWS[name](log.head(), None), log)


@pytest.mark.parametrize("name", FLOWS)
def test_the_tiles_of_another_tree_are_refused(name: str) -> None:
    for size in (5, 256, 300, 600):
        for other in (
            [*ENTRIES[: size - 1], b"another last entry"],
            [b"another first entry", *ENTRIES[1:size]],
            ENTRIES[: size - 1],
            ENTRIES[1 : size + 1],
            [],
        ):
            log = log_of(size)
            log.serve(other)
            refused_both_ways(partial(FLOWS[name], log.head(), TileCache()), log)


@pytest.mark.parametrize("name", FLOWS)
def test_two_swapped_entries_are_refused(name: str) -> None:
    for first, second in ((0, 1), (0, 299), (298, 299), (255, 256)):
        log = log_of(300)
        log.serve_swapped(first, second)
        refused_both_ways(partial(FLOWS[name], log.head(), TileCache()), log)


def test_a_longer_tree_with_the_same_beginning_gives_the_same_answers() -> None:
    log = log_of(600)
    for name, flow in FLOWS.items():
        head = log.head(300)
        assert run(flow(head, None), log) == run(flow(head, None), log_of(300)), name


@pytest.mark.parametrize("name", FLOWS)
def test_a_head_of_another_size_or_root_is_refused(name: str) -> None:
    log = log_of(600)
    head = log.head(300)
    for bad in (replace(head, root=flip(head.root, 3)), replace(head, size=299), replace(head, size=301)):
        refused_both_ways(partial(FLOWS[name], bad, TileCache()), log)


def test_an_entry_that_is_not_the_one_in_the_tree_is_named() -> None:
    log = log_of(300)
    log.bundles_of = Tree([*ENTRIES[:280], b"forged", *ENTRIES[281:300]])
    assert run(read_entries(log.head(), 0, 280), log) == ENTRIES[:280]
    with pytest.raises(VerificationError, match="entry 280 is not the one that the tree of size 300 holds"):
        run(read_entries(log.head(), 270, 290), log)
    assert run(read_bundles(279, 282, 300), log) == [ENTRIES[279], b"forged", ENTRIES[281]]


@given(st.data())
def test_whatever_a_log_answers_the_result_is_right_or_an_error(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([5, 256, 300, 513]))
    name = data.draw(st.sampled_from(sorted(FLOWS)))
    log, honest = log_of(size), log_of(size)
    right = run(FLOWS[name](honest.head(), None), honest)
    for path in data.draw(st.sets(st.sampled_from(sorted(set(honest.asked))), min_size=1)):
        log.lie(path, CHANGES[data.draw(st.sampled_from(sorted(CHANGES)))])
    with suppress(TreeheadError):
        assert run(FLOWS[name](log.head(), TileCache()), log) == right


# ---------------------------------------------------------------------------------------------------------- the cache


def held(cache: TileCache) -> dict[Tile, bytes]:
    return dict(cache._tiles)


def test_only_full_tiles_that_were_verified_enter_the_cache() -> None:
    log, cache = log_of(600), TileCache()
    run(read_entries(log.head(), 0, 600, cache), log)
    assert held(cache) == {tile: log.read(tile) for tile in (Tile(0, 0), Tile(0, 1))}
    assert cache.get(Tile(0, 0)) == log.read(Tile(0, 0))
    assert cache.get(Tile(0, 2, 88)) is None
    cache.put(Tile(0, 2, 88), b"partial")
    assert cache.get(Tile(0, 2, 88)) is None


def test_cached_tiles_are_not_asked_for_again() -> None:
    log, cache = log_of(600), TileCache()
    first = run(read_hashes(log.head(), [(0, 3), (0, 300)], cache), log)
    log.asked.clear()
    assert run(read_hashes(log.head(), [(0, 3), (0, 300)], cache), log) == first
    assert log.asked == ["tile/1/000.p/2", "tile/0/002.p/88"]


def test_a_tree_of_65536_takes_one_tile_besides_the_cached_ones() -> None:
    log, cache = log_of_66_100(), TileCache()
    head = log.head(65_536)
    run(read_hashes(head, [(0, 0)], cache), log)
    log.asked.clear()
    flow = read_hashes(head, [(0, 0)], cache)
    assert run(flow, log) == [LARGE.mth(0, 1)]
    assert log.asked == ["tile/2/000.p/1"]


def test_nothing_that_a_lying_log_sent_stays_in_the_cache() -> None:
    log, lying, cache = log_of(600), log_of(600), TileCache()
    for path in ("tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"):
        lying = log_of(600)
        lying.lie(path, lambda data: flip(data, 77))
        refused(read_hashes(lying.head(), [(0, 3), (0, 300)], cache), lying)
        assert held(cache) == {}
    lying = log_of(600)
    run(read_hashes(log.head(), [(0, 3)], cache), log)
    lying.lie("tile/0/001", lambda data: flip(data, 77))
    refused(read_hashes(lying.head(), [(0, 3), (0, 300)], cache), lying)
    assert held(cache) == {}


@pytest.mark.parametrize("name", ["hashes", "old root", "entries", "inclusion proof", "consistency proof"])
def test_cached_tiles_that_do_not_fit_a_new_head_are_forgotten_and_read_again(name: str) -> None:
    cache = TileCache()
    old = log_of(600)
    run(FLOWS[name](old.head(), cache), old)
    run(read_hashes(old.head(), [(0, 0), (0, 256)], cache), old)
    new = LyingLog([b"another %d" % number for number in range(700)])
    assert run(FLOWS[name](new.head(), cache), new) == run(FLOWS[name](new.head(), None), new)
    assert held(cache)
    for tile, data in held(cache).items():
        assert data == new.read(tile)


def test_a_wrong_tile_in_the_cache_is_never_believed() -> None:
    log = log_of(600)
    for tile in (Tile(0, 0), Tile(0, 1)):
        cache = TileCache()
        cache.put(tile, flip(log.read(tile), 1234))
        assert run(read_entries(log.head(), 0, 600, cache), log) == ENTRIES[:600]
        assert held(cache)[tile] == log.read(tile)


def test_the_tile_used_least_recently_is_dropped_first() -> None:
    cache = TileCache(capacity=2)
    cache.put(Tile(0, 0), b"zero")
    cache.put(Tile(0, 1), b"one")
    assert cache.get(Tile(0, 0)) == b"zero"
    cache.put(Tile(0, 2), b"two")
    assert list(held(cache)) == [Tile(0, 0), Tile(0, 2)]
    cache.put(Tile(0, 0), b"zero")
    cache.put(Tile(0, 3), b"three")
    assert list(held(cache)) == [Tile(0, 0), Tile(0, 3)]
    cache.clear()
    assert cache.get(Tile(0, 0)) is None


def test_a_cache_that_is_too_small_does_no_harm() -> None:
    log, cache = log_of(1000), TileCache(capacity=1)
    for _ in range(2):
        assert run(read_entries(log.head(), 0, 1000, cache), log) == ENTRIES[:1000]
        assert len(held(cache)) == 1


# ------------------------------------------------------------------------------------------------- the log of Tessera


class Folder:
    """A log in files, as Tessera wrote it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, flow: Reading[object]) -> object:
        try:
            request = next(flow)
            while True:
                request = flow.send([(self.folder / address.path).read_bytes() for address in addresses(request)])
        except StopIteration as done:
            return done.value


def test_every_file_of_a_log_of_tessera_is_read_and_verified() -> None:
    folder = vectors("tiles") / "tessera_log15"
    case = json.loads((vectors("tiles") / "tessera_log15.json").read_text())
    entries = [entry.encode() for entry in case["entries_utf8"]]
    policy, log, tree = Policy.of_log(case["vkey"]), Folder(folder), Tree(entries)
    heads = [policy.open_checkpoint((folder / f"checkpoint.{size}").read_bytes()) for size in range(16)]
    assert policy.open_checkpoint((folder / "checkpoint").read_bytes()) == heads[15]
    for size, head in enumerate(heads):
        assert head == Checkpoint(case["origin"], size, tree.mth(0, size))
        assert log.run(read_entries(head, 0, size)) == entries[:size]
        for older in heads[: size + 1]:
            assert log.run(read_root(head, older.size)) == older.root
            assert log.run(read_consistency_proof(head, older.size)) == tree.proof(older.size, size)
        for index in range(size):
            assert log.run(read_inclusion_proof(head, index)) == tree.path(index, 0, size)
    paths = [str(path.relative_to(folder)) for path in folder.glob("tile/**/*") if path.is_file()]
    assert len(paths) == 30
    for path in paths:
        assert parse_path(path).path == path
