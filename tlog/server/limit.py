"""What the log takes at most: one constant with its reason for each limit, and the setting that changes it.

    [limits]
    batch_entries = 1000        settings are the constants in lower case, without MAX

Every queue, buffer and table of the server is bounded by one of these; what is beyond is refused with 413, 429 or 503.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tlog.fetch import MAX_BATCH_ENTRIES

MAX_BATCH_BYTES = 8 << 20
"""Most bytes in one commit, so that its time stays bounded; a batch request is one commit, so for its body too."""

MAX_PROOFS = 256
"""Most inclusion proofs in one answer: a megabyte at the worst. Not a setting: clients count on it."""

MAX_PROOFS_BYTES = 1 << 14
"""Most bytes of a request for proofs: 256 of the largest indexes, three times over."""

MAX_POOL_ENTRIES = 1 << 16
"""Most entries that wait; at the slowest disk seen they are signed within two seconds."""

MAX_POOL_BYTES = 64 << 20
"""Most bytes that wait: memory that submitters can make the log hold."""

MAX_LAG = 1 << 17
"""Entries above the follower's position at which the log takes no more: they are all in memory."""

MAX_LAG_BYTES = 512 << 20
"""Bytes of entries above the follower's position at which the log takes no more: they are in memory, too."""

MAX_KEY_BYTES = 128 << 20
"""Memory for the idempotency keys of the last 24 hours: about half a million of single entries."""

MAX_TREE_SIZE = 1 << 24
"""Entries at which a log takes no more: the largest tree that was tried. Raise it after trying a larger one."""

MIN_FREE_BYTES = 256 << 20
"""Free bytes on the disk of the log below which it takes no more, so that what it has taken can always be signed."""

BALLAST_BYTES = 32 << 20
"""Size of a file that can be removed when the disk is full: room for a start and the commits under way; 0 for none."""

SCRUB_BYTES = 4 << 20
"""Bytes of entries that are read again and hashed each second, for ever: 345 GB a day; 0 turns it off."""

ANCHOR_SECONDS = 1.0
"""Seconds between two writes of the newest head outside: what a log that was taken back may have lost unseen."""

MAX_BODY_BYTES = 128 << 20
"""Bytes of all bodies that are being received or answered: memory that clients can make the server hold."""

MAX_CONNECTIONS = 4096
"""Most connections at a time: each costs memory and a descriptor, and idle ones are the cheapest attack."""

HEADER_SECONDS = 10.0
"""Seconds for a whole request head, from the first byte on, or from connecting: clients send it in one packet."""

BODY_SECONDS = 30.0
"""Seconds for a whole body: the largest batch at 2.5 Mbit/s."""

KEEPALIVE_SECONDS = 60.0
"""Seconds that an idle connection is kept."""

WRITE_SECONDS = 30.0
"""Seconds in which a client must take some of an answer that waits for it; one that does not is cut off."""

MAX_SUBSCRIBERS = 1024
"""Most streams of checkpoints at a time."""

RATE = 0
"""Entries that one address may submit a second, on average; 0 sets no limit, for a log behind a proxy that limits."""

BURST = 2 * MAX_BATCH_ENTRIES
"""Entries that an address may submit at once before RATE counts: two full batches."""

_Count = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0, le=3600)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of one log, or of a server of several."""

    batch_entries: Annotated[int, Meta(ge=1, le=MAX_BATCH_ENTRIES)] = MAX_BATCH_ENTRIES
    batch_bytes: Annotated[int, Meta(ge=1 << 16, le=64 << 20)] = MAX_BATCH_BYTES
    pool_entries: _Count = MAX_POOL_ENTRIES
    pool_bytes: _Count = MAX_POOL_BYTES
    lag: Annotated[int, Meta(ge=1 << 10)] = MAX_LAG
    lag_bytes: _Count = MAX_LAG_BYTES
    key_bytes: _Count = MAX_KEY_BYTES
    tree_size: _Count = MAX_TREE_SIZE
    free_bytes: Annotated[int, Meta(ge=0)] = MIN_FREE_BYTES
    ballast_bytes: Annotated[int, Meta(ge=0)] = BALLAST_BYTES
    scrub_bytes: Annotated[int, Meta(ge=0)] = SCRUB_BYTES
    anchor_seconds: _Seconds = ANCHOR_SECONDS
    body_bytes: Annotated[int, Meta(ge=64 << 20)] = MAX_BODY_BYTES
    connections: _Count = MAX_CONNECTIONS
    header_seconds: _Seconds = HEADER_SECONDS
    body_seconds: _Seconds = BODY_SECONDS
    keepalive_seconds: _Seconds = KEEPALIVE_SECONDS
    write_seconds: _Seconds = WRITE_SECONDS
    subscribers: Annotated[int, Meta(ge=0)] = MAX_SUBSCRIBERS
    rate: Annotated[int, Meta(ge=0)] = RATE
    burst: _Count = BURST
