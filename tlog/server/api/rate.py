"""How much one address may submit: a bucket of entries for each, that fills at a steady rate.

    RateLimit-Policy: "entries";q=2000;w=20     the bucket holds q entries, and fills in w seconds
    RateLimit: "entries";r=1999;t=1             r entries are left, and it is full again in t seconds

(draft-ietf-httpapi-ratelimit-headers-10 §4 and §5.) Both are on every answer to a submission where there is a limit.
A batch costs as many as it has entries: one before its body is read, the rest after. What the log fails to do, with an
answer of 500 and above, costs nothing, and neither does what was refused for its rate.

IPv6 is counted by /64, the smallest network that one customer gets. The table of addresses is bounded: beyond it the
address that was silent for longest is forgotten, which gives it a full bucket.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from math import ceil
from typing import TYPE_CHECKING

from aiohttp import web

from tlog.server.errors import RateError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ADDRESSES = 1 << 16
"""Addresses that are remembered: about 16 MB."""


@dataclass(slots=True)
class Bucket:
    """What an address may still submit.

    Attributes:
        left: Entries; below zero after a batch that is larger than the bucket.
        at: When that was true, in seconds of the clock.
    """

    left: float
    at: float


class Rates:
    """The buckets of all addresses. Owned by the event loop."""

    def __init__(self, rate: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Limit each address to `rate` entries a second, 0 for any number, and `burst` at once.

        Args:
            rate: Entries a second that a bucket fills by.
            burst: Entries that a bucket holds.
            clock: Seconds that never go back.
        """
        self.policy = f'"entries";q={burst};w={ceil(burst / rate)}' if rate else None
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str | int, Bucket] = OrderedDict()

    def take(self, remote: str | None, count: int) -> None:
        """Take entries out of the bucket of an address.

        More than a bucket holds may be taken from a full one; it then fills from below zero.

        Args:
            remote: The address of the peer; all peers without one share a bucket.
            count: How many entries.

        Raises:
            RateError: They are more than the address may submit now.
        """
        if not self._rate:
            return
        bucket = self._bucket(remote)
        missing = min(count, self._burst) - bucket.left
        if missing > 0:
            wait = ceil(missing / self._rate)
            raise RateError(f"more than {self._rate} entries a second from one address", retry_after=wait)
        bucket.left -= count

    def give_back(self, remote: str | None, count: int) -> None:
        """Put entries back that the log could not take."""
        if self._rate:
            bucket = self._bucket(remote)
            bucket.left = min(bucket.left + count, float(self._burst))

    def state(self, remote: str | None) -> str:
        """Return the value of the RateLimit field for an address."""
        left = self._bucket(remote).left
        return f'"entries";r={max(0, int(left))};t={ceil((self._burst - left) / self._rate)}'

    def _bucket(self, remote: str | None) -> Bucket:
        """Return the bucket of an address, filled up to this moment, as the one used last."""
        key, now = network(remote), self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(float(self._burst), now)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(key)
        bucket.left = min(bucket.left + (now - bucket.at) * self._rate, float(self._burst))
        bucket.at = now
        return bucket


RATES = web.AppKey("RATES", Rates)
"""The buckets of the process."""

_TAKEN = web.RequestKey("TAKEN", int)
"""Entries that a request has taken."""


def network(remote: str | None) -> str | int:
    """Return what an address is counted by: itself, or the /64 of an IPv6 address."""
    if remote is None or ":" not in remote:
        return remote or ""
    try:
        address = ip_address(remote)
    except ValueError:
        return remote
    if not isinstance(address, IPv6Address):
        return remote
    return str(address.ipv4_mapped) if address.ipv4_mapped else int(address) >> 64


def charge(request: web.Request, count: int) -> None:
    """Take entries of a request out of the bucket of its address, before the log is given them.

    Raises:
        RateError: They are more than the address may submit now.
    """
    request.setdefault(_TAKEN, 0)
    request.config_dict[RATES].take(request.remote, count)
    request[_TAKEN] += count


async def settle(request: web.Request, response: web.StreamResponse) -> None:
    """Give back what was not submitted, and say what the address has left; run when an answer is prepared."""
    taken = request.get(_TAKEN)
    if taken is None or (rates := request.config_dict[RATES]).policy is None:
        return
    if response.status == HTTPStatus.TOO_MANY_REQUESTS or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        rates.give_back(request.remote, taken)
    response.headers["RateLimit-Policy"] = rates.policy
    response.headers["RateLimit"] = rates.state(request.remote)
