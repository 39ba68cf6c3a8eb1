"""Media types, and which of them a client gets (RFC 9110 §12.5.1).

Of the types that an operation offers, the one of the highest quality in Accept is answered, and the first of several of
the same quality. A quality of 0 refuses a type, however many wildcards would take it. Parameters of a media range other
than q are ignored: none of these types has any that matter.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tlog.errors import TreeheadError
from tlog.fetch import CBOR, PROBLEM_CBOR

JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain"
EVENTS = "text/event-stream"

TLOG_PROOF = "text/x.tlog.proof"
"""Media type of a .tlog-proof file, named like those of tlog-witness and tlog-mirror."""

PROBLEM_JSON = "application/problem+json"

PROBLEM_FORMS = ((PROBLEM_JSON, JSON), (PROBLEM_CBOR, CBOR, "application/problem+cbor"))
"""The types in Accept that ask for a problem in JSON, and in CBOR; the first of each is the one it is sent as."""

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)


class NotAcceptableError(TreeheadError):
    """Accept has none of the media types that are offered."""


class MediaTypeError(TreeheadError):
    """A body is of a media type that the operation does not take."""


class EncodingError(TreeheadError):
    """A body has a Content-Encoding: what is received is what is stored, so nothing may be undone on the way."""


@lru_cache(maxsize=1024)
def negotiate(accept: str, offered: tuple[str, ...]) -> str:
    """Return the media type to answer with.

    Args:
        accept: The value of Accept; empty where there is none.
        offered: What there is, the most wanted first.

    Raises:
        NotAcceptableError: Accept has none of them.
    """
    best = max(offered, key=lambda media_type: quality(accept, media_type))
    if quality(accept, best) == 0:
        raise NotAcceptableError(f"this answer is {' or '.join(offered)}")
    return best


def problem_form(accept: str) -> str:
    """Return the media type of a problem for a client; JSON unless CBOR is wanted more."""
    qualities = [max(quality(accept, media_type) for media_type in form) for form in PROBLEM_FORMS]
    return PROBLEM_CBOR if qualities[1] > qualities[0] else PROBLEM_JSON


@lru_cache(maxsize=1024)  # a few clients ask the same again and again
def quality(accept: str, media_type: str) -> float:
    """Return how much a client wants a media type, from 0 to 1; the most specific of its media ranges says so."""
    ranges = _parse(accept)
    if not ranges:
        return 1.0
    for wanted in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if wanted in ranges:
            return ranges[wanted]
    return 0.0


def _parse(accept: str) -> dict[str, float]:
    """Return the quality of each media range; empty list elements count for nothing, junk for a type nobody offers."""
    ranges: dict[str, float] = {}
    for element in accept.split(","):
        media_range, *parameters = (part.strip(" \t").lower() for part in element.split(";"))
        if not media_range:
            continue
        values = [value for name, _, value in (part.partition("=") for part in parameters) if name == "q"]
        well_formed = all(_QUALITY.fullmatch(value) for value in values)
        ranges[media_range] = float(values[0]) if values and well_formed else float(well_formed)
    return ranges
