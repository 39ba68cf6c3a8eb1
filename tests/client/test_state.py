"""State on disk: whole or an error, exchanged by compare-and-swap, and never a first use by accident."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.simulated_log import ORIGIN, OTHER, SimulatedLog
from tlog.policy import Policy
from tlog_client.run import drive
from tlog_client.state import ForkProvenError, StateError, StateFile, default_state_dir, locked, state_path
from tlog_client.trust import Trust

pytestmark = pytest.mark.invariant("I27")

LOG = SimulatedLog.of_size(300)
POLICY = Policy.of_log(LOG.vkey)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def accept(trust: Trust, size: int, log: SimulatedLog = LOG) -> None:
    drive(LOG, trust.accept(trust.open(log.note(size))))


def path_in(folder: Path) -> Path:
    return state_path(folder, ORIGIN, ".json")


def test_trust_outlives_the_process_in_a_private_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    accept(Trust(POLICY, folder), 100)
    assert Trust(POLICY, folder).size == 100
    assert stat.S_IMODE(path_in(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trust = Trust(POLICY, None)
    accept(trust, 100)
    drive(LOG, trust.close())
    assert list(tmp_path.iterdir()) == []


def test_trust_is_written_at_most_once_a_second_and_when_it_closes(tmp_path: Path) -> None:
    clock = Clock()
    trust = Trust(POLICY, tmp_path, clock)
    accept(trust, 100)
    accept(trust, 200)
    assert Trust(POLICY, tmp_path).size == 100
    clock.now += 1
    accept(trust, 201)
    assert Trust(POLICY, tmp_path).size == 201
    accept(trust, 202)
    drive(LOG, trust.close())
    assert Trust(POLICY, tmp_path).size == 202


def test_trust_is_written_before_an_alarm(tmp_path: Path) -> None:
    trust = Trust(POLICY, tmp_path, Clock())
    accept(trust, 100)
    accept(trust, 200)
    with pytest.raises(ForkProvenError):
        accept(trust, 200, LOG.forked(1, 200))
    assert Trust(POLICY, tmp_path).size == 200


def test_a_flipped_bit_in_any_byte_or_a_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    accept(Trust(POLICY, tmp_path), 100)
    path = path_in(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 0x80):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(StateError, match="remove that file on purpose"):
                Trust(POLICY, tmp_path)
        path.write_bytes(whole[:at])
        with pytest.raises(StateError):
            Trust(POLICY, tmp_path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(StateError):
        Trust(POLICY, tmp_path)
    path.write_bytes(whole)
    assert Trust(POLICY, tmp_path).size == 100


def test_another_kind_or_version_of_state_is_an_error(tmp_path: Path) -> None:
    file = StateFile(path_in(tmp_path), "monitor", POLICY)
    assert file.save(Trust(POLICY, None).open(LOG.note(3)))
    with pytest.raises(StateError, match="another version"):
        Trust(POLICY, tmp_path)


def test_adding_a_key_is_an_explicit_act(tmp_path: Path) -> None:
    accept(Trust(POLICY, tmp_path), 100)
    both = Policy((LOG.signer.verifier, OTHER.verifier))
    for policy in (both, Policy((OTHER.verifier,))):
        with pytest.raises(StateError, match="explicit act"):
            Trust(policy, tmp_path)


def test_fewer_keys_than_are_pinned_keep_the_pins(tmp_path: Path) -> None:
    both = Policy((LOG.signer.verifier, OTHER.verifier))
    accept(Trust(both, tmp_path), 100)
    accept(Trust(POLICY, tmp_path), 200)
    assert Trust(both, tmp_path).size == 200


@pytest.mark.parametrize("policy", [Policy(()), Policy((LOG.signer.verifier, SimulatedLog([]).signer.verifier))])
def test_a_policy_of_one_origin_is_needed(policy: Policy) -> None:
    if policy.logs:
        other = type(policy.logs[0])("elsewhere", policy.logs[0].public_key)
        policy = Policy((policy.logs[0], other))
    with pytest.raises(StateError, match="one log"):
        Trust(policy, None)


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_around_the_rename_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    accept(Trust(POLICY, tmp_path), 100)
    rename = Path.replace

    def crash(self: Path, target: Path) -> None:
        if step == "after":
            rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        accept(Trust(POLICY, tmp_path), 200)
    monkeypatch.undo()
    trust = Trust(POLICY, tmp_path)
    assert trust.size == (100 if step == "before" else 200)
    accept(trust, 250)
    assert Trust(POLICY, tmp_path).size == 250


@pytest.mark.parametrize(("first", "second"), [(150, 200), (200, 150), (200, 200)])
def test_the_larger_of_two_processes_heads_stays(tmp_path: Path, first: int, second: int) -> None:
    one, two = Trust(POLICY, tmp_path, Clock()), Trust(POLICY, tmp_path, Clock())
    accept(one, first)
    accept(two, second)
    drive(LOG, one.close())
    drive(LOG, two.close())
    assert Trust(POLICY, tmp_path).size == max(first, second)


@pytest.mark.parametrize(("first", "second"), [(150, 200), (200, 150), (200, 200)])
def test_two_processes_that_were_shown_different_trees_find_out(tmp_path: Path, first: int, second: int) -> None:
    one, two = Trust(POLICY, tmp_path, Clock()), Trust(POLICY, tmp_path, Clock())
    fork = LOG.forked(10, 300)
    accept(one, first)
    with pytest.raises(ForkProvenError):
        drive(LOG if first > second else fork, two.accept(two.open(fork.note(second))))
    assert Trust(POLICY, tmp_path).size == first


def test_real_processes_do_not_lose_each_others_trust(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.support.simulated_log import SimulatedLog
from tlog.policy import Policy
from tlog_client.run import drive
from tlog_client.trust import Trust
log = SimulatedLog.of_size(300)
trust = Trust(Policy.of_log(log.vkey), Path({str(tmp_path)!r}))
for size in range(int(sys.argv[1]), 300, 2):
    drive(log, trust.accept(trust.open(log.note(size))))
    drive(log, trust.save())
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(start)]) for start in (200, 201)]
    assert [process.wait(50) for process in running] == [0, 0]
    assert Trust(POLICY, tmp_path).size == 299


def test_a_lock_that_is_held_says_so(tmp_path: Path) -> None:
    with locked(tmp_path / "x.lock"), pytest.raises(StateError, match="busy"), locked(tmp_path / "x.lock", "busy"):
        pass


def test_a_folder_that_cannot_be_used_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        accept(Trust(POLICY, tmp_path / "file"), 100)


def test_the_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert default_state_dir() == Path("/xdg/treehead")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_state_dir() == Path("/home/somebody/.local/state/treehead")
