"""What add, get and checkpoint return has been verified; every lie is refused by its kind."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.rfc6962 import Tree
from tests.support.simulated_log import (
    OTHER,
    Lie,
    SimulatedLog,
    always,
    answering,
    changed,
    entry_of,
    interleave,
    serving,
)
from tlog.errors import (
    CouldNotCheckError,
    ForkError,
    FormatError,
    NotFoundError,
    PushbackError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from tlog.note import sign_note
from tlog.policy import Policy
from tlog.proof import parse_proof, verify_proof
from tlog_client import AsyncLog, Log, OptionError
from tlog_client.flow import Added, Flows, UncheckedError
from tlog_client.run import drive


def flows_of(log: SimulatedLog) -> Flows:
    return Flows(log.vkey, None, lambda: 0.0)


def test_an_added_entry_is_proven_offline_by_what_add_returns() -> None:
    log = SimulatedLog.of_size(300)
    added = drive(log, flows_of(log).add(b"new"))
    assert added.index == 300
    assert added.leaf_hash == Tree([b"new"]).mth(0, 1)
    assert added.checkpoint == log.head()
    verify_proof(parse_proof(added.proof.format()), b"new", Policy.of_log(log.vkey))


def test_every_entry_comes_back_with_its_proof() -> None:
    log = SimulatedLog.of_size(130)
    flows = flows_of(log)
    for index in range(130):
        fetched = drive(log, flows.get(index))
        assert (fetched.entry, fetched.index) == (entry_of(index), index)
        verify_proof(fetched.proof, entry_of(index), Policy.of_log(log.vkey))


def test_flows_that_overtake_each_other_all_succeed() -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    added: list[Added] = interleave(log, [flows.add(b"%d" % number) for number in range(64)], [5, 0, 17, 3, 60])
    assert sorted(one.index for one in added) == list(range(300, 364))
    assert all(log.tree.entries[one.index] == b"%d" % number for number, one in enumerate(added))


def other_key(log: SimulatedLog) -> bytes:
    return sign_note(log.head().format(), [OTHER])


def broken_note(log: SimulatedLog) -> bytes:
    return log.note().replace(b"\n300\n", b"\n301\n")


LIES: dict[str, tuple[Callable[[SimulatedLog], Lie], type[Exception]]] = {
    "leaf hash of another entry": (lambda log: answering(leafHash=log.tree.mth(3, 4)), VerificationError),
    "another index": (lambda _: answering(index=6), VerificationError),
    "another entry and its proof": (
        lambda log: always(200, log.answer(6, with_entry=True).format()),
        VerificationError,
    ),
    "index beyond the head": (lambda _: answering(index=1000), VerificationError),
    "proof cut": (lambda log: answering(proof=log.tree.path(5, 0, log.size)[:-1]), VerificationError),
    "proof of another entry": (lambda log: answering(proof=log.tree.path(6, 0, log.size)), VerificationError),
    "wrong key": (lambda log: answering(checkpoint=other_key(log)), VerificationError),
    "signature broken": (
        lambda log: answering(checkpoint=broken_note(log)),
        VerificationError,
    ),
    "head of a smaller tree": (lambda log: answering(checkpoint=log.note(100)), VerificationError),
    "fork": (lambda log: always(200, log.forked(7).answer(5, with_entry=True).format()), ForkError),
    "not CBOR": (lambda _: always(200, b"<html>"), FormatError),
    "unknown part": (lambda _: answering(more=1), FormatError),
    "note without form": (lambda _: answering(checkpoint=b"x"), FormatError),
    "cut": (lambda _: changed(lambda body: body[:-1]), FormatError),
    "404": (lambda _: always(404), NotFoundError),
    "500": (lambda _: always(500), UnavailableError),
    "redirect": (lambda _: always(302, location="http://elsewhere/"), UnavailableError),
    "busy": (lambda _: always(503, retry_after="7"), PushbackError),
    "forbidden": (lambda _: always(403), RefusedError),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_about_an_entry_is_refused_and_moves_no_trust(lie: str) -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    make, error = LIES[lie]
    log.lies["v1/entries/5"] = make(log)
    with pytest.raises(error):
        drive(log, flows.get(5))
    log.lies.clear()
    assert drive(log, flows.get(5)).entry == entry_of(5)


@pytest.mark.parametrize("entry", [b"another", b"", b"entry 6", b"entry 5\n"])
def test_another_entry_than_the_one_in_the_tree_is_refused(entry: bytes) -> None:
    log = SimulatedLog.of_size(300)
    log.lies["v1/entries/5"] = answering(entry=entry)
    with pytest.raises(VerificationError):
        drive(log, flows_of(log).get(5))


def test_an_answer_without_the_entry_is_refused() -> None:
    log = SimulatedLog.of_size(300)
    log.lies["v1/entries/5"] = always(200, log.answer(5).format())
    with pytest.raises(VerificationError):
        drive(log, flows_of(log).get(5))


def test_an_add_that_was_answered_for_another_entry_is_refused() -> None:
    log = SimulatedLog.of_size(300)
    log.lies["v1/entries"] = always(201, log.answer(5).format())
    with pytest.raises(VerificationError, match="another entry"):
        drive(log, flows_of(log).add(b"mine"))


def test_an_add_that_could_not_be_checked_says_the_index() -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    log.lies["tile/"] = always(500)
    log.lies["v1/entries"] = answering(consistency={"from": 299, "proof": log.tree.proof(299, 300)})
    with pytest.raises(CouldNotCheckError) as caught:
        drive(log, flows.add(b"mine"))
    assert isinstance(caught.value, UncheckedError)
    assert caught.value.indexes == (300,)


def test_an_add_that_could_not_be_checked_is_not_taken_for_one_that_was_refused() -> None:
    """A busy log is asked again; an entry that is in the log already must not be added once more."""
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    log.lies["tile/"] = always(503)
    log.lies["v1/entries"] = answering(consistency={"from": 299, "proof": log.tree.proof(299, 300)})
    with pytest.raises(UncheckedError) as caught:
        drive(log, flows.add(b"mine"))
    assert not isinstance(caught.value, PushbackError)


def test_an_entry_that_is_too_long_is_refused_before_anything_is_sent() -> None:
    log = SimulatedLog.of_size(1)
    with pytest.raises(FormatError):
        drive(log, flows_of(log).add(bytes(65536)))
    assert log.asked == []
    assert drive(log, flows_of(log).add(bytes(65535))).index == 1


@pytest.mark.parametrize("index", [-1, 1 << 63])
def test_an_index_that_no_log_has_is_refused_before_anything_is_sent(index: int) -> None:
    log = SimulatedLog.of_size(1)
    with pytest.raises(OptionError):
        drive(log, flows_of(log).get(index))
    assert log.asked == []


def test_the_sync_log_works_over_a_socket_and_keeps_trust(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(300)
    with serving(log) as url, Log(url, log.vkey, state_dir=tmp_path) as client:
        assert client.add(b"new").index == 300
        assert client.get(7).entry == entry_of(7)
        assert client.checkpoint().size == 301
    fork = log.forked(2)
    with serving(fork) as url, Log(url, log.vkey, state_dir=tmp_path) as client, pytest.raises(ForkError):
        client.checkpoint()


async def test_64_concurrent_adds_succeed_over_sockets(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(300)
    with serving(log) as url:
        async with AsyncLog(url, Policy.of_log(log.vkey), state_dir=tmp_path) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(client.add(b"%d" % number)) for number in range(256)]
            assert sorted(task.result().index for task in tasks) == list(range(300, 556))
            assert (await client.checkpoint()).size == 556
        async with AsyncLog(url, log.vkey, state_dir=tmp_path) as client:
            assert (await client.get(3)).entry == entry_of(3)


async def test_a_cancelled_check_leaves_nobody_waiting() -> None:
    log = SimulatedLog.of_size(300)
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            await client.checkpoint()
            for _ in range(20):
                tasks = [asyncio.create_task(client.add(b"x")) for _ in range(8)]
                done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                victim = next((task for task in tasks if task not in done), tasks[0])
                victim.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert sum(isinstance(result, BaseException) for result in results) <= 1


def test_trust_is_not_kept_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    log = SimulatedLog.of_size(3)
    with serving(log) as url:
        with Log(url, log.vkey, state_dir=None) as client:
            client.checkpoint()
        assert list(tmp_path.iterdir()) == []
        with Log(url, log.vkey) as client:
            client.checkpoint()
        assert (tmp_path / "treehead").is_dir()
