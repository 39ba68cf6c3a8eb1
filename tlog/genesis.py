"""The genesis entry: leaf 0 of every Treehead log, so that a log says in its own tree what it is.

    {"format": "treehead/genesis/v1", "origin": text, "vkey": text, "createdMs": milliseconds since 1970}

Deterministic CBOR. Logs of other software have no such entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlog.cbor import decode, encode
from tlog.errors import FormatError

FORMAT = "treehead/genesis/v1"


@dataclass(frozen=True, slots=True)
class Genesis:
    """What a log says of itself in its first entry.

    Attributes:
        origin: The log's unique name.
        vkey: The key it began with.
        created_ms: Milliseconds since 1970.
    """

    origin: str
    vkey: str
    created_ms: int

    def format(self) -> bytes:
        """Write the entry."""
        return encode(
            {"format": FORMAT, "origin": self.origin, "vkey": self.vkey, "createdMs": self.created_ms},
        )


def parse_genesis(entry: bytes) -> Genesis:
    """Parse a genesis entry.

    Raises:
        FormatError: It is something else.
    """
    match decode(entry):
        case {"format": form, "origin": str(origin), "vkey": str(vkey), "createdMs": int(created_ms), **rest} if (
            form == FORMAT and not rest and not isinstance(created_ms, bool)
        ):
            return Genesis(origin, vkey, created_ms)
    raise FormatError("not a genesis entry")
