"""The check of a whole log: what is served wrong is found and located, and nothing else is."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lying_log import ORIGIN, LyingLog, addresses, run, run_http
from tests.support.mutation import flip
from tests.support.rfc6962 import Tree
from tests.support.static import addresses as addresses_of
from tests.support.static import content, framed, path
from tlog.checkpoint import Checkpoint
from tlog.damage import MAX_FINDINGS, Checked, Damage, Unread, fold, leaf_hashes
from tlog.errors import FormatError, NotFoundError, VerificationError
from tlog.fetch import Request, Response, over_http
from tlog.fsck import (
    RANGE_SIZE,
    Checking,
    check_genesis,
    check_range,
    check_top,
    count_bundles,
    count_ranges,
    count_tiles,
    fetch_each,
    range_bounds,
    read_expected,
    read_genesis,
)
from tlog.genesis import Genesis
from tlog.tile import Tile, parse_path

T = TypeVar("T")

SIZES = [0, 1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_536 + 256, 65_536 + 700, 2 * 65_536 + 257]
LARGE = 2 * 65_536 + 700
"""Two whole ranges, and one whose tiles are partial on two levels."""


@cache
def tree_of(size: int) -> Tree:
    return Tree([b"entry %d" % index for index in range(size)])


class Log(LyingLog):
    """A log that also may not answer.

    Attributes:
        gone: Paths that are not there.
    """

    def __init__(self, size: int) -> None:
        super().__init__([])
        self.tree = self.bundles_of = self.tiles_of = tree_of(size)
        self.gone: set[str] = set()

    def touched(self) -> set[int]:
        """Return the ranges in which something is gone or wrong."""
        touched = set()
        for address in map(parse_path, {*self.gone, *self._changes}):
            level = address.level if isinstance(address, Tile) else 0
            touched.add(address.index >> 8 if level == 0 else address.index if level == 1 else -1)
        return touched


def drive(checking: Checking[T], log: Log) -> T:
    try:
        request = next(checking)
        while True:
            wanted = addresses(request)
            request = checking.send(
                [Unread(each.path, "gone") if each.path in log.gone else log.read(each) for each in wanted]
            )
    except StopIteration as done:
        result: T = done.value
        return result


def respond(log: Log, requests: list[Request]) -> list[Response]:
    """Answer over HTTP; where a partial tile is gone, so is the full one."""
    gone = log.gone | {at.split(".p/")[0] for at in log.gone}
    answers = zip(requests, log.respond(requests), strict=True)
    return [Response(404, {}, b"") if request.path in gone else answer for request, answer in answers]


def expected_of(log: Log, head: Checkpoint) -> list[bytes] | None:
    try:
        return run_http(over_http(read_expected(head)), lambda requests: respond(log, requests))
    except (VerificationError, FormatError, NotFoundError):
        return None


@cache
def honest_range(size: int, number: int) -> Checked:
    return drive(check_range(size, number, None), Log(size))


def check(log: Log, head: Checkpoint | None = None) -> list[Checked]:
    """Return the results of all ranges, and of the top at the end; a range that is served honestly is not read."""
    head = head or log.head()
    expected = expected_of(log, head)
    ranges = []
    for number in range(count_ranges(head.size)):
        if log.tiles_of is log.tree and number not in log.touched():
            ranges.append(honest_range(head.size, number))
        else:
            ranges.append(drive(check_range(head.size, number, expected[number] if expected else None), log))
    return [*ranges, drive(check_top(head, expected, ranges), log)]


def damage_in(parts: list[Checked]) -> list[Damage]:
    assert sum(part.damaged for part in parts) == sum(len(part.damage) for part in parts)
    return [damage for part in parts for damage in part.damage]


def unread_in(parts: list[Checked]) -> list[str]:
    assert sum(part.missing for part in parts) == sum(len(part.unread) for part in parts)
    return [unread.path for part in parts for unread in part.unread]


# Nothing is wrong.


@pytest.mark.parametrize("size", SIZES)
def test_an_honest_log_has_no_damage_and_leads_to_its_root(size: int) -> None:
    log = Log(size)
    parts = check(log)
    assert damage_in(parts) == []
    assert unread_in(parts) == []
    assert parts[-1].root == log.tree.mth(0, size)
    assert [part.root for part in parts[:-1]] == [
        log.tree.mth(start, end) for start, end in (range_bounds(size, number) for number in range(len(parts) - 1))
    ]


@pytest.mark.parametrize("size", SIZES)
def test_every_tile_and_bundle_is_read_once(size: int) -> None:
    log = Log(size)
    ranges = [drive(check_range(size, number, None), log) for number in range(count_ranges(size))]
    drive(check_top(log.head(), None, ranges), log)
    assert sorted(log.asked) == sorted(path(each)[1:] for each in addresses_of(size))
    assert count_bundles(size) == sum(level is None for level, _, _ in addresses_of(size))
    assert count_tiles(size) == sum(level is not None for level, _, _ in addresses_of(size))


def test_a_range_is_65536_entries() -> None:
    assert RANGE_SIZE == 65_536
    assert [count_ranges(size) for size in (0, 1, 65_535, 65_536, 65_537, 131_072, 131_073)] == [0, 1, 1, 1, 2, 2, 3]
    assert [range_bounds(65_540, number) for number in (0, 1)] == [(0, 65_536), (65_536, 65_540)]


# Something is wrong.


@given(st.integers(1, 700), st.data())
def test_one_flipped_bit_is_located(size: int, data: st.DataObject) -> None:
    log = Log(size)
    address = data.draw(st.sampled_from(addresses_of(size)))
    bit = data.draw(st.integers(0, 8 * len(content(log.tree, address)) - 1))
    _check_flip(log, path(address)[1:], bit)


LARGE_PATHS = [
    *("tile/entries/000", "tile/entries/255", "tile/entries/256", "tile/entries/513", "tile/entries/514.p/188"),
    *("tile/0/000", "tile/0/255", "tile/0/300", "tile/0/513", "tile/0/514.p/188"),
    *("tile/1/000", "tile/1/001", "tile/1/002.p/2", "tile/2/000.p/2"),
]


@pytest.mark.parametrize("at", LARGE_PATHS)
def test_one_flipped_bit_of_a_large_log_is_located(at: str) -> None:
    for bit in (17, -1):
        _check_flip(Log(LARGE), at, bit)


def _check_flip(log: Log, at: str, bit: int) -> None:
    address = parse_path(at)
    bundle = at.startswith("tile/entries/")
    true = log.read(address)
    log.lie(at, lambda body: flip(body, bit))
    (damage,) = damage_in(parts := check(log))
    assert unread_in(parts) == []
    assert damage.path == at
    if not bundle:
        position = bit % (8 * len(true)) // 256
        assert damage.wrong == (position,)
        assert damage.expected == true[32 * position :][:32]
        assert damage.found == flip(true, bit)[32 * position :][:32]
        return
    start = 256 * address.index
    assert (damage.start, damage.end) == (start, start + address.width)
    ends = [0]
    for entry in log.tree.entries[start : damage.end]:
        ends.append(ends[-1] + 2 + len(entry))
    byte = bit // 8 % len(true)
    number = next(number for number, end in enumerate(ends[1:]) if byte < end)
    if byte - ends[number] >= 2:
        assert damage.wrong == (start + number,)
        assert damage.expected == log.tree.mth(start + number, start + number + 1)
    else:
        assert "framed" in damage.reason


@pytest.mark.parametrize("at", ["tile/entries/514.p/188", "tile/0/514.p/188", "tile/1/002.p/2", "tile/2/000.p/2"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: body[:-1], id="cut"),
        pytest.param(lambda body: body + b"\x00", id="long"),
        pytest.param(lambda _: b"<html>", id="other"),
    ],
)
def test_what_breaks_its_form_is_damage(at: str, change: Callable[[bytes], bytes]) -> None:
    log = Log(LARGE)
    log.lie(at, change)
    (damage,) = damage_in(parts := check(log))
    assert (damage.path, damage.wrong, unread_in(parts)) == (at, (), [])


def test_another_whole_bundle_is_damage_in_every_entry() -> None:
    log = Log(700)
    log.lie("tile/entries/001", lambda _: framed([b"other %d" % index for index in range(256)]))
    (damage,) = damage_in(check(log))
    assert damage.wrong == tuple(range(256, 512))


@given(st.integers(1, 700), st.data())
def test_two_flipped_bits_are_damage(size: int, data: st.DataObject) -> None:
    log = Log(size)
    for address in data.draw(st.lists(st.sampled_from(addresses_of(size)), min_size=1, max_size=3, unique=True)):
        bit = data.draw(st.integers(0, 8 * len(content(log.tree, address)) - 1))
        log.lie(path(address)[1:], lambda body, bit=bit: flip(body, bit))  # type: ignore[misc]  # binds
    assert damage_in(check(log))


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(("tile/entries/003", "tile/0/003"), id="bundle and its tile"),
        pytest.param(("tile/entries/003", "tile/0/004"), id="bundle and another tile"),
        pytest.param(("tile/0/003", "tile/1/000"), id="tile and the one above"),
        pytest.param(("tile/entries/003", "tile/1/000"), id="bundle and the tile above"),
        pytest.param(("tile/entries/003", "tile/2/000.p/2"), id="bundle and the tile two above"),
        pytest.param(("tile/1/000", "tile/2/000.p/2"), id="both upper tiles"),
        pytest.param(("tile/entries/514.p/188", "tile/0/513"), id="last bundle and the tile before"),
        pytest.param(("tile/entries/003", "tile/entries/514.p/188"), id="first and last bundle"),
        pytest.param(("tile/0/003", "tile/0/514.p/188"), id="first and last tile"),
    ],
)
def test_two_damaged_places_are_blamed_and_no_other(paths: tuple[str, str]) -> None:
    log = Log(LARGE)
    for at in paths:
        log.lie(at, lambda body: flip(body, -1))
    assert sorted(damage.path for damage in damage_in(check(log))) == sorted(paths)


def test_a_range_of_another_tree_is_named() -> None:
    log, honest = Log(LARGE), Log(LARGE)
    entries = list(log.tree.entries)
    entries[70_000] = b"another"
    log.tiles_of = log.bundles_of = other = Tree(entries)
    log.lie("tile/2/000.p/2", lambda _: honest.read(parse_path("tile/2/000.p/2")))
    (damage,) = damage_in(check(log))
    assert (damage.path, damage.start, damage.end) == ("", 65_536, 131_072)
    assert (damage.expected, damage.found) == (log.tree.mth(65_536, 131_072), other.mth(65_536, 131_072))


@pytest.mark.parametrize("size", [1, 300, 65_537])
def test_another_tree_than_the_signed_one_is_damage(size: int) -> None:
    log = Log(size)
    log.serve([*log.tree.entries[:-1], b"another"])
    (damage,) = damage_in(check(log))
    assert (damage.path, damage.start, damage.end, damage.expected) == ("", 0, size, log.head().root)


def test_a_head_of_no_entries_with_a_root_is_damage() -> None:
    (damage,) = damage_in(check(Log(0), Checkpoint(ORIGIN, 0, bytes(32))))
    assert damage.expected == bytes(32)
    assert damage.found == sha256().digest()


def test_a_result_from_before_the_hash_was_known_is_compared_with_it() -> None:
    log = Log(LARGE)
    expected = run(read_expected(log.head()), log)
    ranges = check(log)[:-1]
    (damage,) = drive(check_top(log.head(), expected, [ranges[0], Checked(bytes(32)), ranges[2]]), log).damage
    assert (damage.path, damage.start, damage.expected, damage.found) == ("", 65_536, expected[1], bytes(32))


def test_findings_are_bounded_and_counted() -> None:
    log = Log(65_536)
    for index in range(100):
        log.lie(f"tile/entries/{index:03}", lambda body: flip(body, -1))
        log.gone.add(f"tile/0/{index + 100:03}")
    checked = check(log)[0]
    assert (len(checked.damage), checked.damaged) == (MAX_FINDINGS, 100)
    assert (len(checked.unread), checked.missing) == (MAX_FINDINGS, 100)


# Something is missing.


@given(st.integers(1, 700), st.data())
def test_what_is_missing_is_named_and_no_damage(size: int, data: st.DataObject) -> None:
    log = Log(size)
    log.gone = {path(each)[1:] for each in data.draw(st.sets(st.sampled_from(addresses_of(size)), min_size=1))}
    parts = check(log)
    assert damage_in(parts) == []
    assert set(unread_in(parts)) == log.gone
    assert parts[-1].root in (None, log.head().root)


@pytest.mark.parametrize("at", LARGE_PATHS)
def test_one_missing_place_of_a_large_log_hides_nothing(at: str) -> None:
    log = Log(LARGE)
    log.gone = {at}
    log.lie("tile/entries/300", lambda body: flip(body, -1))
    parts = check(log)
    assert unread_in(parts) == [at]
    assert [damage.path for damage in damage_in(parts)] == ["tile/entries/300"]
    assert parts[-1].root == log.head().root


# Over HTTP.


@settings(max_examples=20)
@given(st.sets(st.sampled_from(addresses_of(700)), max_size=8))
def test_over_http_each_missing_place_is_found(gone: set[tuple[int | None, int, int]]) -> None:
    log = Log(700)
    log.gone = {path(each)[1:] for each in gone}
    checked = run_http(fetch_each(check_range(700, 0, None)), lambda requests: respond(log, requests))
    assert {unread.path for unread in checked.unread} == log.gone
    assert {unread.reason for unread in checked.unread} <= {"the log answered 404"}
    assert checked.damaged == 0


def test_over_http_dropped_partial_tiles_are_cut_from_full_ones() -> None:
    log = Log(700)
    log.keeps_partials = False
    head = log.head(300)
    expected = run_http(over_http(read_expected(head)), log.respond)
    checked = run_http(fetch_each(check_range(300, 0, expected[0])), log.respond)
    assert checked == Checked(head.root)
    assert run_http(fetch_each(check_top(head, expected, [checked])), log.respond) == Checked(head.root)


# Genesis.

GENESIS = Genesis("log.example", "log.example+1234abcd+AQ==", 1_700_000_000_000)


def test_the_genesis_entry_is_read_and_fits_or_not() -> None:
    log = LyingLog([GENESIS.format(), b"more"])
    assert run(read_genesis(log.head()), log) == GENESIS
    check_genesis(GENESIS, GENESIS.origin, [GENESIS.vkey])
    with pytest.raises(VerificationError, match="another log"):
        check_genesis(GENESIS, "other.example", [GENESIS.vkey])
    with pytest.raises(VerificationError, match="not trusted"):
        check_genesis(GENESIS, GENESIS.origin, [])


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"entry 0",
        GENESIS.format() + b"\x00",
        GENESIS.format().replace(b"/v1", b"/v2"),
        GENESIS.format().replace(b"\x1b\x00\x00\x01\x8b\xcf\xe5\x68\x00", b"\xf5"),
    ],
)
def test_a_log_of_other_software_has_no_genesis_entry(entry: bytes) -> None:
    log = LyingLog([entry])
    assert run(read_genesis(log.head()), log) is None


def test_a_changed_genesis_entry_is_refused() -> None:
    log = LyingLog([GENESIS.format()])
    log.lie("tile/entries/000.p/1", lambda body: flip(body, -1))
    with pytest.raises(VerificationError):
        run(read_genesis(log.head()), log)


# Hashes.


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_leaf_hashes_and_their_fold_are_those_of_the_rfc(entries: list[bytes]) -> None:
    hashes = leaf_hashes(framed(entries), len(entries))
    assert hashes == b"".join(sha256(b"\0" + entry).digest() for entry in entries)
    assert not entries or fold(hashes) == Tree(entries).mth(0, len(entries))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8), st.integers(0, 9), st.data())
def test_a_bundle_of_another_width_or_length_is_refused(entries: list[bytes], width: int, data: st.DataObject) -> None:
    body = framed(entries)
    if width != len(entries):
        with pytest.raises(FormatError):
            leaf_hashes(body, width)
    with pytest.raises(FormatError):
        leaf_hashes(body[: data.draw(st.integers(0, len(body) - 1))], len(entries))
    with pytest.raises(FormatError):
        leaf_hashes(body + data.draw(st.binary(min_size=1, max_size=3)), len(entries))
