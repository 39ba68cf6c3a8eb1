"""What /metrics says is what was done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.support.grow import CREATED_MS, create, raise_fatal
from tests.support.scrape import scrape
from tests.support.serving import dialled
from tests.support.wire import connected
from tlog.cbor import encode
from tlog.server.log import open_log
from tlog.server.metrics import Distribution, Meter, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.scrape import Key
    from tests.support.serving import Serve

LOG = ("log", "localhost/x")
CBOR = ("Content-Type", "application/cbor")
STEPS = ("append", "recount", "sign", "swap")


async def test_counts_are_what_was_done(serve: Serve) -> None:
    server = serve()
    async with connected(server.port) as connection:
        for number in range(7):
            assert (await connection.request("POST", "/add", b"%d" % number)).status in (200, 201)
        assert (await connection.request("POST", "/v1/entries", b"3")).status == 200  # a duplicate
        batch = encode([b"%d" % number for number in range(5, 25)])  # two of them duplicates
        for status in (201, 200):
            response = await connection.request("POST", "/v1/entries/batch", batch, (CBOR, ("Idempotency-Key", "k")))
            assert response.status == status
        assert (await connection.request("GET", "/nowhere")).status == 404
        assert (await connection.request("GET", "/v1/entries/999")).status == 404
        assert (await connection.request("DELETE", "/add")).status == 405
        assert (await connection.request("PURGE", "/add")).status == 405
        found = await scrape(server.port)

    assert found["treehead_entries_total", LOG] == 25
    assert found["treehead_tree_size", LOG] == 26
    assert found["treehead_duplicates_total", LOG] == 3
    assert found["treehead_replays_total", LOG] == 1
    assert found["treehead_idempotency_keys", LOG] == 1
    assert found["treehead_clock_clamps_total", LOG] == 0
    assert found["treehead_ready", LOG] == 1
    assert found["treehead_pool_entries", LOG] == found["treehead_pool_bytes", LOG] == 0
    assert 0 <= found["treehead_head_age_seconds", LOG] < 60
    assert found["treehead_disk_free_bytes", LOG] > 0
    assert found["treehead_wal_bytes", LOG] > 0
    assert found["treehead_connections", ()] == 2
    assert found["treehead_build_info", ("version", "0.1.0")] == 1

    commits = 8
    assert found["treehead_commit_entries_count", LOG] == commits
    assert found["treehead_commit_entries_sum", LOG] == 25
    assert found["treehead_commit_entries_bucket", ("le", "1.0", *LOG)] == 7
    assert found["treehead_commit_entries_bucket", ("le", "25.0", *LOG)] == commits
    assert found["treehead_commit_seconds_count", LOG] == commits
    assert found["treehead_commit_wait_seconds_count", LOG] == commits
    steps = [found["treehead_commit_step_seconds_sum", (*LOG, "step", step)] for step in STEPS]
    assert all(seconds > 0 for seconds in steps)
    assert sum(steps) < found["treehead_commit_seconds_sum", LOG]

    assert requests(found) == {
        ("2xx", "POST", "/add"): 7,
        ("2xx", "POST", "/v1/entries"): 1,
        ("2xx", "POST", "/v1/entries/batch"): 2,
        ("4xx", "GET", "other"): 1,
        ("4xx", "GET", "/v1/entries/{index}"): 1,
        ("4xx", "other", "other"): 2,
    }
    assert found["treehead_problems_total", ("type", "not-found")] == 2
    assert found["treehead_problems_total", ("type", "method")] == 2
    assert found["treehead_http_request_seconds_count", ("method", "POST", "route", "/add")] == 7


def requests(found: Mapping[Key, float]) -> dict[tuple[str, ...], float]:
    """Return answers by class, method and route."""
    return {labels[1::2]: value for (name, labels), value in found.items() if name == "treehead_http_requests_total"}


async def test_many_requests_at_a_time_are_all_counted_and_share_commits(serve: Serve) -> None:
    server = serve()

    async def submit(worker: int) -> None:
        async with connected(server.port) as connection:
            for number in range(20):
                assert (await connection.request("POST", "/add", b"%d/%d" % (worker, number))).status in (200, 201)

    await asyncio.gather(*map(submit, range(16)))
    found = await scrape(server.port)
    assert found["treehead_entries_total", LOG] == found["treehead_commit_entries_sum", LOG] == 320
    assert found["treehead_commit_entries_count", LOG] < 320
    assert requests(found)["2xx", "POST", "/add"] == 320


async def test_streams_are_counted_as_subscribers_while_they_last(serve: Serve) -> None:
    server = serve()
    async with dialled(server.port) as (reader, writer):
        writer.write(b"GET /v1/checkpoints/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"event: checkpoint")
        assert (await scrape(server.port))["treehead_subscribers", ()] == 1
    async with asyncio.timeout(10):
        while (await scrape(server.port))["treehead_subscribers", ()] != 0:
            pass  # until the server has seen that it is gone


async def test_openmetrics_is_answered_where_it_is_asked_for(serve: Serve) -> None:
    server = serve()
    async with connected(server.port) as connection:
        accept = ("Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
        response = await connection.request("GET", "/metrics", None, (accept,))
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.headers["cache-control"] == "no-store"
    families = parse_openmetrics(response.body.decode())  # type: ignore[no-untyped-call]  # as it came
    names = [family.name for family in families]
    assert "treehead_entries" in names
    assert len(names) == len(set(names))


async def test_a_clock_that_goes_back_is_counted_for_each_commit(tmp_path: Path) -> None:
    now_ms = CREATED_MS + 1
    async with open_log(create(tmp_path / "log"), raise_fatal, lambda: now_ms) as log:
        for after_ms in (5, 4, 5, -1, 6):
            now_ms = CREATED_MS + after_ms
            await log.add(b"%d at %d" % (log.head.size, after_ms))
        assert log.meter.clamps == 2


# ------------------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize(
    ("value", "counts"), [(0.0, [1, 0, 0]), (1.0, [1, 0, 0]), (1.5, [0, 1, 0]), (2.0, [0, 1, 0]), (9.0, [0, 0, 1])]
)
def test_a_value_is_counted_below_the_bound_that_it_does_not_exceed(value: float, counts: list[int]) -> None:
    found = Distribution((1.0, 2.0))
    found.add(value)
    assert found.counts == counts
    assert found.total == value


def test_a_commit_is_counted_in_every_distribution() -> None:
    meter = Meter()
    meter.committed(Steps(0.001, 0.002, 0.003, 0.004), 5, (10.0, 10.5, 11.5))
    assert (meter.entries, meter.advanced_at) == (5, 11.5)
    totals = [each.total for each in (meter.batch, meter.wait, meter.whole)]
    assert totals == [5, 0.5, 1.0]
    assert [each.total for each in (meter.append, meter.recount, meter.sign, meter.swap)] == [
        0.001,
        0.002,
        0.003,
        0.004,
    ]
