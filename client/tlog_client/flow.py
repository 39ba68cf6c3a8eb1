"""What a client does with a log, once: generators that yield requests. `AsyncLog` and `Log` only run them.

Verified means: the policy's signature over the head, the leaf hash of the very bytes of each entry, its inclusion in
the head at its index, and the head's consistency with the last one that was trusted. A batch is proven by one proof
for all of its entries, from which the proof of each is cut here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, FormatError, VerificationError
from tlog.fetch import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ENTRIES,
    BatchAnswer,
    fetch_add,
    fetch_add_batch,
    fetch_checkpoint,
    fetch_entry,
)
from tlog.merkle import leaf_hash, verify_inclusion
from tlog.multiproof import cut_inclusion_proofs, verify_multiproof
from tlog.policy import Policy
from tlog.proof import TlogProof
from tlog.reader import read_entries
from tlog.tile import MAX_ENTRY_SIZE, TILE_WIDTH
from tlog_client.run import OptionError
from tlog_client.state import default_state_dir
from tlog_client.trust import Trust, read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Answer, Fetching
    from tlog_client.state import Signed

DEFAULT_STATE_DIR = "$XDG_STATE_HOME/treehead"
"""Stands for what `tlog_client.state.default_state_dir` returns."""

MAX_INDEX = (1 << 63) - 2
"""Largest index that an entry can have."""

ENTRY_FRAME = 3
"""Bytes that an entry takes in a batch beside its own, at most."""

BUNDLES = 8
"""Bundles that are read at once: 128 MiB where every entry is as large as it can be."""


class UncheckedError(CouldNotCheckError):
    """The log answered that it appended entries, and something was missing to check it.

    Do not add them again: `AsyncLog.complete` and `Log.complete` check the same answer later.

    Attributes:
        answer: What the log said, with indexes and checkpoint.
        entries: The entries.
        is_new: Whether the log said that one entry, added by itself, was new.
        indexes: The indexes of the entries, in their order.
    """

    def __init__(self, message: str, *, answer: Answer | BatchAnswer, entries: Sequence[bytes], is_new: bool) -> None:
        """Keep the answer."""
        super().__init__(message)
        self.answer = answer
        self.entries = entries
        self.is_new = is_new
        self.indexes = _indexes(answer)


@dataclass(frozen=True, slots=True)
class Added:
    """An entry that the log appended, or had already; verified.

    Attributes:
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        proof: Proves the entry offline; `.format()` writes a .tlog-proof file.
        checkpoint: The head that the proof leads to.
        is_new: Whether this request appended it, as the log says: nothing signed tells.
    """

    index: int
    leaf_hash: bytes
    proof: TlogProof
    checkpoint: Checkpoint
    is_new: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """An entry that the log returned; verified.

    Attributes:
        entry: The entry.
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        proof: Proves the entry offline; `.format()` writes a .tlog-proof file.
        checkpoint: The head that the proof leads to.
    """

    entry: bytes
    index: int
    leaf_hash: bytes
    proof: TlogProof
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Published:
    """One of the entries of a log; verified.

    Attributes:
        index: Zero-based index of the entry.
        entry: The entry.
    """

    index: int
    entry: bytes


class Flows:
    """The flows of one client; several may be under way at once.

    Attributes:
        trust: What it trusts.
    """

    def __init__(
        self, policy: Policy | str, state_dir: Path | str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Load trust; see `AsyncLog`."""
        if state_dir == DEFAULT_STATE_DIR:
            state_dir = default_state_dir()
        trusting = Policy.of_log(policy) if isinstance(policy, str) else policy
        self.trust = Trust(trusting, None if state_dir is None else Path(state_dir), clock)

    def add(self, entry: bytes, key: str | None = None) -> Fetching[Added]:
        """Append an entry; see `AsyncLog.add`."""
        _check_entries([entry])
        _check_key(key)
        answer, is_new = yield from fetch_add(entry, self.trust.size, key)
        return (yield from self._check(answer, [entry], is_new=is_new))[0]

    def add_many(self, entries: Sequence[bytes], key: str | None = None) -> Fetching[list[Added]]:
        """Append entries with one request; see `AsyncLog.add_many`."""
        _check_entries(entries)
        _check_key(key)
        if not entries:
            return []
        answer = yield from fetch_add_batch(entries, self.trust.size, key)
        return (yield from self._check(answer, entries))

    def complete(self, error: UncheckedError) -> Fetching[list[Added]]:
        """Check an answer again; see `AsyncLog.complete`."""
        return (yield from self._check(error.answer, error.entries, is_new=error.is_new))

    def get(self, index: int) -> Fetching[Fetched]:
        """Return the entry at an index; see `AsyncLog.get`."""
        if not 0 <= index <= MAX_INDEX:
            raise OptionError(f"an index is a number from 0 to {MAX_INDEX}")
        answer = yield from fetch_entry(index)
        if answer.index != index or answer.entry is None:
            raise VerificationError(f"the log answered with something else than entry {index}")
        head = yield from self._verify(answer, answer.entry)
        return Fetched(answer.entry, index, answer.leaf_hash, answer.tlog_proof(), head)

    def checkpoint(self) -> Fetching[Checkpoint]:
        """Return the newest head that the log serves; see `AsyncLog.checkpoint`."""
        return (yield from self.signed_checkpoint()).head

    def signed_checkpoint(self) -> Fetching[Signed]:
        """Return the newest head that the log serves, with its note."""
        return (yield from self.accept((yield from fetch_checkpoint())))

    def accept(self, note: bytes) -> Fetching[Signed]:
        """Return the head of a signed note that the log showed, and trust it if it is larger."""
        signed = self.trust.open(note)
        yield from self.trust.accept(signed)
        return signed

    def read(self, head: Checkpoint, start: int, end: int) -> Fetching[list[Published]]:
        """Return entries [start, end) of the tree of a head that was accepted, each verified up to its root."""
        entries = yield from read_log(read_entries(head, start, end, self.trust.cache))
        return [Published(index, entry) for index, entry in enumerate(entries, start)]

    def close(self) -> Fetching[None]:
        """Write what is trusted."""
        yield from self.trust.close()

    def _check(
        self, answer: Answer | BatchAnswer, entries: Sequence[bytes], *, is_new: bool = False
    ) -> Fetching[list[Added]]:
        """Verify what the log says of entries that it appended.

        Raises:
            UncheckedError: Something is missing.
        """
        try:
            if isinstance(answer, BatchAnswer):
                return (yield from self._verify_batch(answer, entries))
            head = yield from self._verify(answer, entries[0])
        except CouldNotCheckError as error:
            place = f"the entry at index {_indexes(answer)[0]}" if len(entries) == 1 else f"{len(entries)} entries"
            message = f"the log says that it appended {place}; that could not be checked: {error}"
            raise UncheckedError(message, answer=answer, entries=entries, is_new=is_new) from error
        return [Added(answer.index, answer.leaf_hash, answer.tlog_proof(), head, is_new)]

    def _verify(self, answer: Answer, entry: bytes) -> Fetching[Checkpoint]:
        signed = self.trust.open(answer.checkpoint)
        if answer.leaf_hash != leaf_hash(entry):
            raise VerificationError(f"the log answered with the leaf hash of another entry than {answer.index}")
        verify_inclusion(answer.leaf_hash, answer.index, signed.head.size, answer.proof, signed.head.root)
        yield from self.trust.accept(signed, answer.consistency)
        return signed.head

    def _verify_batch(self, answer: BatchAnswer, entries: Sequence[bytes]) -> Fetching[list[Added]]:
        """Verify the answer to a batch as a whole, then cut the proof of each entry."""
        signed = self.trust.open(answer.checkpoint)
        head = signed.head
        nodes = verify_multiproof(_leaves(answer, entries), head.size, answer.proof, head.root)
        yield from self.trust.accept(signed, answer.consistency)
        proofs = cut_inclusion_proofs([result.index for result in answer.results], head.size, nodes)
        return [
            Added(
                result.index,
                result.leaf_hash,
                TlogProof(result.index, tuple(hashes), answer.checkpoint),
                head,
                result.is_new,
            )
            for result, hashes in zip(answer.results, proofs, strict=True)
        ]


def _leaves(answer: BatchAnswer, entries: Sequence[bytes]) -> dict[int, bytes]:
    """Return the leaf hash at each index of an answer, all of them the hashes of the very entries that were sent.

    Raises:
        VerificationError: A result too few or too many, of another entry, or two where only one entry can be.
    """
    if len(answer.results) != len(entries):
        raise VerificationError(f"the log answered with {len(answer.results)} results to {len(entries)} entries")
    leaves: dict[int, bytes] = {}
    appended: set[int] = set()
    for number, (entry, result) in enumerate(zip(entries, answer.results, strict=True)):
        leaf = leaf_hash(entry)
        if result.leaf_hash != leaf:
            raise VerificationError(f"the log answered with the leaf hash of another entry than number {number}")
        if leaves.setdefault(result.index, leaf) != leaf or (result.is_new and result.index in appended):
            raise VerificationError(f"the log answered with index {result.index} for two entries")
        if result.is_new:
            appended.add(result.index)
    return leaves


def _indexes(answer: Answer | BatchAnswer) -> tuple[int, ...]:
    results = answer.results if isinstance(answer, BatchAnswer) else (answer,)
    return tuple(result.index for result in results)


def batch_bytes(entries: Sequence[bytes]) -> int:
    """Return how much of MAX_BATCH_BYTES entries take."""
    return sum(map(len, entries)) + ENTRY_FRAME * len(entries)


def _check_entries(entries: Sequence[bytes]) -> None:
    """Refuse what no log takes before anything is sent."""
    for entry in entries:
        if len(entry) > MAX_ENTRY_SIZE:
            raise FormatError(
                f"an entry has at most {MAX_ENTRY_SIZE:,} bytes, not {len(entry):,}; add its hash instead"
            )
    if len(entries) > MAX_BATCH_ENTRIES or (len(entries) > 1 and batch_bytes(entries) > MAX_BATCH_BYTES):
        raise OptionError(
            f"a batch has at most {MAX_BATCH_ENTRIES:,} entries and {MAX_BATCH_BYTES >> 20} MiB; add several"
        )


def _check_key(key: str | None) -> None:
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable() and " " not in key):
        raise OptionError("an Idempotency-Key has 1 to 255 visible ASCII characters")


def chunks(start: int, end: int, bundles: int) -> Iterator[tuple[int, int]]:
    """Cut a range of entries where bundles end, so many bundles at a time."""
    while start < end:
        until = min(end, (start // TILE_WIDTH + bundles) * TILE_WIDTH)
        yield start, until
        start = until
