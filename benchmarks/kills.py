"""`kill -9` under full load, again and again: nothing that was acknowledged may be lost or moved.

    .venv/bin/python -m benchmarks.kills                   50 lives of one log
    .venv/bin/python -m benchmarks.kills --kills 5 --longest 1

    1  start the server on the data that the last life left
    2  compare every entry that was acknowledged in any life with the log's at its index, and require that the newest
       checkpoint extends the last one that was seen
    3  put it under the load of 256 connections, and send SIGKILL at a random moment

Ends with one more start and comparison. Prints one JSON object; ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.driver import run_part
from benchmarks.load.hammer import new_source
from benchmarks.load.judge import Judge
from benchmarks.load.ledger import check_acknowledged
from benchmarks.load.part import Part, parse_address
from benchmarks.process import init_log, serve_log

if TYPE_CHECKING:
    from benchmarks.load.part import Acknowledged

_SHORTEST_S = 0.05
_MARGIN_S = 5.0


@dataclass(slots=True)
class Lives:
    """All lives of one log so far.

    Attributes:
        kills: Number of lives that were ended by SIGKILL.
        acknowledged: What was acknowledged, one source a life.
        note: The newest checkpoint that was seen.
        cut: Connections that were under way when the server was killed.
        start_s: Seconds that the longest start took.
        checked: Acknowledged entries that were in place at the last comparison.
        errors: What was wrong.
    """

    kills: int = 0
    acknowledged: list[Acknowledged] = field(default_factory=list)
    note: bytes | None = None
    cut: int = 0
    start_s: float = 0.0
    checked: int = 0
    errors: list[str] = field(default_factory=list)

    def total(self) -> int:
        """Return how many entries were acknowledged."""
        return sum(len(one.numbers) for one in self.acknowledged)


def compare(lives: Lives, url: str, vkey: str) -> None:
    """Hold what was acknowledged against the log (step 2)."""
    with closing(Judge(url, vkey)) as judge, judge.judging("the checkpoint"):
        note = judge.fetch_note()
        if lives.note is not None:
            judge.extended(lives.note)
        lives.note = note
        lives.checked = check_acknowledged(judge, lives.acknowledged)
    lives.errors += judge.errors
    if not judge.errors and lives.checked != lives.total():
        lives.errors.append(f"{lives.total() - lives.checked} acknowledged entries are not in place")


def live(lives: Lives, data: Path, vkey: str, part: Part, seconds: float) -> None:
    """Live once: start, compare, load, and die after so many seconds of load."""
    with serve_log(data) as program:
        lives.start_s = max(lives.start_s, program.start_s)
        compare(lives, program.url, vkey)
        work = replace(part, address=parse_address(program.url), source=new_source(), seconds=seconds + _MARGIN_S)
        killer = threading.Timer(seconds, program.kill)
        outcome = run_part(work, killer.start)
        killer.join()
    lives.kills += 1
    lives.cut += outcome.unanswered
    lives.acknowledged.append(outcome.acknowledged)
    lives.errors += outcome.errors
    if outcome.hung_up == 0:
        lives.errors.append("the server was not killed under load")


def run(data: Path, kills: int, longest: float, connections: int, chance: random.Random) -> Lives:
    """Live so many times, and compare once more; stop at the first life in which anything was wrong.

    Args:
        data: Where the log is made.
        kills: Number of lives.
        longest: Most seconds of load before a kill.
        connections: Number of connections.
        chance: Decides when to kill.
    """
    vkey, lives = init_log(data), Lives()
    part = Part(parse_address("http://127.0.0.1"), "add", new_source(), connections, longest, 0.0, may_hang_up=True)
    for _ in range(kills):
        live(lives, data, vkey, part, chance.uniform(_SHORTEST_S, longest))
        print(f"killed {lives.kills} times, {lives.total():,} entries acknowledged", file=sys.stderr, flush=True)
        if lives.errors:
            return lives
    with serve_log(data) as program:
        compare(lives, program.url, vkey)
    return lives


def main() -> None:
    """Read the options, run, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=3.0, help="most seconds of load before a kill")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--seed", type=int, help="of the moments of the kills; random where it is missing")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to try")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    chance = random.Random(seed)  # noqa: S311  # it chooses moments
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".bench-") as name:
        lives = run(Path(name) / "log", options.kills, options.longest, options.connections, chance)
    report = {
        "kills": lives.kills,
        "seed": seed,
        "acknowledged": lives.total(),
        "in_place": lives.checked,
        "requests_cut_off": lives.cut,
        "longest_start_s": round(lives.start_s, 3),
        "errors": lives.errors,
    }
    print(json.dumps(report, indent=1))
    sys.exit(1 if lives.errors else 0)


if __name__ == "__main__":
    main()
