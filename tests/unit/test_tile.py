"""Tiles and bundles: geometry against the definition of tlog-tiles, paths and codecs against the vectors."""

import json
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import mutations
from tests.support.rfc6962 import Tree
from tests.support.skips import vectors
from tlog.errors import FormatError
from tlog.merkle import MAX_SIZE
from tlog.tile import (
    MAX_BUNDLE_SIZE,
    Bundle,
    Tile,
    cut_bundle,
    format_bundle,
    format_tile,
    hash_in_tile,
    parse_bundle,
    parse_path,
    parse_tile,
    tile_of,
    width_at,
)

TREE = Tree([b"%d" % number for number in range(66_100)])

indexes = st.one_of(st.integers(0, 2000), st.integers(0, 10**18 - 1))
widths = st.one_of(st.just(256), st.integers(1, 255))
addresses: st.SearchStrategy[Tile | Bundle] = st.one_of(
    st.builds(Tile, st.integers(0, 63), indexes, widths), st.builds(Bundle, indexes, widths)
)


def refused(path: str) -> None:
    with pytest.raises(FormatError):
        parse_path(path)


# -------------------------------------------------------------------------------------------------------------- paths


@given(addresses)
def test_every_address_is_read_back_from_its_path(address: Tile | Bundle) -> None:
    assert parse_path(address.path) == address


@given(addresses)
def test_a_path_is_written_as_the_specification_says(address: Tile | Bundle) -> None:
    digits = str(address.index)
    digits = digits.zfill(len(digits) + -len(digits) % 3)
    groups = re.findall("...", digits)
    kind = "entries" if isinstance(address, Bundle) else str(address.level)
    suffix = "" if address.width == 256 else f".p/{address.width}"
    assert address.path == "/".join(["tile", kind, *(f"x{group}" for group in groups[:-1]), groups[-1]]) + suffix


@given(mutations(addresses.map(lambda address: address.path.encode()), b"/x0.p-e1\n\xff"))
def test_any_other_path_is_a_format_error(data: bytes) -> None:
    path = data.decode("utf-8", "surrogateescape")
    with suppress(FormatError):
        assert parse_path(path).path == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "tile", "tile/", "tile/0", "tile/0/", "tile/entries", "tile/entries/", "/tile/0/000", "tile//000"),
        *("tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/x000/001", "tile/0/x000/x000/000", "tile/0/001/002"),
        *("tile/0/000/", "tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/01", "tile/0/000.p/256"),
        *("tile/0/000.p/999", "tile/0/000.p/1000", "tile/0/000.p/+1", "tile/0/000.p/1/", "tile/0/000\n", "tile/0/٠٠٠"),
        *("tile/00/000", "tile/64/000", "tile/-1/000", "tile/٣/000", "tile/\udcff/000", "tile/data/000", "tiles/0/000"),
        *("tile/0/X001/000", "tile/0/x01/000", "tile/0/x001/000?x", "tile/0/../000", "tile/0/" + "x999/" * 6 + "999"),
        *("TILE/0/000", "tile/Entries/000", "tile/0/000.P/1", "tile/0/ 000", " tile/0/000"),
    ],
)
def test_a_path_that_is_not_the_one_path_is_refused(path: str) -> None:
    refused(path)


def test_the_paths_of_tessera_and_the_specification() -> None:
    case = json.loads((vectors("tiles") / "paths.json").read_text())
    for item in case["entry_path_for_index"]:
        number = item["index"] // 256
        assert Bundle(number, width_at(0, number, item["log_size"])).path == item["path"]
    for item in case["entry_bundle_path"]:
        assert Bundle(item["index"], item["partial"] or 256).path == item["path"]
    for item in case["tile_path"]:
        assert Tile(item["level"], item["index"], item["partial"] or 256).path == item["path"]
    for item in case["parse_level_and_index"]:
        path = f"tile/{item['level']}/{item['index_path']}"
        if not item["ok"]:
            refused(path)
            continue
        want = item["want"]
        assert parse_path(path) == Tile(want["level"], want["index"], want["partial"] or 256)
    assert Bundle(1234067).path == f"tile/entries/{case['spec_examples']['index_1234067']}"


def test_the_paths_of_go_with_the_height_in_them_are_refused() -> None:
    for item in json.loads((vectors("tiles") / "paths.json").read_text())["go_tlog_paths_height_in_path"]:
        refused(item["path"])


def test_the_edge_of_a_live_log_of_100_million() -> None:
    case = json.loads((vectors("tiles") / "paths.json").read_text())
    size = 100_466_009
    for level, path in enumerate(case["real_large_log_paths"]["paths"]):
        index = (size >> 8 * level) // 256
        assert Tile(level, index, width_at(level, index, size)).path == path


# ----------------------------------------------------------------------------------------------------------- geometry


def test_the_examples_of_the_specification() -> None:
    assert [width_at(0, index, 70_000) for index in (0, 272, 273, 274)] == [256, 256, 112, 0]
    assert [width_at(1, index, 70_000) for index in (0, 1, 2)] == [256, 17, 0]
    assert [width_at(2, index, 70_000) for index in (0, 1)] == [1, 0]
    assert (width_at(0, 0, 256), width_at(1, 0, 256), width_at(1, 0, 255)) == (256, 1, 0)
    assert width_at(7, 0, MAX_SIZE) == 127
    assert width_at(63, 0, MAX_SIZE) == 0


def tile_by_definition(tile: Tile) -> list[bytes]:
    """Return MTH(D[(n·256+i)·256^L : (n·256+i+1)·256^L]) for each i, as tlog-tiles §"Merkle tree" writes it."""
    span = 256**tile.level
    starts = [(tile.index * 256 + at) * span for at in range(tile.width)]
    return [TREE.mth(start, start + span) for start in starts]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 300, 511, 512, 513, 1000])
def test_every_node_is_found_in_its_tile(size: int) -> None:
    for level in range(size.bit_length()):
        for index in range(size >> level):
            tile = tile_of((level, index), size)
            assert 1 <= tile.width <= 256
            assert (tile.level, tile.width) == (level // 8, width_at(tile.level, tile.index, size))
            assert hash_in_tile(tile_by_definition(tile), (level, index)) == TREE.mth(
                index << level, index + 1 << level
            )


@given(st.integers(1, 66_000), st.data())
def test_a_node_of_a_large_tree_is_found_in_its_tile(size: int, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, size.bit_length() - 1))
    index = data.draw(st.integers(0, (size >> level) - 1))
    tile = tile_of((level, index), size)
    assert hash_in_tile(tile_by_definition(tile), (level, index)) == TREE.mth(index << level, index + 1 << level)


def test_nodes_are_in_the_tiles_that_tessera_says() -> None:
    for item in json.loads((vectors("tiles") / "paths.json").read_text())["node_coords_to_tile"]:
        tile = tile_of((item["tree_level"], item["tree_index"]), 2**20)
        assert (tile.level, tile.index) == (item["tile_level"], item["tile_index"])
        hashes = [bytes([at]) * 32 for at in range(256)]
        width = 1 << item["node_level"]
        start = item["node_index"] * width
        found = hash_in_tile(hashes, (item["tree_level"], item["tree_index"]))
        assert found == (
            hashes[start] if width == 1 else Tree(()).mth(0, 0) if width == 0 else _fold(hashes[start : start + width])
        )


def _fold(hashes: list[bytes]) -> bytes:
    tree = Tree(())
    tree._hashes |= {(at, at + 1): value for at, value in enumerate(hashes)}
    return tree.mth(0, len(hashes))


def test_a_partial_address_names_the_full_one() -> None:
    assert Tile(2, 5, 7).full() == Tile(2, 5)
    assert Bundle(5, 7).full() == Bundle(5, 256)


# ------------------------------------------------------------------------------------------------------------- codecs

entry_lists = st.lists(st.binary(max_size=300), max_size=300)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=256))
def test_a_tile_is_its_hashes_one_after_the_other(hashes: list[bytes]) -> None:
    data = format_tile(hashes)
    assert data == b"".join(hashes)
    assert parse_tile(data, len(hashes)) == hashes
    for bad, width in ((data + b"\x00", len(hashes)), (data[:-1], len(hashes)), (data, len(hashes) + 1)):
        if bad != data or width != len(hashes):
            with pytest.raises(FormatError):
                parse_tile(bad, width)


def test_the_bundles_of_the_vectors() -> None:
    for item in json.loads((vectors("tiles") / "paths.json").read_text())["entry_bundle_parse"]:
        data = bytes.fromhex(item["hex"])
        if item.get("ok"):
            entries = [bytes.fromhex(entry) for entry in item["entries_hex"]]
            assert parse_bundle(data, len(entries)) == entries
            assert format_bundle(entries) == data
        else:  # go_ok: the empty bundle, which is never served and so has no width
            for width in (1, 2, 256):
                with pytest.raises(FormatError):
                    parse_bundle(data, width)


@given(entry_lists)
def test_a_bundle_is_its_entries_each_behind_its_length(entries: list[bytes]) -> None:
    data = format_bundle(entries)
    assert data == b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
    assert parse_bundle(data, len(entries)) == entries


@given(mutations(entry_lists.map(format_bundle), b"\x00\x01\x02\xff"), st.integers(0, 300))
def test_any_other_bundle_is_a_format_error(data: bytes, width: int) -> None:
    with suppress(FormatError):
        entries = parse_bundle(data, width)
        assert (len(entries), format_bundle(entries)) == (width, data)


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("00", 1),
        ("0001", 1),
        ("000261", 1),
        ("0000", 2),
        ("0000", 0),
        ("000000", 1),
        ("000000", 2),
        ("ffff", 1),
        ("", 1),
    ],
)
def test_a_bundle_of_another_length_is_refused(text: str, width: int) -> None:
    with pytest.raises(FormatError):
        parse_bundle(bytes.fromhex(text), width)


def test_the_largest_entry_has_65535_bytes() -> None:
    largest = bytes(65_535)
    assert parse_bundle(format_bundle([largest]), 1) == [largest]
    assert len(format_bundle([largest] * 256)) == MAX_BUNDLE_SIZE == 16_777_472
    with pytest.raises(FormatError):
        format_bundle([bytes(65_536)])


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=60), st.data())
def test_a_partial_bundle_is_cut_from_the_full_one(entries: list[bytes], data: st.DataObject) -> None:
    whole = format_bundle(entries)
    width = data.draw(st.integers(0, len(entries)))
    assert cut_bundle(whole, width) == format_bundle(entries[:width])
    for bad in (whole[:-1], format_bundle(entries[:-1]), b""):
        with pytest.raises(FormatError):
            cut_bundle(bad, len(entries))
