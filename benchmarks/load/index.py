"""The index in an answer to an added entry, found with as little as that takes."""

from __future__ import annotations

from benchmarks.load.wire import WireError
from tlog.errors import FormatError
from tlog.fetch import parse_answer

_ADDED = b"\xa4\x65index"  # a map of four whose first key, the smallest, is "index"


def plain_index(body: bytes) -> int:
    """Return the index in an answer to `POST /add`; some logs end the line.

    Raises:
        WireError: There is none.
    """
    digits = body.removesuffix(b"\n")
    if not digits.isdigit():
        raise WireError(f"not an index: {body[:80]!r}")
    return int(digits)


def cbor_index(body: bytes) -> int:
    """Return the index in an answer to an added entry; it is the first value, for its key is the smallest.

    Raises:
        WireError: There is none.
    """
    at = len(_ADDED) + 1
    if body.startswith(_ADDED) and len(body) > at + 8:
        first = body[at - 1]
        if first < 24:
            return first
        if first < 28:
            return int.from_bytes(body[at : at + (1 << first - 24)], "big")
    try:
        return parse_answer(body).index
    except FormatError as error:
        raise WireError(str(error)) from error
