"""Steps 3 to 7: what they make durable, and that stores and code that lie never get a signature."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory import MemoryCheckpointStore, MemoryStorage
from tests.support.rfc6962 import Tree
from tests.support.static import framed
from tests.support.writing import ORIGIN, SIGNER, begin, empty_head, leaves, local_signer
from tlog.checkpoint import parse_checkpoint
from tlog.edge import Edge, Growth, extend
from tlog.errors import VerificationError
from tlog.note import Signer, open_note, sign_note
from tlog.server import commit as module
from tlog.server import signer as signing
from tlog.server.commit import Commit
from tlog.server.errors import CommitError
from tlog.server.recount import Recount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tlog.server.storage import Segment, SignedHead

pytestmark = pytest.mark.invariant("I1", "I2", "I4", "I8", "I9")

FIRST = [b"genesis"]
BATCH = [b"a", b"", b"c" * 300]


class Log:
    """A log in memory with one entry in it."""

    def __init__(self, storage: MemoryStorage | None = None, store: MemoryCheckpointStore | None = None) -> None:
        self.storage = storage or MemoryStorage()
        self.store = store or MemoryCheckpointStore()
        self.commit, _ = begin(self.storage, self.store)
        self.commit.run(FIRST, leaves(FIRST), 1000)

    def run(self, entries: Sequence[bytes] = BATCH, time_ms: int = 2000) -> SignedHead:
        return self.commit.run(entries, leaves(entries), time_ms).head

    @property
    def head(self) -> SignedHead:
        return self.store.heads[ORIGIN]


def assert_stopped(log: Log, size: int = 1) -> None:
    """Check that nothing was signed beyond a size, and that nothing ever will be."""
    assert log.head.size == size
    stored = len(log.storage.segments)
    for _ in range(2):
        with pytest.raises(CommitError, match="an earlier commit failed"):
            log.run([b"later"])
        with pytest.raises(CommitError, match="an earlier commit failed"):
            log.commit.finish(leaves([b"later"]))
    assert len(log.storage.segments) == stored
    assert log.head.size == size


# What a commit makes.


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=20), min_size=1, max_size=8))
def test_each_commit_is_stored_signed_and_of_the_tree_that_the_rfc_defines(batches: list[list[bytes]]) -> None:
    storage, store = MemoryStorage(), MemoryCheckpointStore()
    commit, head = begin(storage, store)
    entries: list[bytes] = []
    for at, batch in enumerate(batches):
        committed = commit.run(batch, leaves(batch), at)
        entries += batch
        root = Tree(entries).mth(0, len(entries))
        assert (committed.head.size, committed.head.root, committed.head.epoch) == (len(entries), root, head.epoch)
        assert store.heads[ORIGIN] == committed.head
        text, signed = open_note(committed.head.note, [SIGNER.verifier])
        assert signed == [SIGNER.verifier]
        assert parse_checkpoint(text).root == root
        segment = storage.segments[-1]
        assert (segment.first, segment.count, segment.root) == (len(entries) - len(batch), len(batch), root)
        assert segment.entries == framed(batch)
        assert segment.leaf_digest == sha256(b"".join(leaves(batch))).digest()
        assert segment.time_ms == at
    assert storage.entries(0, len(entries)) == entries


def test_the_time_of_a_segment_is_never_before_that_of_the_segment_before() -> None:
    log = Log()
    for time_ms in (2000, 500, 1999, 2000, 2001):
        log.run(time_ms=time_ms)
    assert [segment.time_ms for segment in log.storage.segments] == [1000, 2000, 2000, 2000, 2000, 2001]


def test_the_time_of_the_newest_stored_segment_counts_after_a_restart() -> None:
    storage, store = MemoryStorage(), MemoryCheckpointStore()
    store.create(empty_head())
    commit = Commit(storage, store, local_signer(), empty_head(), Edge(), 7000)
    commit.run(FIRST, leaves(FIRST), 5)
    assert storage.segments[0].time_ms == 7000


def test_a_stored_segment_is_finished_to_the_same_head() -> None:
    log, unsigned = Log(), Log()
    head = log.run()
    unsigned.storage.append(log.storage.segments[-1])
    assert unsigned.commit.finish(leaves(BATCH)).head == head
    assert unsigned.head == head
    assert unsigned.run([b"next"]) == log.run([b"next"])


def test_a_commit_begins_only_at_the_signed_head() -> None:
    log = Log()
    for edge in (Edge(), extend(Edge(), leaves([b"other"])).new, extend(Edge(), leaves(BATCH)).new):
        with pytest.raises(CommitError, match="not the one of the signed head"):
            Commit(log.storage, log.store, local_signer(), log.head, edge, 0)


# Stores that lie.


class ReadsBackLies(MemoryStorage):
    """Changes what it reads back, from the second segment on."""

    def __init__(self, change: Callable[[Segment], Segment | None]) -> None:
        super().__init__()
        self._change = change

    def segment_at(self, index: int) -> Segment | None:
        segment = super().segment_at(index)
        return segment if segment is None or segment.first == 0 else self._change(segment)


def test_any_flipped_bit_of_the_stored_entries_is_never_signed() -> None:
    size = len(framed(BATCH))
    for bit in (*range(80), *range(80, 8 * size, 97), 8 * size - 1):

        def flip(segment: Segment, bit: int = bit) -> Segment:
            data = bytearray(segment.entries)
            data[bit // 8] ^= 1 << bit % 8
            return replace(segment, entries=bytes(data))

        log = Log(ReadsBackLies(flip))
        with pytest.raises(CommitError):
            log.run()
        assert_stopped(log)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda segment: replace(segment, first=segment.first + 1),
        lambda segment: replace(segment, count=segment.count + 1),
        lambda segment: replace(segment, count=segment.count - 1),
        lambda segment: replace(segment, root=bytes(32)),
        lambda segment: replace(segment, leaf_digest=bytes(32)),
        lambda segment: replace(segment, digest=bytes(32)),
        lambda segment: replace(segment, time_ms=segment.time_ms + 1),
        lambda segment: replace(segment, time_ms=segment.time_ms + 1).sealed(),
        lambda segment: replace(segment, keys=b"others").sealed(),
        lambda segment: replace(segment, entries=segment.entries[:-1]),
        lambda segment: replace(segment, entries=segment.entries + b"\x00\x00"),
        lambda segment: replace(segment, entries=b""),
        lambda segment: replace(segment, entries=framed([b"", b"a", b"c" * 300])),
        lambda segment: replace(
            segment,
            entries=framed([b"x", b"y", b"z"]),
            leaf_digest=sha256(b"".join(leaves([b"x", b"y", b"z"]))).digest(),
        ),
    ],
    ids=[
        *("gone", "first", "longer", "shorter", "root", "leaves", "digest", "time", "another time", "other keys"),
        *("cut off", "one more", "empty", "swapped", "others"),
    ],
)
def test_a_segment_that_is_read_back_otherwise_is_never_signed(change: Callable[[Segment], Segment | None]) -> None:
    log = Log(ReadsBackLies(change))
    with pytest.raises(CommitError, match="not signed"):
        log.run()
    assert_stopped(log)


def test_entries_that_are_not_the_leaves_they_came_in_as_are_never_signed() -> None:
    log = Log()
    with pytest.raises(CommitError, match=r"stored differently than they came in.*tlogd repair --discard-unsigned"):
        log.commit.run(BATCH, leaves([b"a", b"", b"d" * 300]), 1)
    assert_stopped(log)


class Fails(MemoryStorage, MemoryCheckpointStore):
    """Fails its second write, before or after it took effect."""

    def __init__(self, write: str, *, after: bool, error: type[Exception]) -> None:
        MemoryStorage.__init__(self)
        MemoryCheckpointStore.__init__(self)
        self._failing = write
        self._after = after
        self._error = error
        self._writes = 0

    def _write(self, name: str, write: Callable[[], None]) -> None:
        self._writes += name == self._failing
        armed = name == self._failing and self._writes == 2
        if not armed or self._after:
            write()
        if armed:
            raise self._error("disk I/O error")

    def append(self, segment: Segment) -> None:
        self._write("append", lambda: MemoryStorage.append(self, segment))

    def swap(self, old: SignedHead, new: SignedHead) -> None:
        self._write("swap", lambda: MemoryCheckpointStore.swap(self, old, new))


@pytest.mark.parametrize("error", [CommitError, OSError, MemoryError])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", ["append", "swap"])
def test_a_write_that_fails_ends_all_committing(write: str, *, after: bool, error: type[Exception]) -> None:
    stores = Fails(write, after=after, error=error)
    log = Log(stores, stores)
    with pytest.raises(error, match="disk I/O error"):
        log.run()
    assert_stopped(log, size=4 if (write, after) == ("swap", True) else 1)
    assert len(log.storage.segments) == (1 if (write, after) == ("append", False) else 2)


@pytest.mark.parametrize("change", [{"epoch": 9}, {"size": 0}, {"root": bytes(32)}])
def test_a_checkpoint_store_that_moved_meanwhile_is_never_overwritten(change: dict[str, int]) -> None:
    log = Log()
    log.store.heads[ORIGIN] = moved = replace(log.head, **change)  # type: ignore[arg-type]  # one of its fields
    with pytest.raises(CommitError, match="lost the checkpoint store"):
        log.run()
    assert log.head == moved
    with pytest.raises(CommitError, match="an earlier commit failed"):
        log.run()


# Code that is wrong on one of the two paths.


def wrong_root(edge: Edge, leaf_hashes: Sequence[bytes]) -> Growth:
    growth = extend(edge, leaf_hashes)
    return replace(growth, new=Edge(growth.new.size, (bytes(32), *growth.new.peaks[1:])))


def one_leaf_twice(edge: Edge, leaf_hashes: Sequence[bytes]) -> Growth:
    return extend(edge, [*leaf_hashes[:-1], leaf_hashes[0]])


def one_leaf_more(edge: Edge, leaf_hashes: Sequence[bytes]) -> Growth:
    return extend(edge, [*leaf_hashes, leaf_hashes[0]])


@pytest.mark.parametrize("wrong", [wrong_root, one_leaf_twice, one_leaf_more])
def test_a_wrong_first_path_is_never_signed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Edge, Sequence[bytes]], Growth]
) -> None:
    log = Log()
    monkeypatch.setattr(module, "extend", wrong)
    with pytest.raises(CommitError, match="not signed"):
        log.run()
    assert_stopped(log)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda found, digest: (replace(found, size=found.size + 1), digest),
        lambda found, digest: (replace(found, stack=((2, bytes(32)),)), digest),
        lambda found, digest: (replace(found, stack=found.stack[:-1]), digest),
        lambda found, _: (found, bytes(32)),
    ],
    ids=["size", "hash", "stack", "digest"],
)
def test_a_wrong_second_path_is_never_signed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Recount, bytes], tuple[Recount, bytes]]
) -> None:
    log = Log()
    log.run([b"so that there are", b"two peaks"])
    honest = Recount.add
    monkeypatch.setattr(Recount, "add", lambda self, framed: wrong(*honest(self, framed)))
    with pytest.raises(CommitError, match="not signed"):
        log.run()
    assert_stopped(log, size=3)


def test_both_paths_wrong_in_the_same_way_still_fail_the_consistency_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_past(_: Edge, leaf_hashes: Sequence[bytes]) -> Growth:
        growth = extend(extend(Edge(), leaves([b"another genesis"])).new, leaf_hashes)
        return replace(growth, old=Edge(1, growth.old.peaks))

    def recount(self: Recount, data: bytes) -> tuple[Recount, bytes]:
        return honest(replace(self, stack=((0, leaves([b"another genesis"])[0]),)), data)

    log = Log()
    honest = Recount.add
    monkeypatch.setattr(module, "extend", other_past)
    monkeypatch.setattr(Recount, "add", recount)
    with pytest.raises(CommitError, match="not signed: "):
        log.run()
    assert_stopped(log)


def test_a_head_that_is_not_consistent_with_the_one_before_is_never_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise VerificationError("not a prefix")

    log = Log()
    monkeypatch.setattr(module, "verify_consistency", refuse)
    with pytest.raises(CommitError, match="not signed: not a prefix"):
        log.run()
    assert_stopped(log)


def by_another_key(text: bytes, _: Iterable[Signer]) -> bytes:
    return sign_note(text, [Signer(ORIGIN, bytes(32))])


def of_another_size(text: bytes, signers: Iterable[Signer]) -> bytes:
    return sign_note(text.replace(b"\n4\n", b"\n5\n"), signers)


def with_a_broken_signature(text: bytes, signers: Iterable[Signer]) -> bytes:
    note = bytearray(sign_note(text, signers))
    note[-20] = ord("B") if note[-20] == ord("A") else ord("A")
    return bytes(note)


@pytest.mark.parametrize("sign", [by_another_key, of_another_size, with_a_broken_signature])
def test_a_note_that_a_client_would_refuse_never_reaches_the_store(
    monkeypatch: pytest.MonkeyPatch, sign: Callable[[bytes, Iterable[Signer]], bytes]
) -> None:
    log = Log()
    monkeypatch.setattr(signing, "sign_note", sign)
    with pytest.raises(CommitError, match="not signed"):
        log.run()
    assert_stopped(log)
