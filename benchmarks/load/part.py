"""What one generator process is to do, and what it has seen; both travel between processes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from benchmarks.load.entry import Source


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        host: Name or IP address.
        port: TCP port.
        prefix: Path of the log, without a slash at its end.
    """

    host: str
    port: int
    prefix: str = ""

    def http(self, method: str, path: str, headers: str = "", body: bytes = b"") -> bytes:
        """Return a request in one piece; header lines end in CRLF."""
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        return f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {self.host}\r\n{headers}{length}\r\n".encode() + body


def parse_address(url: str) -> Address:
    """Parse the URL of a server.

    Raises:
        ValueError: It is no http URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None or parts.query or parts.fragment:
        raise ValueError(f"not an http URL: {url}")
    return Address(parts.hostname, parts.port or 80, parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class Part:
    """The work of one generator process.

    Attributes:
        address: The server.
        kind: Name of the kind of request.
        source: Where entries come from.
        connections: Number of connections, at least 1.
        seconds: Length of the timed part.
        warm_up: Seconds of load before it.
        rate: Requests a second of the open loop; 0 for the closed loop.
        size: Size of the tree that reads are about.
        start: When the load begins, on the clock of `wire.now`; 0 for at once.
        may_hang_up: Whether it is expected that the server goes away.
        is_recorded: Whether it is kept where each entry was acknowledged.
    """

    address: Address
    kind: str
    source: Source
    connections: int
    seconds: float
    warm_up: float = 0.5
    rate: float = 0.0
    size: int = 0
    start: float = 0.0
    may_hang_up: bool = False
    is_recorded: bool = True


@dataclass(slots=True)
class Acknowledged:
    """Which entries of one source the server acknowledged, and the index of each; owned by one process at a time."""

    source: Source
    numbers: array[int] = field(default_factory=lambda: array("q"))
    indexes: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Outcome:
    """What one generator process has seen; filled by its driver.

    Attributes:
        times: Seconds that each answer took that came in the timed part.
        answers: Number of all good answers.
        size: Bytes in the bodies of these.
        statuses: Number of other answers by status.
        samples: Number and body of some requests.
        acknowledged: What was acknowledged, whenever it was.
        errors: What must not happen; a run with one has failed.
        hung_up: How many connections the server ended where that was expected.
        unanswered: Requests of the open loop that were due and never answered.
    """

    acknowledged: Acknowledged
    times: array[float] = field(default_factory=lambda: array("d"))
    answers: int = 0
    size: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    samples: list[tuple[int, bytes]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hung_up: int = 0
    unanswered: int = 0
