"""The load generator: raw HTTP connections on uvloop, closed or open loop, and every answer held to account.

    python -m benchmarks.load.hammer http://127.0.0.1:8080 add --connections 256 --seconds 5 --vkey VKEY
    python -m benchmarks.load.hammer http://127.0.0.1:8080 tile --rate 20000

After the load a sample of the answers is verified with the client's functions, and every acknowledged entry is looked
for in the log (`--check full`). Where a server has no tiles, `distinct` only demands that no index was given twice, and
`none` is for a server that does nothing. Prints one JSON object; ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from benchmarks.load.driver import run_part
from benchmarks.load.entry import Source
from benchmarks.load.judge import Judge
from benchmarks.load.kind import ADDING, BATCH, KINDS, PROOFS
from benchmarks.load.ledger import check_acknowledged, check_distinct
from benchmarks.load.part import Part, parse_address
from benchmarks.load.percentile import summary_ms
from benchmarks.load.wire import now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.part import Acknowledged, Outcome

CHECKS = ("full", "distinct", "none")
"""How much is asked of a server."""

_START_S = 1.5
_WEIGHTS = {"batch": BATCH, "proofs": PROOFS}


class Report(TypedDict):
    """What a run has shown.

    `per_second` counts requests, `items_per_second` entries or proofs. `statuses` are the other answers, 503 above all.
    """

    kind: str
    loop: str
    connections: int
    processes: int
    seconds: float
    rate: float
    answers: int
    per_second: float
    items_per_second: float
    answer_bytes: int
    latency_ms: dict[str, float]
    statuses: dict[str, int]
    hung_up: int
    unanswered: int
    verified: int
    acknowledged: int
    checked: int
    errors: list[str]


def parts_of(part: Part, processes: int) -> list[Part]:
    """Return the work of each process: its share of connections and rate, and entries of its own."""
    if processes == 1:
        return [part]
    start = now() + _START_S
    counts = [part.connections // processes + (at < part.connections % processes) for at in range(processes)]
    return [
        replace(part, connections=count, rate=part.rate / processes, start=start, source=Source(part.source.run, at))
        for at, count in enumerate(counts)
        if count
    ]


def generate(parts: Sequence[Part]) -> list[Outcome]:
    """Do all parts at the same time, each in a process of its own where there are several."""
    if len(parts) == 1:
        return [run_part(parts[0])]
    with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
        return pool.map(run_part, parts, chunksize=1)


def summarize(part: Part, outcomes: Sequence[Outcome]) -> Report:
    """Put together what all processes have seen; nothing is judged yet."""
    times = [time for outcome in outcomes for time in outcome.times]
    statuses: dict[str, int] = {}
    for outcome in outcomes:
        for status, count in outcome.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count
    return Report(
        kind=part.kind,
        loop="open" if part.rate else "closed",
        connections=part.connections,
        processes=len(outcomes),
        seconds=part.seconds,
        rate=part.rate,
        answers=sum(outcome.answers for outcome in outcomes),
        per_second=round(len(times) / part.seconds, 1),
        items_per_second=round(len(times) * _WEIGHTS.get(part.kind, 1) / part.seconds, 1),
        answer_bytes=round(sum(outcome.size for outcome in outcomes) / max(1, len(times))),
        latency_ms=summary_ms(times),
        statuses=statuses,
        hung_up=sum(outcome.hung_up for outcome in outcomes),
        unanswered=sum(outcome.unanswered for outcome in outcomes),
        verified=0,
        acknowledged=sum(len(outcome.acknowledged.numbers) for outcome in outcomes),
        checked=0,
        errors=[error for outcome in outcomes for error in outcome.errors],
    )


def judge_all(judge: Judge, check: str, patience: float, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> int:
    """Judge samples and acknowledged entries; return how many of those are right."""
    ledger = [outcome.acknowledged for outcome in outcomes]
    if check == "none":
        return 0
    if check == "distinct":
        return check_distinct(judge, ledger)
    with judge.judging("the checkpoint"):
        judge.fetch_head(1 + max((max(one.indexes, default=-1) for one in ledger), default=-1), patience)
    for part, outcome in zip(parts, outcomes, strict=True):
        judge.check_samples(part, outcome.samples)
    return check_acknowledged(judge, ledger)


def hammer(
    url: str, part: Part, *, processes: int = 1, check: str = "full", vkey: str | None = None, patience: float = 0.0
) -> tuple[Report, list[Acknowledged]]:
    """Put a server under load, and judge its answers.

    Args:
        url: Its address, as in the part.
        part: The work; `processes` share it.
        processes: Number of generator processes.
        check: How much is asked of the server, one of `CHECKS`.
        vkey: Its key; None where it is not known.
        patience: Seconds in which its checkpoint may reach the last acknowledged entry.
    """
    with closing(Judge(url, vkey)) as judge:
        part = replace(part, is_recorded=check != "none")
        if part.size == 0 and part.kind not in ADDING and check != "none":
            part = replace(part, size=judge.fetch_head().size)
        parts = parts_of(part, processes)
        outcomes = generate(parts)
        report = summarize(part, outcomes)
        report["checked"] = judge_all(judge, check, patience, parts, outcomes)
        report["verified"] = judge.verified
        report["errors"] += judge.errors
    if part.kind in ADDING and check != "none" and report["checked"] != report["acknowledged"]:
        report["errors"].append(f"{report['acknowledged'] - report['checked']} acknowledged entries are not in place")
    return report, [outcome.acknowledged for outcome in outcomes]


def new_source() -> Source:
    """Return where the entries of a new run come from."""
    return Source(secrets.randbits(64), 0)


def main() -> None:
    """Read the options, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds of load that do not count")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, open loop; without: closed loop")
    parser.add_argument("--vkey", help="key of the log; without, it is held to the checkpoint that it serves")
    parser.add_argument("--check", choices=CHECKS, default="full")
    parser.add_argument("--size", type=int, default=0, help="tree size that reads are about; without: the newest")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds until the checkpoint must have it all")
    options = parser.parse_args()
    part = Part(
        address=parse_address(options.url),
        kind=options.kind,
        source=new_source(),
        connections=options.connections,
        seconds=options.seconds,
        warm_up=options.warm_up,
        rate=options.rate,
        size=options.size,
    )
    report, _ = hammer(
        options.url,
        part,
        processes=options.processes,
        check=options.check,
        vkey=options.vkey,
        patience=options.patience,
    )
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["errors"] else 0)


if __name__ == "__main__":
    main()
