"""The monitor: every fork and every bad entry alarms; nothing else does."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.simulated_log import OTHER, Lie, SimulatedLog, always, changed, flipped, serving
from tlog.errors import CouldNotCheckError, ForkError, VerificationError
from tlog.note import sign_note
from tlog.policy import Policy
from tlog_client.monitor import Monitor, Round, watch
from tlog_client.run import AsyncRunner, drive
from tlog_client.state import BadEntryError, ForkProvenError, StateError


def monitor_of(log: SimulatedLog, folder: Path) -> Monitor:
    return Monitor(Policy.of_log(log.vkey), folder)


def check(log: SimulatedLog, folder: Path) -> Round:
    return drive(log, monitor_of(log, folder).check())


def test_each_entry_is_hashed_once_across_runs(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(700)
    for size, new in ((0, 0), (1, 1), (1, 0), (255, 254), (256, 1), (700, 444), (700, 0)):
        log.size = size
        assert check(log, tmp_path) == Round(log.head(), new, is_older=False)


@given(st.lists(st.integers(0, 600), max_size=8))
def test_an_honest_log_never_alarms_whatever_it_serves(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    log = SimulatedLog.of_size(600)
    folder = tmp_path_factory.mktemp("state")
    known = 0
    for size in sizes:
        log.size = size
        assert check(log, folder).is_older == (size < known)
        known = max(known, size)


@given(st.integers(1, 600), st.integers(1, 600), st.data())
def test_every_fork_alarms_with_evidence(
    tmp_path_factory: pytest.TempPathFactory, known: int, other: int, data: st.DataObject
) -> None:
    log = SimulatedLog.of_size(known)
    folder = tmp_path_factory.mktemp("state")
    check(log, folder)
    fork = log.forked(data.draw(st.integers(0, min(known, other) - 1)), other)
    if other < known:
        fork.tiles = log.tree
    with pytest.raises(ForkProvenError) as caught:
        check(fork, folder)
    assert caught.value.evidence is not None
    notes = {path.read_bytes() for path in caught.value.evidence.iterdir()}
    assert notes == {log.note(), fork.note()}
    assert check(log, folder).new == 0


@given(st.integers(0, 599), st.booleans())
def test_a_bad_entry_alarms_and_is_named(tmp_path_factory: pytest.TempPathFactory, at: int, later: bool) -> None:  # noqa: FBT001  # drawn
    log = SimulatedLog.of_size(600)
    folder = tmp_path_factory.mktemp("state")
    if later:
        log.size = at
        check(log, folder)
        log.size = 600
    log.bundles = log.forked(at).tree
    with pytest.raises(BadEntryError, match=f"entry {at} "):
        check(log, folder)
    log.bundles = log.tree
    assert check(log, folder).new == (600 - at if later else 600)


def test_tiles_that_lead_nowhere_are_wrong_but_no_fork(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(600)
    log.tiles = log.bundles = log.forked(5).tree
    with pytest.raises(VerificationError) as caught:
        check(log, tmp_path)
    assert not isinstance(caught.value, (ForkError, BadEntryError))


@pytest.mark.parametrize("path", ["checkpoint", "tile/entries/"])
@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(always(404), id="404"),
        pytest.param(always(500), id="500"),
        pytest.param(always(503, retry_after="3"), id="503"),
        pytest.param(always(301), id="redirect"),
        pytest.param(always(200, b"<html>"), id="garbage"),
        pytest.param(changed(lambda body: body[:-1]), id="cut"),
    ],
)
def test_what_is_missing_or_garbled_could_not_be_checked(tmp_path: Path, path: str, lie: Lie) -> None:
    log = SimulatedLog.of_size(600)
    log.lies[path] = lie
    with pytest.raises(CouldNotCheckError):
        check(log, tmp_path)
    log.lies.clear()
    assert check(log, tmp_path).new == 600


def test_a_head_of_another_key_is_refused_and_no_fork(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(600)
    log.lies["checkpoint"] = always(200, sign_note(log.head().format(), [OTHER]))
    with pytest.raises(VerificationError) as caught:
        check(log, tmp_path)
    assert not isinstance(caught.value, ForkError)


def test_an_entry_that_is_bad_only_once_could_not_be_checked(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(10)
    masks = iter([1, 0])
    log.lies["tile/entries/"] = changed(lambda body: body[:-1] + bytes([body[-1] ^ next(masks)]))
    with pytest.raises(CouldNotCheckError):
        check(log, tmp_path)


def test_a_flipped_bit_in_any_byte_of_the_state_is_an_error(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(300)
    check(log, tmp_path)
    (path,) = tmp_path.glob("*.monitor.json")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(flipped(whole, at))
        with pytest.raises(StateError):
            monitor_of(log, tmp_path)


@pytest.mark.parametrize("peaks", [[], ["00" * 32], ["x"], ["00" * 32] * 4])
def test_an_edge_that_does_not_fit_the_head_is_an_error(tmp_path: Path, peaks: list[str]) -> None:
    log = SimulatedLog.of_size(300)
    monitor = monitor_of(log, tmp_path)
    drive(log, monitor.check())
    saved = monitor._file.load()
    assert saved is not None
    assert monitor._file.save(saved.signed, peaks=peaks)
    with pytest.raises(StateError, match="does not fit"):
        monitor_of(log, tmp_path)


def test_two_monitors_at_once_are_kept_apart(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(3)
    first, second = monitor_of(log, tmp_path), monitor_of(log, tmp_path)
    with first.alone(), pytest.raises(StateError, match="another monitor"), second.alone():
        pass
    with second.alone():
        pass


def test_progress_is_told_after_each_chunk(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(256 * 64 + 10)
    told: list[tuple[int, int]] = []
    drive(log, Monitor(Policy.of_log(log.vkey), tmp_path, lambda *size: told.append(size)).check())
    assert told == [(256 * 64, log.size), (log.size, log.size)]


async def test_watching_goes_on_after_failures(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(30)
    log.lies["checkpoint"] = always(500)
    found: list[object] = []

    def report(one: object) -> None:
        found.append(one)
        log.lies.clear()

    with serving(log) as url:
        async with AsyncRunner(url) as runner:
            watching = asyncio.create_task(watch(runner, monitor_of(log, tmp_path), 0.01, report))
            while len(found) < 3:  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.01)
            watching.cancel()
    assert isinstance(found[0], CouldNotCheckError)
    assert found[1] == Round(log.head(), 30, is_older=False)
    assert found[2] == Round(log.head(), 0, is_older=False)
