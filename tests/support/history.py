"""What clients saw of one log, judged by the RFC's definition of a tree and by nothing that the log says of itself.

Clients sent requests, and saw answers, heads, entries, tiles and proofs. All of it must be of one chain:

    a head         larger than all before it, or the one of its size again, byte for byte; its root is the entries' MTH
    an entry       at its index for ever, and sent by somebody
    an answer      names an index that holds the entry, below the size of its head; no index is given twice
    a duplicate    has the first index of its entry; what was sent under one key is answered alike
    one request    is in the log as a whole, or not at all
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.support.rfc6962 import Tree
from tests.support.static import framed
from tests.support.wire import head_of
from tlog.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlog.server.sequencer import Placed


@dataclass(frozen=True, slots=True)
class Request:
    """What one client asks for at once.

    Attributes:
        entries: What is to be appended.
        key: Its idempotency key; empty where it has none.
    """

    entries: tuple[bytes, ...]
    key: str = ""


@dataclass(slots=True)
class Keyed:
    """What clients know about an idempotency key.

    Attributes:
        entries: What was sent under it.
        indexes: What was answered; None while nobody was answered.
        is_durable: Whether a segment holds it, so that it survives its process.
        was_in_doubt: Whether it was sent when nobody was answered, so nobody knows when it was carried out.
        is_held: Whether the log must know it, as long as it counts.
        made_ms: When it was answered, by the clock that it ages by.
        stamp_ms: The time of its segment.
    """

    entries: tuple[bytes, ...]
    indexes: tuple[int, ...] | None = None
    is_durable: bool = False
    was_in_doubt: bool = False
    is_held: bool = False
    made_ms: int = 0
    stamp_ms: int = 0


@dataclass(slots=True)
class History:
    """What was seen of a log, from a beginning that is known.

    Attributes:
        vkey: The key of the log.
        entries: Its entries, as far as they were seen.
        dedup: Whether an entry that the log has is not appended again.
        tree: Their tree.
        newest: Size of the largest head that was seen.
        sizes: Sizes of all heads that were seen, smallest first.
        first: The first index of each entry.
        keys: What is known about each idempotency key.
        unanswered: Requests whose outcome nobody knows, newest last.
        fresh: Keys that were answered since somebody looked.
    """

    vkey: str
    entries: list[bytes]
    dedup: bool
    tree: Tree = field(init=False)
    newest: int = 0
    sizes: list[int] = field(default_factory=list)
    first: dict[bytes, int] = field(init=False)
    keys: dict[str, Keyed] = field(default_factory=dict)
    unanswered: list[Request] = field(default_factory=list)
    fresh: list[Keyed] = field(default_factory=list)
    _framed: bytearray = field(init=False)
    _notes: dict[int, bytes] = field(default_factory=dict)
    _unjudged: list[int] = field(default_factory=list)
    _sent: list[Request] = field(default_factory=list)
    _answers: list[tuple[Request, list[Placed], int]] = field(default_factory=list)
    _given: set[int] = field(default_factory=set)
    _policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.tree = Tree(self.entries)
        self.first = {entry: index for index, entry in reversed(list(enumerate(self.entries)))}
        self._framed = bytearray(framed(self.entries))
        self._policy = Policy.of_log(self.vkey)

    # What is seen.

    def head(self, note: bytes) -> int:
        """Note a signed head, and return its size."""
        size, root = head_of(note)
        if size not in self._notes:
            checkpoint = self._policy.open_checkpoint(note)
            assert (checkpoint.size, checkpoint.root) == (size, root)
            self._notes[size] = note
            self._unjudged.append(size)
            insort(self.sizes, size)
        assert self._notes[size] == note, f"two heads of size {size}"
        return size

    def served(self, note: bytes) -> int:
        """Note the head that the log serves, and return its size."""
        size = self.head(note)
        assert size >= self.newest, f"the log went back from {self.newest} to {size} entries"
        self.newest = size
        return size

    def sent(self, requests: Iterable[Request]) -> None:
        """Note what is about to be asked for."""
        self._sent += requests

    def refused(self, request: Request) -> None:
        """Note that a request was refused, so nothing of it may ever be seen."""
        self._sent.remove(request)

    def answered(self, request: Request, placed: list[Placed], before: int) -> None:
        """Note an answer to a request that was sent when a head of size `before` had been seen."""
        for note in {one.head.note for one in placed}:
            self.head(note)
        self._answers.append((request, placed, before))

    def doubt(self, request: Request, now_ms: int) -> None:
        """Note that nobody knows what became of a request that was sent at a time."""
        if request.key and request.key not in self.keys:
            self.keys[request.key] = Keyed(request.entries, was_in_doubt=True, made_ms=now_ms, stamp_ms=now_ms)
        self.unanswered = [*self.unanswered[-7:], request]

    def grown(self, entries: Sequence[bytes]) -> None:
        """Note entries behind those that were seen, and judge every head and answer that was waiting for them."""
        old = len(self.entries)
        sent = {entry for request in self._sent for entry in request.entries}
        for index, entry in enumerate(entries, old):
            assert entry in sent, f"entry {index} was sent by nobody, or was refused"
            if self.dedup:
                assert entry not in self.first, f"entry {self.first[entry]} is in the log again, at {index}"
            self.first.setdefault(entry, index)
        self.entries += entries
        self._framed += framed(list(entries))
        for size in self._unjudged:
            assert size <= len(self.entries), f"a head of size {size}, and no entries for it"
            assert head_of(self._notes[size])[1] == self.tree.mth(0, size), f"the head of size {size} has another root"
        self._unjudged.clear()
        self._judge(old)

    def same(self, stored: bytes) -> None:
        """Check that the framed entries of the log are those that were seen, and no others."""
        assert stored == self._framed, "the entries of the log are not those that clients have seen"

    def note_of(self, size: int) -> bytes:
        """Return the head of a size that was seen."""
        return self._notes[size]

    # What it must be.

    def _judge(self, old: int) -> None:
        """Judge the answers, now that the entries from `old` on are known."""
        new = set(range(old, len(self.entries)))
        given = set[int]()
        for request, placed, before in self._answers:
            given |= self._judge_one(request, placed, before)
        assert not given & self._given, "an index was given twice"
        self._given |= given
        if len(self._answers) == len(self._sent):  # everybody was answered
            assert new <= given, f"entries {new - given} were appended, and given to nobody"
        elif self.dedup:
            self._judge_halves(old)
        self._answers.clear()
        self._sent.clear()

    def _judge_one(self, request: Request, placed: Sequence[Placed], before: int) -> set[int]:
        """Judge an answer; return the indexes that it says are new."""
        given = [one.index for one in placed if one.is_new]
        assert len(set(given)) == len(given), "an index was given twice in one answer"
        assert len(placed) == len(request.entries)
        for entry, one in zip(request.entries, placed, strict=True):
            assert one.leaf_hash == sha256(b"\x00" + entry).digest()
            assert one.index < one.head.size, "an acknowledgement with a head that does not contain its entry"
            assert one.head.size >= before, "an acknowledgement with an older head than was seen before"
            assert self.entries[one.index] == entry, f"entry {one.index} is not the one acknowledged there"
            assert not one.is_new or one.index >= before, f"entry {one.index} was there before, and is said to be new"
            if self.dedup:
                assert one.index == self.first[entry], (
                    f"a duplicate of entry {self.first[entry]} is placed at {one.index}"
                )
        indexes = tuple(one.index for one in placed)
        if request.key:
            known = self.keys.setdefault(request.key, Keyed(request.entries))
            assert known.entries == request.entries
            assert known.indexes in (None, indexes), "a key was answered twice, and not alike"
            known.was_in_doubt = known.was_in_doubt and not given
            if given or (known.indexes is None and not known.was_in_doubt):
                self.fresh.append(known)
            known.indexes, known.is_durable = indexes, known.is_durable or bool(given) or not self.dedup
        elif not self.dedup:
            assert len(given) == len(placed), "an entry without a key is not new, and duplicates are wanted"
        return set(given)

    def _judge_halves(self, old: int) -> None:
        """Check that no request is in the log in part: its entries that nobody else sent are there, or none of them."""
        counts: dict[bytes, int] = {}
        for request in self._sent:
            for entry in set(request.entries):
                counts[entry] = counts.get(entry, 0) + 1
        for request in self._sent:
            own = [entry for entry in request.entries if counts[entry] == 1]
            there = {entry in self.first for entry in own if self.first.get(entry, old) >= old}
            assert len(there) < 2, "a request is in the log in part"
