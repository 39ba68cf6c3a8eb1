"""`./dev bench`: measures our server beside limits and peers in the same run, keeps the result, and writes the README.

    ./dev bench                       every row, three runs; the result is kept and the README written
    ./dev bench adds fresh            some rows or groups of rows; printed, and kept with --save NAME
    ./dev bench --against URL [VKEY]  another server too, which takes POST /add and serves tiles
    ./dev bench micro [ARGUMENT ...]  the functions behind it, with pytest-benchmark
    ./dev bench render                the README once more from the newest result, or from --from FILE

Without --folder, logs are made below the working directory, which should be on the disk that logs are on.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.contestant import Noop, Other, Ours
from benchmarks.environment import make_peers
from benchmarks.load.kind import ADDING
from benchmarks.log import grow
from benchmarks.machine import describe
from benchmarks.process import init_log
from benchmarks.render import render, table
from benchmarks.result import FORMAT, Result, load, newest, save
from benchmarks.row import rows_named
from benchmarks.session import FailedError, Load, Session
from benchmarks.whole import Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.contestant import Contestant
    from benchmarks.row import Row

_HERE = Path(__file__).parent
_README = _HERE / "README.md"
_RESULTS = _HERE / "results"
_FULL = "bench"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a row or a group of rows; without any, all")
    parser.add_argument("--against", nargs="+", action="append", default=[], metavar=("URL", "VKEY"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    parser.add_argument("--entries", type=int, default=100_000, help="size of the log that is read, checked, restarted")
    parser.add_argument("--processes", type=int, default=1, help="generator processes")
    parser.add_argument("--quick", action="store_true", help="one run of one second each, on a log of 20,000 entries")
    parser.add_argument("--no-peers", action="store_true", help="start no peers")
    parser.add_argument("--folder", type=Path, help="where logs are made; the large one stays there for the next time")
    parser.add_argument("--save", metavar="NAME", help="keep the result as results/DATE-NAME.json")
    parser.add_argument("--from", dest="file", type=Path, help="the result to render")
    options = parser.parse_args(arguments)
    if any(len(against) > 2 for against in options.against):
        parser.error("--against takes a URL and, where it is known, a vkey")
    if options.quick:
        options.runs, options.seconds, options.entries = 1, 1.0, 20_000
    return options


def main() -> None:
    """Do what the arguments say."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["micro"]:
        _micro(arguments[1:])
    options = _parse(arguments)
    if options.names == ["render"]:
        file = options.file or newest(_RESULTS, _FULL)
        if file is None:
            sys.exit(f"there is no result of a full run in {_RESULTS}")
        render(load(file), file.name, _README)
        return
    try:
        result = _measure(options)
    except (ValueError, FailedError) as error:
        sys.exit(f"bench: {error}")
    print(json.dumps(result, indent=1) if options.json else table(result))
    name = options.save or ("" if options.names or options.quick else _FULL)
    if name:
        file = _RESULTS / f"{result['date']}-{name}.json"
        save(result, file)
        if name == _FULL:
            render(result, file.name, _README)


def _micro(arguments: list[str]) -> NoReturn:
    """Become pytest-benchmark, with the settings that fit it."""
    settings = ["-o", "addopts=--import-mode=importlib", "-o", "timeout=600", "-o", "python_files=bench_*.py"]
    settings += ["-p", "no:xdist", "--benchmark-columns=min,median,iqr,rounds"]
    settings += ["--benchmark-storage", "file://./.bench-micro"]  # which .gitignore names
    command = [sys.executable, "-m", "pytest", *settings]
    command += [str(_HERE / "micro"), *arguments]
    os.execv(sys.executable, command)  # noqa: S606  # there is nothing to come back for


def _measure(options: argparse.Namespace) -> Result:
    """Measure what was asked for.

    Raises:
        FailedError: An answer was wrong.
        ValueError: There is no such row.
    """
    rows = rows_named(options.names)
    where = options.folder or Path.cwd()
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where, prefix=".bench-") as name:
        folder = Path(name)
        prepared, vkey = _prepared(options.folder or folder, rows, options.entries)
        noop, load = Noop(), Load(options.seconds, options.processes)
        contestants: list[Contestant] = [Ours(folder, prepared, vkey), noop]
        contestants += [] if options.no_peers else make_peers(folder, options.entries)
        contestants += [Other(*against) for against in options.against]
        whole = Whole(folder, prepared, vkey, options.entries, load)
        session = Session(rows, contestants, noop, load, whole, _tell)
        for number in range(options.runs):
            session.run(number, folder)
    return Result(
        format=FORMAT,
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        machine=describe(),
        options={name: getattr(options, name) for name in ("runs", "seconds", "entries", "processes")},
        limits=session.limits,
        measurements=session.measurements,
    )


def _prepared(folder: Path, rows: Sequence[Row], entries: int) -> tuple[Path, str]:
    """Return the log that is read, checked and started anew, and its vkey; it is grown where it is missing."""
    data = folder / f"log-{entries}"
    if all(row.kind in ADDING or row.name == "fresh" for row in rows):
        return data, ""
    stamp = data / "grown"
    if not stamp.exists():
        if data.exists():
            shutil.rmtree(data)
        _tell(f"growing a log of {entries:,} entries")
        init_log(data)
        grow(data, entries)
        stamp.touch()
    return data, (data / "vkey").read_text().strip()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
