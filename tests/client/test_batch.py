"""Batches: one request, one proof, a result for each entry; every way in which an answer can be wrong is refused."""

import asyncio
from collections.abc import Callable, Iterator
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tlog.cbor import decode, encode
from tlog.errors import CouldNotCheckError, ForkError, FormatError, RefusedError, VerificationError
from tlog.fetch import KEY_HEADER, MAX_BATCH_ENTRIES, Request, Response
from tlog.note import sign_note
from tlog.policy import Policy
from tlog.proof import parse_proof, verify_proof
from tlog_client import AsyncLog, Log, OptionError, patience, submit
from tlog_client.failure import UnreachableError
from tlog_client.flow import Added, Flows, UncheckedError
from tlog_client.run import drive
from tlog_client.submit import Submission, submit_all

BATCH = "v1/entries/batch"
NEW = [b"new %d" % number for number in range(7)]


def flows_of(log: SimulatedLog) -> Flows:
    return Flows(log.vkey, None, lambda: 0.0)


def results(change: Callable[[list[dict[str, object]]], object]) -> Lie:
    """Change the results in an answer."""

    def edit(body: bytes) -> bytes:
        value = decode(body)
        assert isinstance(value, dict)
        change(value["results"])  # type: ignore[arg-type]  # maps with text keys
        return encode(value)

    return changed(edit)


def shift(rows: list[dict[str, object]], by: int) -> None:
    for row in rows:
        assert isinstance(row["index"], int)
        row["index"] += by


# What is honest.


@given(st.integers(0, 300), st.lists(st.binary(max_size=20), min_size=1, max_size=40), st.booleans())
def test_each_proof_cut_from_a_batch_verifies_offline(size: int, entries: list[bytes], trusts: bool) -> None:  # noqa: FBT001  # drawn
    log = SimulatedLog.of_size(size)
    flows = flows_of(log)
    if trusts:
        drive(log, flows.checkpoint())
    added = drive(log, flows.add_many(entries))
    assert [one.index for one in added] == list(range(size, size + len(entries)))
    for entry, one in zip(entries, added, strict=True):
        assert one.is_new
        assert one.checkpoint == log.head()
        verify_proof(parse_proof(one.proof.format()), entry, Policy.of_log(log.vkey))


@given(st.lists(st.lists(st.binary(max_size=4), max_size=9), max_size=9), st.lists(st.integers(0, 8), max_size=30))
def test_batches_that_overtake_each_other_all_succeed(batches: list[list[bytes]], order: list[int]) -> None:
    log = SimulatedLog.of_size(260)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    added: list[list[Added]] = interleave(log, [flows.add_many(batch) for batch in batches], order)
    assert [[log.tree.entries[one.index] for one in row] for row in added] == batches


@given(st.lists(st.integers(0, 299), min_size=1, max_size=30))
def test_duplicates_keep_their_first_index_in_any_order(indexes: list[int]) -> None:
    log = SimulatedLog.of_size(300)
    answer = log.batch_answer(indexes).format()
    log.lies[BATCH] = lambda request, _: results(lambda rows: [row.update(isNew=False) for row in rows])(
        request, Response(200, {}, answer)
    )
    added = drive(log, flows_of(log).add_many([entry_of(index) for index in indexes]))
    assert [(one.index, one.is_new) for one in added] == [(index, False) for index in indexes]


def test_an_empty_batch_sends_nothing() -> None:
    log = SimulatedLog.of_size(3)
    assert drive(log, flows_of(log).add_many([])) == []
    assert log.asked == []


def test_what_the_log_says_about_novelty_is_passed_on_and_harms_nothing() -> None:
    log = SimulatedLog.of_size(3)
    log.lies[BATCH] = results(lambda rows: rows[1].update(isNew=False))
    added = drive(log, flows_of(log).add_many(NEW))
    assert [one.is_new for one in added] == [True, False, True, True, True, True, True]


def test_a_single_entry_says_whether_it_is_new() -> None:
    log = SimulatedLog.of_size(3)
    assert drive(log, flows_of(log).add(b"x", "key")).is_new
    assert not drive(log, flows_of(log).add(b"x", "key")).is_new
    assert log.size == 4


def test_both_kinds_of_client_send_batches() -> None:
    log = SimulatedLog.of_size(3)
    with serving(log) as url:
        with Log(url, log.vkey, state_dir=None) as client:
            assert [one.index for one in client.add_many(NEW, key="k")] == list(range(3, 10))
            assert [one.index for one in client.add_many(NEW, key="k")] == list(range(3, 10))

        async def add() -> list[Added]:
            async with AsyncLog(url, log.vkey, state_dir=None) as client:
                return await client.add_many(NEW)

        assert [one.index for one in asyncio.run(add())] == list(range(10, 17))


# What is wrong.


def head_of_another_key(log: SimulatedLog) -> bytes:
    return sign_note(log.head().format(), [OTHER])


def of_the_fork(log: SimulatedLog) -> bytes:
    """Answer honestly, for a log with another past."""
    fork = SimulatedLog([*log.forked(7).tree.entries[:300], *NEW])
    return fork.batch_answer(range(300, 307)).format()


def later(make: Callable[[SimulatedLog], dict[str, object]]) -> Callable[[SimulatedLog], Lie]:
    """Replace parts of an answer by what is made when the entries are in the log."""

    def lie_of(log: SimulatedLog) -> Lie:
        def lie(request: Request, response: Response) -> Response:
            return answering(**make(log))(request, response)

        return lie

    return lie_of


LIES: dict[str, tuple[Callable[[SimulatedLog], Lie], type[Exception]]] = {
    "a result is missing": (lambda _: results(lambda rows: rows.pop()), VerificationError),
    "no results": (lambda _: results(lambda rows: rows.clear()), VerificationError),
    "a result too many": (lambda _: results(lambda rows: rows.append(dict(rows[0]))), VerificationError),
    "two results are swapped": (lambda _: results(lambda rows: rows.reverse()), VerificationError),
    "indexes are swapped": (
        lambda _: results(lambda rows: [row.update(index=306 - at) for at, row in enumerate(rows)]),
        VerificationError,
    ),
    "another leaf hash": (
        lambda log: results(lambda rows: rows[3].update(leafHash=log.tree.mth(3, 4))),
        VerificationError,
    ),
    "other entries that are in the log": (
        lambda log: lambda *_: Response(201, {}, log.batch_answer(range(7)).format()),
        VerificationError,
    ),
    "one index twice": (lambda _: results(lambda rows: rows[3].update(index=302)), VerificationError),
    "indexes of other entries": (lambda _: results(lambda rows: shift(rows, -1)), VerificationError),
    "indexes beyond the head": (lambda _: results(lambda rows: shift(rows, 1)), VerificationError),
    "a negative index": (lambda _: results(lambda rows: rows[0].update(index=-1)), FormatError),
    "proof cut": (lambda _: answering(proof=[]), VerificationError),
    "proof of others": (later(lambda log: {"proof": list(log.batch_answer(range(7)).proof)}), VerificationError),
    "a hash too many": (
        later(lambda log: {"proof": [*log.batch_answer(range(300, 307)).proof, bytes(32)]}),
        VerificationError,
    ),
    "head of another key": (later(lambda log: {"checkpoint": head_of_another_key(log)}), VerificationError),
    "an older head": (lambda log: answering(checkpoint=log.note(300)), VerificationError),
    "a head without form": (lambda _: answering(checkpoint=b"x"), FormatError),
    "an unknown part": (lambda _: answering(more=1), FormatError),
    "fork": (lambda log: lambda *_: Response(201, {}, of_the_fork(log)), ForkError),
    "no CBOR": (lambda _: always(200, b"<html>"), FormatError),
    "an answer to one entry": (lambda log: lambda *_: Response(201, {}, log.answer(300).format()), FormatError),
    "cut": (lambda _: changed(lambda body: body[:-1]), FormatError),
    "forbidden": (lambda _: always(403), RefusedError),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("trusts", [False, True], ids=["first use", "known log"])
def test_every_lie_about_a_batch_is_refused_and_moves_no_trust(lie: str, *, trusts: bool) -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    if trusts:
        drive(log, flows.checkpoint())
    make, error = LIES[lie]
    log.lies[BATCH] = make(log)
    if lie == "fork":
        if not trusts:
            return  # nobody knows another past
        log.tiles = SimulatedLog([*log.forked(7).tree.entries, *NEW]).tree
    with pytest.raises(error):
        drive(log, flows.add_many(NEW))
    assert flows.trust.size == (300 if trusts else 0)


@given(st.data())
def test_no_flipped_bit_of_an_answer_is_believed(data: st.DataObject) -> None:
    log = SimulatedLog.of_size(20)
    honest = drive(log, flows_of(log).add_many(NEW, "key"))
    assert log.keys is not None
    body = bytearray(log.keys["key"])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    log.keys["key"] = bytes(body)
    try:
        added = drive(log, flows_of(log).add_many(NEW, "key"))
    except (FormatError, VerificationError):
        return
    assert [(one.index, one.leaf_hash, one.proof.hashes) for one in added] == [
        (one.index, one.leaf_hash, one.proof.hashes) for one in honest
    ]  # what is left is what nobody signs: is_new, and a signature of somebody else


def test_a_batch_that_could_not_be_checked_says_its_indexes() -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    log.lies["tile/"] = always(503)
    log.lies[BATCH] = answering(consistency={"from": 299, "proof": []})
    with pytest.raises(UncheckedError) as caught:
        drive(log, flows.add_many(NEW))
    assert caught.value.indexes == tuple(range(300, 307))
    assert "7 entries" in str(caught.value)
    with pytest.raises(UncheckedError):
        drive(log, flows.complete(caught.value))
    log.lies.clear()
    assert [one.index for one in drive(log, flows.complete(caught.value))] == list(range(300, 307))
    assert log.size == 307


def test_a_single_entry_that_could_not_be_checked_is_checked_later() -> None:
    log = SimulatedLog.of_size(300)
    flows = flows_of(log)
    drive(log, flows.checkpoint())
    log.lies["tile/"] = always(404)
    log.lies["v1/entries"] = answering(consistency={"from": 299, "proof": []})
    with pytest.raises(UncheckedError) as caught:
        drive(log, flows.add(b"mine"))
    log.lies.clear()
    (added,) = drive(log, flows.complete(caught.value))
    assert (added.index, added.is_new, log.size) == (300, True, 301)


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_could_not_be_checked_is_checked_again_and_never_sent_again() -> None:
    log = SimulatedLog.of_size(300)
    log.keys = None  # a log that knows no such keys would append it again
    misses = iter(range(7))
    log.lies["tile/"] = lambda request, response: (
        response if next(misses, None) is None else always(500)(request, response)
    )
    log.lies[BATCH] = answering(consistency={"from": 299, "proof": []})
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            await client.checkpoint()
            added: list[Added] = []
            await submit_all(client, iter(NEW), added.append)
    assert log.size == 307
    assert len(added) == 7


def test_what_no_log_takes_is_refused_before_anything_is_sent() -> None:
    log = SimulatedLog.of_size(1)
    flows = flows_of(log)
    for entries in ([b""] * (MAX_BATCH_ENTRIES + 1), [bytes(65535)] * 65):
        with pytest.raises(OptionError):
            drive(log, flows.add_many(entries))
    with pytest.raises(FormatError):
        drive(log, flows.add_many([b"", bytes(65536)]))
    for key in ("", "two words", "ü", "x" * 256, "\n"):
        with pytest.raises(OptionError):
            drive(log, flows.add_many([b""], key))
        with pytest.raises(OptionError):
            drive(log, flows.add(b"", key))
    assert log.asked == []


# Any number of entries.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(patience, "MAX_DELAY", 0.001)


async def submit_to(url: str, log: SimulatedLog, entries: Iterator[bytes]) -> list[Added]:
    added: list[Added] = []
    async with AsyncLog(url, log.vkey, state_dir=None) as client:
        await submit_all(client, entries, added.append)
    return added


async def test_many_entries_go_in_few_batches_and_come_back_in_order() -> None:
    log = SimulatedLog.of_size(0)
    entries = [b"%d" % number for number in range(10_000)]
    with serving(log) as url:
        added = await submit_to(url, log, iter(entries))
    assert [log.tree.entries[one.index] for one in added] == entries
    assert log.asked.count(BATCH) < 100


async def test_a_slow_input_is_sent_entry_by_entry() -> None:
    log = SimulatedLog.of_size(0)
    come = Event()

    def slow() -> Iterator[bytes]:
        for number in range(5):
            yield b"%d" % number
            assert come.wait(10)
            come.clear()

    added: list[Added] = []

    def report(one: Added) -> None:
        added.append(one)
        come.set()

    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            await submit_all(client, slow(), report)
    assert [one.checkpoint.size for one in added] == [1, 2, 3, 4, 5]


async def test_the_reader_is_never_more_than_a_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_BATCH_ENTRIES", 100)
    log = SimulatedLog.of_size(0)
    handed = 0

    def counted() -> Iterator[bytes]:
        nonlocal handed
        for _ in range(3000):
            handed += 1
            yield b""

    ahead: list[int] = []
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            done = Submission(client, lambda _: ahead.append(handed - done.sent))
            await done.run(counted())
    assert done.sent == done.reported == 3000
    assert max(ahead) <= 101


@pytest.mark.usefixtures("impatient")
async def test_a_lost_answer_is_asked_for_again_and_nothing_is_added_twice() -> None:
    log = SimulatedLog.of_size(0)
    calls = 0
    keys: list[str] = []

    def lost(request: Request, response: Response) -> Response:
        nonlocal calls
        calls += 1
        keys.append(dict(request.headers)[KEY_HEADER])
        return response if calls % 3 == 0 else Response((500, 503)[calls % 2], {}, b"")

    log.lies[BATCH] = lost
    entries = [b"%d" % (number % 10) for number in range(9000)]
    with serving(log) as url:
        added = await submit_to(url, log, iter(entries))
    assert [log.tree.entries[one.index] for one in added] == entries
    assert log.size == 9000
    assert calls > len(set(keys)) > 1


@pytest.mark.usefixtures("impatient")
async def test_the_log_is_said_to_be_away_once_in_an_outage_and_tries_are_bounded() -> None:
    log = SimulatedLog.of_size(0)
    log.lies[BATCH] = always(500)
    notices: list[CouldNotCheckError] = []
    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            submission = Submission(client, lambda _: None, notices.append)
            with pytest.raises(CouldNotCheckError):
                await submission.run(iter([b"x"]))
    assert len(notices) == 1
    assert log.asked.count(BATCH) == submit.MAX_TRIES
    assert (submission.sent, submission.reported) == (1, 0)


async def test_an_address_where_nobody_ever_was_is_not_tried_again() -> None:
    with pytest.raises(UnreachableError, match=r"nothing listens at 127\.0\.0\.1:1$"):
        await submit_to("http://127.0.0.1:1", SimulatedLog.of_size(0), iter([b"x"]))


async def test_a_batch_that_is_too_large_for_this_log_is_cut() -> None:
    log = SimulatedLog.of_size(0)

    def small(request: Request, response: Response) -> Response:
        entries = decode(request.body or b"")
        assert isinstance(entries, list)
        return response if len(entries) <= 10 else Response(413, {}, b"")

    honest = log.respond

    def respond(request: Request) -> Response:
        if request.path == BATCH and small(request, Response(200, {}, b"")).status == 413:
            return Response(413, {}, b"")
        return honest(request)

    log.respond = respond  # type: ignore[method-assign]  # a log that refuses before it appends
    entries = [b"%d" % number for number in range(500)]
    with serving(log) as url:
        added = await submit_to(url, log, iter(entries))
    assert [log.tree.entries[one.index] for one in added] == entries
    assert log.size == 500


async def test_what_was_read_before_a_bad_entry_is_submitted() -> None:
    log = SimulatedLog.of_size(0)
    added: list[Added] = []

    def entries() -> Iterator[bytes]:
        yield from (b"a", b"b")
        raise OptionError("bad")

    with serving(log) as url:
        async with AsyncLog(url, log.vkey, state_dir=None) as client:
            with pytest.raises(OptionError, match="bad"):
                await submit_all(client, entries(), added.append)
    assert len(added) == 2
