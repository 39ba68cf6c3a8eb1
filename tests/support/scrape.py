"""Reading /metrics with the parser of Prometheus's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from tests.support.wire import connected

if TYPE_CHECKING:
    from collections.abc import Mapping

Key: TypeAlias = "tuple[str, tuple[str, ...]]"
"""The name of a sample, and its labels: name, value, name, value, in the order of the names."""


async def scrape(port: int) -> Mapping[Key, float]:
    """Return every sample of a server."""
    async with connected(port) as connection:
        response = await connection.request("GET", "/metrics", None, (("Connection", "close"),))
    assert response.status == 200
    return samples(response.body.decode())


def samples(text: str) -> Mapping[Key, float]:
    """Return the samples of an answer."""
    return {
        (sample.name, tuple(part for pair in sorted(sample.labels.items()) for part in pair)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
