"""What went wrong on the network, as a sentence: never the words of the library that noticed it.

Both HTTP libraries wrap what the operating system said, each in its own way. So the whole chain of an error is searched
for what a person can act on, by the names of classes: nothing needs to be imported to say that there is no network.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tlog.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take."""

_NOT_CONNECTED = ("ClientConnectorError", "ConnectionTimeoutError", "ConnectTimeoutError", "SSLError")
_NO_WAY = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM))
_SLOW_CONNECT = "connecting to {place} took longer than {connect:g} s"
_SLOW = "the answer of {place} took longer than {seconds:g} s"
_CLOSED = "{place} closed the connection before its answer was complete"

_SENTENCES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gaierror", "ClientConnectorDNSError"), "the name {host} cannot be resolved"),
    (("SSLCertVerificationError",), "the TLS certificate of {place} is not valid: {detail}"),
    (("SSLError",), "no TLS with {place}; perhaps its address begins with http://"),
    (("ConnectionRefusedError",), "nothing listens at {place}"),
    (("ConnectionTimeoutError",), _SLOW_CONNECT),
    (("ReadTimeoutError", "SocketTimeoutError"), _SLOW),
    (("ClientPayloadError", "IncompleteRead", "InvalidChunkLength"), _CLOSED),
    (("ServerDisconnectedError", "RemoteDisconnected", "ConnectionError"), _CLOSED),
    (("BadHttpMessage", "BadStatusLine", "InvalidHeader"), "what answers at {place} does not speak HTTP"),
)
"""What the first class that is found means; the more telling ones go first."""


class UnreachableError(UnavailableError):
    """No connection to the log could be made, so nothing was sent."""


def network_error(url: str, error: Exception, seconds: float) -> UnavailableError:
    """Return the error that says why there is no answer.

    Args:
        url: Address of the log.
        error: What an HTTP library raised.
        seconds: How long the answer may take.
    """
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    is_connected = names.isdisjoint(_NOT_CONNECTED)
    template = next((text for known, text in _SENTENCES if not names.isdisjoint(known)), None)
    if template is None:
        template = _by_number(chain) or _by_time(names, is_connected=is_connected)
    parts = urlsplit(url)
    message = template.format(
        place=parts.netloc, host=parts.hostname, detail=_detail(chain), seconds=seconds, connect=CONNECT_TIMEOUT
    )
    return UnavailableError(message) if is_connected else UnreachableError(message)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it holds, and what it was raised from; 16 at most."""
    waiting = [error]
    for _ in range(16):
        if not waiting:
            return
        one = waiting.pop(0)
        yield one
        held = (*one.args, getattr(one, "os_error", None), one.__cause__ or one.__context__)
        waiting += [inner for inner in held if isinstance(inner, BaseException)]


def _by_number(chain: list[BaseException]) -> str | None:
    """Return what the number of an error of the operating system means."""
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    return None if numbers.isdisjoint(_NO_WAY) else "{place} cannot be reached from here"


def _by_time(names: set[str], *, is_connected: bool) -> str:
    """Return what is left: it took too long, or nobody knows."""
    if "TimeoutError" not in names and "ConnectTimeoutError" not in names:
        return "no answer from {place}"
    return _SLOW if is_connected else _SLOW_CONNECT


def _detail(chain: list[BaseException]) -> str:
    """Return what is wrong with a certificate."""
    said = next((str(one.verify_message) for one in chain if hasattr(one, "verify_message")), "")
    return "".join(char for char in said[:200] if char.isprintable())
