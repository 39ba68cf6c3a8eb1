"""Trust: an honest log never alarms, whatever arrives in whatever order; a fork always does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.simulated_log import ORIGIN, OTHER, Lie, SimulatedLog, always, changed, flipped, interleave
from tlog.errors import CouldNotCheckError, ForkError, NotFoundError, TreeheadError, VerificationError
from tlog.fetch import Fetching
from tlog.note import sign_note
from tlog.policy import Policy
from tlog_client.run import drive
from tlog_client.state import ForkProvenError
from tlog_client.trust import Trust

pytestmark = pytest.mark.invariant("I27")

HONEST = SimulatedLog.of_size(600)
POLICY = Policy.of_log(HONEST.vkey)


def trust_in(log: SimulatedLog, size: int | None = None, state_dir: Path | None = None) -> Trust:
    trust = Trust(POLICY, state_dir, lambda: 0.0)
    if size is not None:
        drive(log, trust.accept(trust.open(log.note(size))))
    return trust


@given(
    st.lists(st.integers(0, 600), min_size=1, max_size=12),
    st.lists(st.integers(0, 11), max_size=40),
    st.lists(st.integers(0, 600), max_size=12),
)
def test_heads_of_an_honest_log_never_alarm_in_any_order(sizes: list[int], order: list[int], have: list[int]) -> None:
    trust = trust_in(HONEST)
    proofs = dict(zip(range(len(sizes)), have, strict=False))
    flows = [
        trust.accept(
            trust.open(HONEST.note(size)),
            (proofs[at], HONEST.tree.proof(proofs[at], size)) if at in proofs and proofs[at] <= size else None,
        )
        for at, size in enumerate(sizes)
    ]
    interleave(HONEST, flows, order)
    assert trust.size == max(sizes)


@given(st.integers(1, 600), st.integers(1, 600), st.data())
def test_every_fork_alarms_when_its_tiles_are_served(trusted: int, other: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, min(trusted, other) - 1))
    trust = trust_in(HONEST, trusted)
    fork = HONEST.forked(at, other)
    server = fork if other > trusted else HONEST
    with pytest.raises(ForkProvenError) as caught:
        drive(server, trust.accept(trust.open(fork.note())))
    assert {caught.value.first, caught.value.second} == {HONEST.note(trusted), fork.note()}
    assert trust.size == trusted


@given(st.integers(2, 600), st.integers(2, 600), st.data())
def test_a_fork_whose_tiles_are_of_the_other_tree_proves_nothing_and_moves_nothing(
    trusted: int, other: int, data: st.DataObject
) -> None:
    if trusted == other:
        return
    at = data.draw(st.integers(0, min(trusted, other) - 1))
    trust = trust_in(HONEST, trusted)
    fork = HONEST.forked(at, other)
    server = HONEST if other > trusted else SimulatedLog([*fork.tree.entries, *HONEST.tree.entries[other:]])
    with pytest.raises(VerificationError) as caught:
        drive(server, trust.accept(trust.open(fork.note())))
    assert not isinstance(caught.value, ForkError)
    assert trust.size == trusted


def test_a_fork_among_concurrent_heads_alarms_and_the_others_do_not() -> None:
    trust = trust_in(HONEST, 100)
    fork = HONEST.forked(50, 90)
    heads = [HONEST.note(200), fork.note(), HONEST.note(300), HONEST.note(80)]
    outcomes: list[object] = []

    def watched(note: bytes) -> Fetching[None]:
        try:
            yield from trust.accept(trust.open(note))
            outcomes.append("fine")
        except ForkError as error:
            outcomes.append(error)

    interleave(HONEST, [watched(note) for note in heads], [0, 1, 2, 3])
    assert [outcome == "fine" for outcome in outcomes].count(True) == 3
    assert trust.size == 300


def test_an_own_proof_is_enough_and_a_wrong_one_is_replaced_by_tiles() -> None:
    trust = trust_in(HONEST, 100)
    HONEST.asked.clear()
    drive(HONEST, trust.accept(trust.open(HONEST.note(200)), (100, HONEST.tree.proof(100, 200))))
    assert HONEST.asked == []
    drive(HONEST, trust.accept(trust.open(HONEST.note(300)), (200, HONEST.tree.proof(100, 300))))
    assert HONEST.asked
    assert trust.size == 300


def test_trust_moves_only_by_the_flow_that_reads() -> None:
    trust = trust_in(HONEST, 100)
    reading = trust.accept(trust.open(HONEST.note(200)))
    requests = next(reading)
    proven = trust.accept(trust.open(HONEST.note(300)), (100, HONEST.tree.proof(100, 300)))
    assert next(proven) == []
    assert trust.size == 100
    with pytest.raises(StopIteration):
        reading.send(HONEST.send(requests))
    assert trust.size == 200
    drive(HONEST, proven_rest(proven))
    assert trust.size == 300


def proven_rest(flow: Fetching[None]) -> Fetching[None]:
    """Go on with a flow that waits."""
    requests = flow.send([])
    while True:
        answers = yield requests
        try:
            requests = flow.send(answers)
        except StopIteration:
            return


def test_a_smaller_head_is_checked_once_and_never_moves_trust_back() -> None:
    trust = trust_in(HONEST, 500)
    HONEST.asked.clear()
    drive(HONEST, trust.accept(trust.open(HONEST.note(100))))
    first = len(HONEST.asked)
    drive(HONEST, trust.accept(trust.open(HONEST.note(100))))
    assert 0 < first == len(HONEST.asked)
    assert trust.size == 500


def test_many_heads_that_wait_are_settled_by_few_checks() -> None:
    trust = trust_in(HONEST, 100)
    HONEST.asked.clear()
    flows = [trust.accept(trust.open(HONEST.note(size))) for size in range(200, 264)]
    interleave(HONEST, flows, list(range(64)))
    assert trust.size == 263
    assert len(HONEST.asked) <= 10


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        pytest.param(always(404), CouldNotCheckError, id="404"),
        pytest.param(always(500), CouldNotCheckError, id="500"),
        pytest.param(always(301), CouldNotCheckError, id="redirect"),
        pytest.param(changed(flipped), VerificationError, id="wrong"),
        pytest.param(always(200, b"<html>"), TreeheadError, id="garbage"),
    ],
)
def test_missing_or_wrong_tiles_are_no_fork(lie: Lie, error: type[Exception]) -> None:
    log = SimulatedLog.of_size(300)
    trust = trust_in(log, 100)
    log.lies["tile/"] = lie
    with pytest.raises(error) as caught:
        drive(log, trust.accept(trust.open(log.note(300))))
    assert not isinstance(caught.value, (ForkError, NotFoundError))  # nobody asked for a tile
    assert trust.size == 100
    log.lies.clear()
    drive(log, trust.accept(trust.open(log.note(300))))
    assert trust.size == 300


def test_a_head_of_another_key_or_origin_is_refused() -> None:
    trust = trust_in(HONEST)
    with pytest.raises(VerificationError):
        trust.open(sign_note(HONEST.head().format(), [OTHER]))
    with pytest.raises(VerificationError):
        trust.open(sign_note(HONEST.head().format().replace(ORIGIN.encode(), b"elsewhere"), [HONEST.signer]))


def test_evidence_holds_both_notes_which_verify_and_is_never_overwritten(tmp_path: Path) -> None:
    fork = HONEST.forked(3, 100)
    folders = set()
    for _ in range(2):
        trust = trust_in(HONEST, 100, tmp_path)
        with pytest.raises(ForkProvenError) as caught:
            drive(HONEST, trust.accept(trust.open(fork.note())))
        folder = caught.value.evidence
        assert folder is not None
        assert str(folder) in "".join(caught.value.__notes__)
        folders.add(folder)
        notes = [(folder / name).read_bytes() for name in ("first.checkpoint", "second.checkpoint")]
        assert notes == [caught.value.first, caught.value.second]
        heads = [POLICY.open_checkpoint(note) for note in notes]
        assert heads[0].size == heads[1].size
        assert heads[0].root != heads[1].root
    (folder,) = folders
    assert folder.name.startswith("fork-100-100-")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_fork_is_raised_even_where_evidence_cannot_be_saved(tmp_path: Path) -> None:
    trust = trust_in(HONEST, 100, tmp_path)
    (tmp_path / "evidence").write_text("in the way")
    with pytest.raises(ForkProvenError, match="could not be saved") as caught:
        drive(HONEST, trust.accept(trust.open(HONEST.forked(3, 100).note())))
    assert caught.value.evidence is None
    assert caught.value.first
