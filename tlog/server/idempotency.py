"""Idempotency keys: a request that names itself is carried out once, however often it is sent.

The log keeps no key and no body, only SHA-256 of each. A segment carries the records of the keyed requests whose
entries it holds; they become durable with the entries, in the same row:

    key digest [32] ‖ body digest [32] ‖ number of entries, 32 bits ‖ the index of each, 64 bits

A key counts for 24 hours. A request that appended nothing, because the log had all its entries, has no segment: its key
is kept in memory only, and after a restart the entries alone decide, with the same indexes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING

from tlog.errors import FormatError, PushbackError
from tlog.server.errors import KeyReusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_MS = 24 * 60 * 60 * 1000
"""Milliseconds that a key counts."""

MAX_KEY_SIZE = 255
"""Most characters of a key."""

RETRY_AFTER_S = 600
"""Seconds that a client with a key is asked to wait when no more keys fit: old ones end with time."""

_HEAD = Struct(">32s32sI")
_INDEX = Struct(">Q")
_COST = 430  # bytes that one key takes in memory besides its indexes


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What the log keeps of a keyed request.

    Attributes:
        key: SHA-256 of its key, 32 bytes.
        body: SHA-256 of what it asks for, 32 bytes.
    """

    key: bytes
    body: bytes


def key_digest(key: str) -> bytes:
    """Return SHA-256 of an Idempotency-Key.

    Raises:
        FormatError: It is empty, too long, or not of visible ASCII characters.
    """
    if not 1 <= len(key) <= MAX_KEY_SIZE or not all("!" <= char <= "~" for char in key):
        raise FormatError(f"an Idempotency-Key has 1 to {MAX_KEY_SIZE} visible ASCII characters")
    return sha256(key.encode()).digest()


def request_key(key: str, route: str, body: bytes) -> RequestKey:
    """Return the digests of a request with an Idempotency-Key.

    Args:
        key: The header's value.
        route: Which request it is; the same body sent elsewhere is another request.
        body: Its body.

    Raises:
        FormatError: The key is empty, too long, or not of visible ASCII characters.
    """
    prefix = f"treehead/idempotency/v1\n{route}\n".encode()
    return RequestKey(key_digest(key), sha256(prefix + body).digest())


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A keyed request that was carried out.

    Attributes:
        request: The request.
        indexes: The index of each of its entries, in its order.
    """

    request: RequestKey
    indexes: tuple[int, ...]

    def format(self) -> bytes:
        """Write the record."""
        head = _HEAD.pack(self.request.key, self.request.body, len(self.indexes))
        return head + b"".join(map(_INDEX.pack, self.indexes))


def parse_key_records(data: bytes) -> Iterator[KeyRecord]:
    """Yield the records of a segment.

    Raises:
        FormatError: They are cut off.
    """
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            raise FormatError("the record of an idempotency key is cut off")
        key, body, count = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if (len(data) - at) // _INDEX.size < count:
            raise FormatError("the record of an idempotency key is cut off")
        indexes = tuple(_INDEX.unpack_from(data, at + _INDEX.size * number)[0] for number in range(count))
        at += _INDEX.size * count
        yield KeyRecord(RequestKey(key, body), indexes)


class Keys:
    """The keyed requests of the last 24 hours. Owned by the event loop."""

    def __init__(self, max_bytes: int) -> None:
        """Begin empty.

        Args:
            max_bytes: Most memory for them.
        """
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: OrderedDict[bytes, tuple[KeyRecord, int]] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._records)

    def find(self, request: RequestKey, now_ms: int) -> KeyRecord | None:
        """Return the record of a request that was carried out; None for a new one.

        Raises:
            KeyReusedError: The key was used for another request.
        """
        self._expire(now_ms)
        record, _ = self._records.get(request.key, (None, 0))
        if record is not None and record.request != request:
            raise KeyReusedError("this Idempotency-Key was used for another request in the last 24 hours")
        return record

    def has(self, key: bytes) -> bool:
        """Return whether a request was carried out under the digest of a key."""
        return key in self._records

    def check_room(self, now_ms: int) -> None:
        """Refuse a new key where no more fit; to forget one before its time would carry its request out again.

        Raises:
            PushbackError: No more fit.
        """
        self._expire(now_ms)
        if self._bytes >= self._max_bytes:
            raise PushbackError("too many idempotency keys in 24 hours", retry_after=RETRY_AFTER_S)

    def put(self, record: KeyRecord, time_ms: int) -> None:
        """Keep a request that was carried out; times never go back."""
        self._forget(record.request.key)
        self._records[record.request.key] = (record, time_ms)
        self._bytes += _cost(record)

    def _expire(self, now_ms: int) -> None:
        while self._records:
            key, (_, time_ms) = next(iter(self._records.items()))
            if time_ms > now_ms - KEY_MS:
                break
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        found = self._records.pop(key, None)
        if found is not None:
            self._bytes -= _cost(found[0])


def _cost(record: KeyRecord) -> int:
    return _COST + 40 * len(record.indexes)
