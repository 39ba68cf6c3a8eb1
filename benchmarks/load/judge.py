"""What a server answered, judged after the load with the functions that clients use.

A sample of every kind of answer is verified against the newest checkpoint under the log's vkey; a log whose key is not
known is held to the checkpoint that it serves.
"""

from __future__ import annotations

import gzip
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from benchmarks.load.kind import BATCH, pick, picks
from tlog import cbor
from tlog.checkpoint import Checkpoint, parse_checkpoint
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.fetch import fetch_checkpoint, over_http, parse_answer, parse_batch_answer
from tlog.merkle import EMPTY_ROOT, leaf_hash, verify_inclusion
from tlog.multiproof import verify_multiproof
from tlog.note import split_note
from tlog.policy import Policy
from tlog.reader import TileCache, read_hashes, read_root
from tlog.tile import TILE_WIDTH, format_tile, parse_bundle
from tlog_client.run import SyncRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.load.part import Part
    from tlog.reader import Reading

T = TypeVar("T")

MAX_ERRORS = 10
"""Most errors that are told."""

_POLL_S = 0.1


class Judge:
    """Judges the answers of one log, against its newest checkpoint.

    Attributes:
        errors: What was wrong, the first few.
        verified: Number of samples that were right.
        head: The newest checkpoint, which everything is judged by.
    """

    def __init__(self, url: str, vkey: str | None) -> None:
        """Take the address of a log, and its key where that is known."""
        self.errors: list[str] = []
        self.verified = 0
        self._runner = SyncRunner(url)
        self._policy = None if vkey is None else Policy.of_log(vkey)
        self._cache = TileCache(1 << 14)
        self.head = Checkpoint("", 0, EMPTY_ROOT)

    def close(self) -> None:
        """Close its connections."""
        self._runner.close()

    def open(self, note: bytes) -> Checkpoint:
        """Return the checkpoint of a note."""
        if self._policy is not None:
            return self._policy.open_checkpoint(note)
        return parse_checkpoint(split_note(note)[0], extensions=True)

    def fetch_head(self, covering: int = 0, patience: float = 0.0) -> Checkpoint:
        """Take the newest checkpoint, and judge everything by it from now on.

        Args:
            covering: Size that it should have at least.
            patience: Seconds in which it may reach that.
        """
        deadline = time.monotonic() + patience
        while True:
            self.fetch_note()
            if self.head.size >= covering or time.monotonic() > deadline:
                return self.head
            time.sleep(_POLL_S)

    def fetch_note(self) -> bytes:
        """Take the newest checkpoint, and return its note.

        Raises:
            TreeheadError: There is none, or it is not signed by the log.
        """
        note = self._runner.run(fetch_checkpoint())
        self.head = self.open(note)
        return note

    def read(self, make: Callable[[Checkpoint, TileCache], Reading[T]]) -> T:
        """Run a flow that reads, and verifies by, the newest checkpoint.

        Raises:
            TreeheadError: Whatever the flow raises.
        """
        return self._runner.run(over_http(make(self.head, self._cache)))

    @contextmanager
    def judging(self, what: str) -> Iterator[None]:
        """Note what is wrong."""
        try:
            yield
        except TreeheadError as error:
            self.fail(f"{what}: {error}")

    def fail(self, error: str) -> None:
        """Note an error."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)

    def check_samples(self, part: Part, samples: Iterable[tuple[int, bytes]]) -> None:
        """Verify answers of one part, each with the number of its request."""
        for number, body in samples:
            with self.judging(f"{part.kind} {number}"):
                self._check_sample(part, number, body)
                self.verified += 1

    def _check_sample(self, part: Part, number: int, body: bytes) -> None:
        match part.kind:
            case "entry":
                answer = parse_answer(body)
                head = self.extended(answer.checkpoint)
                leaf = leaf_hash(part.source.entry(number))
                verify_inclusion(leaf, answer.index, head.size, answer.proof, head.root)
            case "batch":
                self._check_batch(part, number, body)
            case "checkpoint":
                self.extended(body)
            case "tile" | "bundle":
                self._check_page(part, number, body)
            case "proof":
                proof = cbor.decode(body)
                self._check_proof(proof, self._root(part.size), part.size, pick(number, part.size))
            case "proofs":
                self._check_proofs(part, number, body)
            case _:
                pass  # what /add answers is an index, and `check_acknowledged` has it

    def _check_batch(self, part: Part, number: int, body: bytes) -> None:
        answer = parse_batch_answer(body)
        head = self.extended(answer.checkpoint)
        entries = [part.source.entry(number * BATCH + at) for at in range(BATCH)]
        leaves = {result.index: leaf_hash(entry) for result, entry in zip(answer.results, entries, strict=True)}
        verify_multiproof(leaves, head.size, answer.proof, head.root)

    def _check_page(self, part: Part, number: int, body: bytes) -> None:
        first = _page(part, number) * TILE_WIDTH
        nodes = [(0, first + at) for at in range(TILE_WIDTH)]
        hashes = self.read(lambda head, cache: read_hashes(head, nodes, cache))
        found = body if part.kind == "tile" else format_tile(map(leaf_hash, parse_bundle(_unpacked(body), TILE_WIDTH)))
        if found != format_tile(hashes):
            raise VerificationError(f"{part.kind} {first // TILE_WIDTH} is not the one of the checkpoint")

    def _check_proofs(self, part: Part, number: int, body: bytes) -> None:
        match cbor.decode(body):
            case {"proofs": list(proofs), "checkpoint": bytes(note)}:
                head = self.extended(note)
                for proof, index in zip(proofs, picks(number, part.size), strict=True):
                    self._check_proof(proof, head.root, head.size, index)
            case _:
                raise FormatError("not an answer with proofs")

    def _check_proof(self, value: object, root: bytes, size: int, wanted: int) -> None:
        match value:
            case {"index": int(index), "leafHash": bytes(leaf), "proof": list(hashes)} if index == wanted:
                verify_inclusion(leaf, index, size, [each for each in hashes if isinstance(each, bytes)], root)
            case _:
                raise FormatError(f"not the proof of entry {wanted}")

    def extended(self, note: bytes) -> Checkpoint:
        """Return the checkpoint of a note, which the newest one must extend.

        Raises:
            TreeheadError: It does not, or that cannot be told.
        """
        head = self.open(note)
        if head.size > self.head.size:
            raise VerificationError(f"size {head.size} was answered, and the newest checkpoint has {self.head.size}")
        if self._root(head.size) != head.root:
            raise VerificationError(f"the newest checkpoint does not extend the one of size {head.size}")
        return head

    def _root(self, size: int) -> bytes:
        return self.read(lambda head, cache: read_root(head, size, cache))


def _page(part: Part, number: int) -> int:
    """Return the number of the tile or bundle that a request was for."""
    return pick(number, part.size // TILE_WIDTH)


def _unpacked(body: bytes) -> bytes:
    """Return a bundle without its compression; no entry of a benchmark is as long as gzip's magic number says."""
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
