"""The families of /metrics: what is counted, as Prometheus reads it. Every name is in the table below, and only there.

`log` is the origin of a log. Counters begin at zero with the process.
"""

from __future__ import annotations

from importlib.metadata import version
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from tlog.server.api.traffic import Traffic
    from tlog.server.log import ServedLog
    from tlog.server.metrics import Distribution, Gauges, Meter

_COUNTERS: tuple[tuple[str, str, Callable[[Meter], int]], ...] = (
    ("entries", "Entries that were appended and signed.", lambda meter: meter.entries),
    ("duplicates", "Entries that the log had already.", lambda meter: meter.duplicates),
    ("replays", "Requests that came again under their Idempotency-Key.", lambda meter: meter.replays),
    ("clock_stops", "How often the clock ceased to be believed.", lambda meter: meter.clock_stops),
    ("scrub_entries", "Entries that were read again and compared with the tree.", lambda meter: meter.scrubbed),
    ("scrub_passes", "How often everything was read again.", lambda meter: meter.scrubs),
    ("clock_clamps", "Commits whose clock was behind the commit before.", lambda meter: meter.clamps),
)

_GAUGES: tuple[tuple[str, str, Callable[[Gauges], float]], ...] = (
    ("tree_size", "Entries of the served head.", lambda gauges: gauges.size),
    ("ready", "1 while the log signs in time what it takes.", lambda gauges: gauges.is_ready),
    ("clock_stopped", "1 while nothing is signed because of the clock.", lambda gauges: gauges.is_clock_stopped),
    ("pool_entries", "Entries that were admitted and are not in a commit yet.", lambda gauges: gauges.pool_entries),
    ("pool_bytes", "Bytes of these entries.", lambda gauges: gauges.pool_bytes),
    ("follower_lag_entries", "Entries that are not in the tile store yet.", lambda gauges: gauges.lag),
    ("idempotency_keys", "Idempotency keys that are kept.", lambda gauges: gauges.keys),
    ("disk_free_bytes", "Free bytes on the fullest volume of the log.", lambda gauges: gauges.free),
    ("wal_bytes", "Bytes of the write-ahead logs of its databases.", lambda gauges: gauges.wal),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Meter], Distribution]], ...] = (
    ("commit_entries", "Entries of each commit.", lambda meter: meter.batch),
    ("commit_wait_seconds", "How long the oldest entry of each commit had waited.", lambda meter: meter.wait),
    ("commit_seconds", "From sealing a batch to publishing its head.", lambda meter: meter.whole),
)

_STEPS: tuple[tuple[str, Callable[[Meter], Distribution]], ...] = (
    ("append", lambda meter: meter.append),
    ("recount", lambda meter: meter.recount),
    ("sign", lambda meter: meter.sign),
    ("swap", lambda meter: meter.swap),
)


class LogCollector(Collector):
    """Reads the logs when Prometheus asks. Owned by the event loop."""

    def __init__(self, logs: Sequence[ServedLog]) -> None:
        """Read some open logs."""
        self._logs = logs

    def collect(self) -> Iterator[Metric]:
        """Yield every family of a log."""
        now = monotonic()
        gauges = [(log.origin, log.gauges()) for log in self._logs]
        for name, text, count in _COUNTERS:
            yield _counter(name, text, ["log"], (((log.origin,), count(log.meter)) for log in self._logs))
        for name, text, value in _GAUGES:
            yield _gauge(name, text, ["log"], (((origin,), value(found)) for origin, found in gauges))
        anchors = [(log.origin, log.anchor) for log in self._logs if log.anchor is not None]
        sizes = (((origin,), anchor.size) for origin, anchor in anchors)
        failures = (((origin,), anchor.failures) for origin, anchor in anchors)
        yield _gauge("anchor_size", "Entries of the newest head that was written outside.", ["log"], sizes)
        yield _counter("anchor_failures", "Heads that could not be written outside.", ["log"], failures)
        damages = (((log.origin,), log.meter.damages) for log in self._logs)
        yield _gauge("scrub_damaged", "What was found damaged when it was read again.", ["log"], damages)
        passes = (((log.origin,), now - log.meter.scrubbed_at) for log in self._logs if log.limits.scrub_bytes)
        what = "Since everything was read again, or the log was opened."
        yield _gauge("scrub_pass_age_seconds", what, ["log"], passes)
        ages = (((log.origin,), now - log.meter.advanced_at) for log in self._logs)
        yield _gauge("head_age_seconds", "Since the head advanced last, or the log was opened.", ["log"], ages)
        for name, text, values in _HISTOGRAMS:
            yield _histogram(name, text, ["log"], (((log.origin,), values(log.meter)) for log in self._logs))
        steps = (((log.origin, step), values(log.meter)) for log in self._logs for step, values in _STEPS)
        yield _histogram("commit_step_seconds", "Each step of a commit, on its thread.", ["log", "step"], steps)


class TrafficCollector(Collector):
    """Reads the counts of the process when Prometheus asks. Owned by the event loop."""

    def __init__(self, traffic: Traffic) -> None:
        """Read some counts."""
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the process."""
        seen = self._traffic
        yield _gauge("build_info", "The version that runs.", ["version"], [((version("treehead"),), 1)])
        yield _gauge("connections", "Open connections.", [], [((), seen.connections)])
        yield _gauge("subscribers", "Open streams of checkpoints.", [], [((), seen.subscribers)])
        yield _counter("connections_refused", "Connections beyond the limit.", [], [((), seen.refused)])
        late = (((name,), count) for name, count in seen.late.items())
        yield _counter("connections_late", "Connections that missed a deadline.", ["deadline"], late)
        yield _counter("requests_unparsed", "Requests that broke HTTP.", [], [((), seen.unparsed)])
        yield _counter("problems", "Errors by problem type.", ["type"], (((k,), n) for k, n in seen.problems.items()))
        answers = (((route, method, f"{digit}xx"), n) for (route, method, digit), n in seen.requests.items())
        yield _counter("http_requests", "Answers.", ["route", "method", "code"], answers)
        seconds = seen.seconds.items()
        yield _histogram(
            "http_request_seconds", "Until an answer began, but for streams.", ["route", "method"], seconds
        )


class Exposition:
    """The metrics of a process that serves some logs, written down. Owned by the event loop."""

    def __init__(self, logs: Mapping[str, ServedLog], traffic: Traffic) -> None:
        """Take the logs, and the counts of the process."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(LogCollector(list(logs.values())))
        self._registry.register(TrafficCollector(traffic))
        ProcessCollector(registry=self._registry)

    def write(self, accept: str) -> tuple[bytes, str]:
        """Return what is counted now, and its Content-Type, in the format that a header Accept asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _counter(name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = CounterMetricFamily(f"treehead_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"treehead_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], Distribution]]) -> Metric:
    family = HistogramMetricFamily(f"treehead_{name}", text, labels=labels)
    for key, found in values:
        bounds = [*map(floatToGoString, found.bounds), "+Inf"]
        family.add_metric(key, list(zip(bounds, map(float, accumulate(found.counts)), strict=True)), found.total)
    return family
