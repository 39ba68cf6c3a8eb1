"""How much one address may submit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.wire import connected
from tlog.cbor import encode
from tlog.server.api.rate import MAX_ADDRESSES, Rates, network
from tlog.server.errors import RateError

if TYPE_CHECKING:
    from tests.support.serving import Serve
    from tests.support.wire import Connection
    from tlog.fetch import Response

pytestmark = pytest.mark.invariant("I19")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(rates: Rates, remote: str | None, count: int) -> int:
    """Return how long an address has to wait that must be refused."""
    with pytest.raises(RateError) as caught:
        rates.take(remote, count)
    return caught.value.retry_after


# --------------------------------------------------------------------------------------------------------- the bucket


def test_a_bucket_holds_the_burst_and_fills_at_the_rate() -> None:
    clock = Clock()
    rates = Rates(10, 50, clock)
    rates.take("192.0.2.1", 50)
    assert refused(rates, "192.0.2.1", 1) == 1
    assert refused(rates, "192.0.2.1", 25) == 3  # rounded up
    clock.now += 2.5
    rates.take("192.0.2.1", 25)
    assert refused(rates, "192.0.2.1", 1) == 1
    clock.now += 1e6
    rates.take("192.0.2.1", 50)
    assert refused(rates, "192.0.2.1", 1) == 1


def test_over_a_long_time_the_rate_holds_exactly() -> None:
    clock = Clock()
    rates = Rates(7, 20, clock)
    taken = 0
    for _ in range(10_000):
        try:
            rates.take("192.0.2.1", 3)
            taken += 3
        except RateError:
            clock.now += 0.125
    assert 7 * (clock.now - 100) <= taken + 3
    assert taken <= 20 + 7 * (clock.now - 100)


def test_a_batch_larger_than_the_bucket_is_taken_from_a_full_one_and_paid_for_later() -> None:
    clock = Clock()
    rates = Rates(10, 50, clock)
    rates.take("192.0.2.1", 100)
    assert refused(rates, "192.0.2.1", 1) == 6
    clock.now += 6
    rates.take("192.0.2.1", 10)
    assert refused(rates, "192.0.2.1", 100) == 5


def test_what_was_given_back_can_be_taken_again_and_no_more() -> None:
    rates = Rates(10, 50, Clock())
    rates.take("192.0.2.1", 30)
    rates.give_back("192.0.2.1", 30)
    rates.give_back("192.0.2.1", 30)
    rates.take("192.0.2.1", 50)
    assert refused(rates, "192.0.2.1", 1) == 1


def test_without_a_rate_everything_is_taken() -> None:
    rates = Rates(0, 1, Clock())
    for _ in range(100):
        rates.take("192.0.2.1", 1000)
    assert rates.policy is None


def test_addresses_do_not_share_a_bucket_and_networks_do() -> None:
    rates = Rates(1, 1, Clock())
    for remote in ("192.0.2.1", "192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:2::1", None):
        rates.take(remote, 1)
    for remote in ("192.0.2.1", "::ffff:192.0.2.2", "2001:db8:0:1:ffff::9", "2001:db8:0:2::7%eth0", None):
        refused(rates, remote, 1)


@pytest.mark.parametrize("remote", ["::", "fe80::1%lo", "nonsense:", "::ffff:1.2.3.4", "1.2.3.4", "", None])
def test_every_address_is_counted_somewhere(remote: str | None) -> None:
    assert network(remote) == network(remote)


def test_the_table_of_addresses_is_bounded_and_forgets_the_silent() -> None:
    rates = Rates(1, 1, Clock())
    rates.take("busy", 1)
    for number in range(MAX_ADDRESSES + 10):
        rates.take(f"10.{number}", 1)
        refused(rates, "busy", 1)
    assert len(rates._buckets) == MAX_ADDRESSES
    rates.take("10.0", 1)  # forgotten, so full
    refused(rates, f"10.{MAX_ADDRESSES + 9}", 1)


# ------------------------------------------------------------------------------------------------------------ over HTTP

POLICY = '"entries";q=10;w=10'


def left(response: Response) -> int:
    """Return how much is left, from fields that must be as the draft writes them."""
    assert response.headers["ratelimit-policy"] == POLICY
    match = re.fullmatch(r'"entries";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert match is not None
    assert int(match[1]) + int(match[2]) == pytest.approx(10, abs=1)  # at one entry a second
    return int(match[1])


async def submit(connection: Connection, count: int, first: int) -> Response:
    body = encode([b"%d" % number for number in range(first, first + count)])
    return await connection.request("POST", "/v1/entries/batch", body, (("Content-Type", "application/cbor"),))


async def test_a_submission_says_what_is_left_and_beyond_it_is_429(serve: Serve) -> None:
    server = serve(rate=1, burst=10)
    async with connected(server.port) as connection:
        assert left(await connection.request("POST", "/add", b"one")) == 9
        assert left(await connection.request("POST", "/v1/entries", b"two")) == 8
        response = await submit(connection, 6, 0)
        assert (response.status, left(response) in (2, 3)) == (201, True)
        response = await submit(connection, 6, 100)
        assert response.status == 429
        assert b"urn:treehead:problem:rate" in response.body
        assert 2 <= int(response.headers["retry-after"]) <= 4
        assert response.headers["cache-control"] == "no-store"
        assert left(response) in (2, 3, 4)  # it cost nothing
        assert left(await connection.request("POST", "/add", b"three")) in (1, 2, 3)
        reading = await connection.request("GET", "/checkpoint")
        assert (reading.status, "ratelimit" in reading.headers) == (200, False)
    found = await scrape(server.port)
    assert found["treehead_problems_total", ("type", "rate")] == 1
    assert found["treehead_entries_total", ("log", "localhost/x")] == 9


async def test_the_servers_own_errors_cost_nothing(serve: Serve) -> None:
    server = serve(rate=1, burst=10, free_bytes=1 << 60)
    async with connected(server.port) as connection:
        for _ in range(20):
            assert (await connection.request("POST", "/add", b"x")).status == 507


async def test_without_a_rate_nothing_is_said(serve: Serve) -> None:
    server = serve()
    async with connected(server.port) as connection:
        assert "ratelimit" not in (await connection.request("POST", "/add", b"x")).headers
