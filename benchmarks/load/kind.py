"""The kinds of request: what each asks for, and what of an answer is kept.

    add          POST /add                                one entry; the answer is its index
    entry        POST /v1/entries, Accept: CBOR           one entry; the answer proves it
    batch        POST /v1/entries/batch                   1,000 entries
    checkpoint   GET /checkpoint
    tile         GET /tile/0/<N>                          a full tile at random
    bundle       GET /tile/entries/<N>                    a full bundle at random
    proof        GET /v1/proofs/inclusion/<index>/<size>  an index at random
    proofs       POST /v1/proofs                          100 indexes at random

Where a request asks for something at random, its number alone decides for what, so that a sample can be judged later.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from benchmarks.load.entry import ENTRY_SIZE, entry_of
from benchmarks.load.index import cbor_index, plain_index
from benchmarks.load.wire import WireError
from tlog.errors import FormatError
from tlog.fetch import CBOR, parse_batch_answer
from tlog.tile import TILE_WIDTH, Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.load.part import Acknowledged, Part

BATCH = 1000
"""Entries in a batch."""

PROOFS = 100
"""Proofs asked for at once."""

_MULTIPLIER = 0x9E3779B97F4A7C15


class Kind(Protocol):
    """One kind of request.

    Attributes:
        every: One in so many answers is kept as a sample.
        weight: Entries or proofs in a request.
    """

    every: int
    weight: int

    def request(self, number: int) -> bytes:
        """Return a whole request."""

    def take(self, number: int, body: bytes) -> None:
        """Take note of a good answer.

        Raises:
            WireError: It is none.
        """

    def settle(self) -> None:
        """Do after the load what would only slow it down.

        Raises:
            WireError: An answer was none.
        """


class Single:
    """One entry a request; what comes of it is noted at once."""

    every = 1000
    weight = 1

    def __init__(self, head: bytes, read: Callable[[bytes], int], acknowledged: Acknowledged) -> None:
        """Take the request before its entry, what reads an index out of an answer, and where that is noted."""
        self._head = head
        self._read = read
        self._prefix = acknowledged.source.prefix()
        self._numbers = acknowledged.numbers
        self._indexes = acknowledged.indexes

    def request(self, number: int) -> bytes:
        """Return a whole request."""
        return self._head + entry_of(self._prefix, number)

    def take(self, number: int, body: bytes) -> None:
        """Note the index."""
        index = self._read(body)
        self._numbers.append(number)
        self._indexes.append(index)

    def settle(self) -> None:
        """Do nothing more."""


def _before_entry(part: Part, path: str, headers: str) -> bytes:
    """Return a request that adds an entry, up to the entry."""
    return part.address.http("POST", path, headers, bytes(ENTRY_SIZE))[:-ENTRY_SIZE]


class Batch:
    """`POST /v1/entries/batch`; entry `n` of request `r` has the number r·1000 + n."""

    every = 50
    weight = BATCH

    def __init__(self, part: Part, acknowledged: Acknowledged) -> None:
        """Take where entries come from, and where it is noted what became of them."""
        self._address = part.address
        self._prefix = part.source.prefix()
        self._acknowledged = acknowledged
        self._answers: list[tuple[int, bytes]] = []

    def request(self, number: int) -> bytes:
        """Return a whole request."""
        first = number * BATCH
        entries = [b"\x59\x01\x2c" + entry_of(self._prefix, first + at) for at in range(BATCH)]
        body = b"\x99\x03\xe8" + b"".join(entries)
        return self._address.http("POST", "/v1/entries/batch", f"Accept: {CBOR}\r\nContent-Type: {CBOR}\r\n", body)

    def take(self, number: int, body: bytes) -> None:
        """Keep the answer: it takes milliseconds to read."""
        self._answers.append((number, body))

    def settle(self) -> None:
        """Note all indexes.

        Raises:
            WireError: An answer was none.
        """
        while self._answers:
            number, body = self._answers.pop()
            try:
                results = parse_batch_answer(body).results
            except FormatError as error:
                raise WireError(str(error)) from error
            if len(results) != BATCH:
                raise WireError(f"{len(results)} results of {BATCH} entries")
            self._acknowledged.numbers.extend(range(number * BATCH, (number + 1) * BATCH))
            self._acknowledged.indexes.extend(result.index for result in results)


class Read:
    """A read that changes nothing: what it asks for is made from the number of the request."""

    def __init__(self, make: Callable[[int], bytes], every: int = 1000, weight: int = 1) -> None:
        """Take what makes a request."""
        self.request = make
        self.every = every
        self.weight = weight

    def take(self, number: int, body: bytes) -> None:
        """Keep nothing."""

    def settle(self) -> None:
        """Do nothing more."""


def pick(number: int, below: int) -> int:
    """Return a number below a bound, spread evenly and the same for the same number."""
    return ((number + 1) * _MULTIPLIER % (1 << 64)) * below >> 64


def picks(number: int, below: int) -> list[int]:
    """Return the indexes that a request for many proofs names."""
    return [pick(number * PROOFS + at, below) for at in range(PROOFS)]


def _addresses(part: Part, paths: Callable[[int], str]) -> Read:
    """Read full tiles or bundles."""
    count = part.size // TILE_WIDTH
    if count == 0:
        raise ValueError("the log has no full tile yet")
    requests = [part.address.http("GET", f"/{paths(number)}") for number in range(count)]
    return Read(lambda number: requests[pick(number, count)])


def _checkpoint(part: Part) -> Read:
    request = part.address.http("GET", "/checkpoint")
    return Read(lambda _: request)


def _proof(part: Part) -> Read:
    size = part.size
    head = f"GET {part.address.prefix}/v1/proofs/inclusion/".encode()
    tail = f"/{size} HTTP/1.1\r\nHost: {part.address.host}\r\nAccept: {CBOR}\r\n\r\n".encode()
    return Read(lambda number: b"%b%d%b" % (head, pick(number, size), tail))


def _proofs(part: Part) -> Read:
    headers = f"Accept: {CBOR}\r\nContent-Type: application/json\r\n"

    def make(number: int) -> bytes:
        body = json.dumps({"indexes": picks(number, part.size)}).encode()
        return part.address.http("POST", "/v1/proofs", headers, body)

    return Read(make, every=50, weight=PROOFS)


_KINDS: dict[str, Callable[[Part, Acknowledged], Kind]] = {
    "add": lambda part, noted: Single(_before_entry(part, "/add", ""), plain_index, noted),
    "entry": lambda part, noted: Single(_before_entry(part, "/v1/entries", f"Accept: {CBOR}\r\n"), cbor_index, noted),
    "batch": Batch,
    "checkpoint": lambda part, _: _checkpoint(part),
    "tile": lambda part, _: _addresses(part, lambda number: Tile(0, number).path),
    "bundle": lambda part, _: _addresses(part, lambda number: Bundle(number).path),
    "proof": lambda part, _: _proof(part),
    "proofs": lambda part, _: _proofs(part),
}

KINDS = tuple(_KINDS)
"""All kinds."""

ADDING = ("add", "entry", "batch")
"""The kinds that change the log."""


def kind_of(part: Part, acknowledged: Acknowledged) -> Kind:
    """Return the kind of request that a part names.

    Raises:
        ValueError: The log is too small for it.
    """
    return _KINDS[part.kind](part, acknowledged)
