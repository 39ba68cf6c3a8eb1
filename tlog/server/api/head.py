"""Heads of requests as the hot lane reads them: an exact form of a few fields. Whatever else there is, is not read.

    POST /add HTTP/1.1 CRLF         the request line, compared as it is
    Host: log.example CRLF          exactly one
    Content-Length: 300 CRLF        decimal without a leading zero
    Accept: application/cbor CRLF   each field once, from a closed list
    CRLF

A head that breaks this may be a good one all the same: aiohttp decides. So nothing here is lenient, and a byte that two
parsers could understand differently is understood by one only. Clients send the same fields again and again, so what
they say is kept by their bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tlog.errors import FormatError
from tlog.fetch import HAVE_HEADER
from tlog.strict import parse_decimal

MAX_HEAD = 2048
"""Bytes of a head that is looked at: those of clients have some hundred."""

_KEPT = 4096
"""Heads whose fields are kept: 8 MB at the worst."""

_FIELD = re.compile(rb"([A-Za-z-]+): ([!-~](?:[ -~]*[!-~])?)")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]+")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,6}")
_ANY = re.compile(r".*")

_FIELDS = {
    "host": _HOST,
    "content-length": _LENGTH,
    "accept": _ANY,
    "accept-encoding": _ANY,
    "accept-language": _ANY,
    "connection": re.compile(r"keep-alive", re.IGNORECASE),
    "content-type": _ANY,
    "user-agent": _ANY,
    HAVE_HEADER.lower(): _ANY,
}
"""The fields that there may be, and their values. None changes what a request means but the ones of `Fields`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What the fields of a head say.

    Attributes:
        length: Bytes of the body; None where the request has no body.
        accept: The media types that the client accepts; empty where it does not say.
        media_type: Content-Type, in lower case and without parameters; empty where there is none.
        have: The size of a tree that the client trusts; None where it does not say.
    """

    length: int | None
    accept: str
    media_type: str
    have: int | None


@lru_cache(maxsize=_KEPT)
def parse_fields(lines: bytes) -> Fields | None:
    """Return what the fields of a head say; None where that is more, or other, than the hot lane reads.

    Args:
        lines: What is between the request line and the empty line, with the CRLF that each line begins with.
    """
    first, *rest = lines.split(b"\r\n")
    found: dict[str, str] = {}
    for line in rest:
        match = _FIELD.fullmatch(line)
        if match is None:
            return None
        name, value = match[1].decode().lower(), match[2].decode()
        known = _FIELDS.get(name)
        if known is None or name in found or not known.fullmatch(value):
            return None
        found[name] = value
    if first or "host" not in found:
        return None
    length, have = found.get("content-length"), found.get(HAVE_HEADER.lower())
    media_type = found.get("content-type", "").partition(";")[0].strip(" \t").lower()
    try:
        trusted = None if have is None else parse_decimal(have.encode())
    except FormatError:
        return None
    return Fields(None if length is None else int(length), found.get("accept", ""), media_type, trusted)
