"""The genesis entry: leaf 0 of every log, so that a log says in its own tree what it is.

    {"format": "treehead/genesis/v1", "origin": text, "vkey": text, "createdMs": milliseconds since 1970}

Deterministic CBOR.
"""

from __future__ import annotations

from tlog.cbor import encode

FORMAT = "treehead/genesis/v1"


def genesis_entry(origin: str, vkey: str, created_ms: int) -> bytes:
    """Return the genesis entry of a log."""
    return encode({"format": FORMAT, "origin": origin, "vkey": vkey, "createdMs": created_ms})
