"""What the machine can do at best, measured in the same run as everything else, because machines differ.

    fdatasync   appends of 4 KiB to a file, each made durable before the next
    sha256      hashes of 301 bytes, the leaf hash of an entry of 300 bytes, on one core
    ed25519     signatures of 150 bytes, on one core

The fourth limit, a server that does nothing, is measured with each row under that row's load (`load/noop.py`).
"""

from __future__ import annotations

import os
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
_ENTRY = bytes(301)
_TEXT = bytes(150)


def measure_limits(folder: Path, seconds: float) -> dict[str, float]:
    """Return all limits, each in operations a second.

    Args:
        folder: On the disk that logs are on.
        seconds: For each.
    """
    return {
        "fdatasync": fdatasyncs(folder / "limit", seconds),
        "sha256": _rate(lambda: sha256(_ENTRY).digest(), seconds, 1000),
        "ed25519": _rate(_signing(), seconds, 10),
    }


def fdatasyncs(file: Path, seconds: float) -> float:
    """Return how many appends of 4 KiB a second this disk makes durable."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append() -> None:
        os.write(descriptor, bytes(4096))
        _sync(descriptor)

    try:
        return _rate(append, seconds, 1)
    finally:
        os.close(descriptor)
        file.unlink()


def _signing() -> Callable[[], object]:
    key = SigningKey(bytes(range(32)))
    return lambda: key.sign(_TEXT)


def _rate(operation: Callable[[], object], seconds: float, block: int) -> float:
    """Return how often a second an operation is done, looking at the clock once a block."""
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(block):
            operation()
        count += block
    return round(count / passed, 1)
