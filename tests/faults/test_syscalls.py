"""Every system call that writes the truth fails, in a commit and in a start: nothing acknowledged is lost.

The process stops with code 4 in a commit, and refuses in a start, with one line; or it is killed
before the call. The next start goes on from what is durable. What is derived, `tiles.db`, is left out: it may be lost.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.faults.test_crash import FAULTY, read_all
from tests.support import eager_tlogd, strace
from tests.support.grow import grow, stored
from tests.support.server import TLOGD, Server, init_log, run_tlogd
from tests.support.skips import need_root, need_tool
from tests.support.strace import Fault, attached
from tests.support.wire import connected
from tests.support.witness import Seen
from tlog.server.config import read_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.invariant("I4", "I6", "I8", "I9", "I10")]

EAGER = (sys.executable, eager_tlogd.__file__)
STOPPED = 4
REFUSED = (1, 3, STOPPED)


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_root()  # to trace
    need_tool("strace")


def truth(data: Path) -> list[Path]:
    """Return the files whose calls count."""
    return [data / f"{name}{ending}" for name in ("log.db", "checkpoints.db") for ending in ("", "-wal", "-journal")]


@dataclass
class Sweep:
    """A log whose calls fail one after the other.

    Attributes:
        data: Its folder.
        seen: What was acknowledged, and every head.
        ends: How often it ended how.
    """

    data: Path
    seen: Seen
    attempted: set[bytes] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    numbers: count[int] = field(default_factory=count)

    def add(self, server: Server) -> bool:
        """Add an entry; return whether it was acknowledged."""
        entry = b"entry %d" % next(self.numbers)
        self.attempted.add(entry)

        async def post() -> bool:
            try:
                async with connected(server.port) as connection:
                    response = await connection.request("POST", "/add", entry)
            except ConnectionError:
                return False
            assert response.status == 200, response
            self.seen.acknowledgement(int(response.body), entry)
            return True

        return uvloop.run(post())

    def check(self, server: Server) -> None:
        """Check what a running log serves against everything that was seen."""
        entries = uvloop.run(read_all(server, self.seen))
        self.seen.check(entries)
        assert set(entries[1:]) <= self.attempted
        assert len(set(entries)) == len(entries)


def pid_of(server: Server) -> int:
    """Return the ID of the process that runs."""
    assert server._process is not None
    return server._process.pid


def fsck(data: Path) -> None:
    """Check the whole log."""
    done = run_tlogd("fsck", "--config", data / "treehead.toml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", [TLOGD, EAGER], ids=["alone", "with WAL checkpoints"])
def test_a_commit_of_which_any_system_call_fails_stops_the_log_and_the_next_start_goes_on(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    data, output = tmp_path / "log", tmp_path / "trace"
    sweep = Sweep(data, Seen(init_log(data)))
    with Server(data, program) as server:
        with attached(pid_of(server), truth(data), None, output):
            assert sweep.add(server)
        assert server.stop() == 0
        made = strace.counts(output)
        assert made["fdatasync"] >= 2
        for fault in strace.faults(made):
            server.start()
            sweep.check(server)
            fail_in_commit(server, sweep, fault, output)
        server.start()
        sweep.check(server)
        assert server.stop() == 0
    sweep.seen.check(stored(data))
    fsck(data)
    print(f"calls of a commit {dict(made)}: {sweep.ends.total()} faults, {dict(sweep.ends)}")  # noqa: T201


def fail_in_commit(server: Server, sweep: Sweep, fault: Fault, output: Path) -> None:
    """Let one call of the next commit fail, and look at how the process ends."""
    before = len(server.events("log.stopped"))
    with attached(pid_of(server), truth(sweep.data), fault, output):
        assert not sweep.add(server), f"acknowledged in spite of {fault}"
        code = server.wait()
    stopped = server.events("log.stopped")[before:]
    sweep.ends[str(code)] += 1
    assert code == (-signal.SIGKILL if fault.is_crash else STOPPED), f"{fault}: {server.stderr}"
    assert [bool(line["reason"]) for line in stopped] == ([] if fault.is_crash else [True])
    assert "Traceback" not in server.stderr


@pytest.mark.timeout(600)
def test_a_start_that_finishes_a_commit_and_of_which_any_system_call_fails_can_be_tried_again(tmp_path: Path) -> None:
    template, output = tmp_path / "template", tmp_path / "trace"
    seen = Seen(init_log(template))
    sweep = Sweep(template, seen)
    with Server(template) as server:
        assert sweep.add(server)
        assert server.stop() == 0
        server.start(program=(*FAULTY, "append", "after", "exit", "1"))
        assert not sweep.add(server)
        server.wait()
    made = calls_of_start(shutil.copytree(template, tmp_path / "counted"), output)
    assert made["fdatasync"] >= 4
    for number, fault in enumerate(strace.faults(made)):
        sweep.data = shutil.copytree(template, tmp_path / "log")
        fail_in_start(sweep, fault, output)
        grow(read_config(sweep.data / "treehead.toml"), [])
        assert len(stored(sweep.data)) == seen.head(note_in_store(sweep.data)) == 3, "the commit was not finished"
        seen.check(stored(sweep.data))
        if number % 5 == 0:
            fsck(sweep.data)
        shutil.rmtree(sweep.data)
    print(f"calls of a start {dict(made)}: {sweep.ends.total()} faults, {dict(sweep.ends)}")  # noqa: T201


def note_in_store(data: Path) -> bytes:
    """Return the signed head of a log that nobody has open."""
    with closing(sqlite3.connect(data / "checkpoints.db")) as connection:
        ((note,),) = connection.execute("SELECT note FROM head").fetchall()
    return bytes(note)


def calls_of_start(data: Path, output: Path) -> Counter[str]:
    """Return the calls of a start."""
    with Server(data, (*strace.command(truth(data), None, output), "-D", *TLOGD)) as server:
        made = strace.counts(output)
        assert server.stop() == 0
    return made


def fail_in_start(sweep: Sweep, fault: Fault, output: Path) -> None:
    """Let one call of a start fail, and look at how the process ends."""
    config = str(sweep.data / "treehead.toml")
    done = run_tlogd(
        "serve",
        "--config",
        config,
        "--port",
        "0",
        program=(*strace.command(truth(sweep.data), fault, output), "-D", *TLOGD),
    )
    sweep.ends[str(done.returncode)] += 1
    if fault.is_crash:
        assert done.returncode == -signal.SIGKILL
        return
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode in REFUSED, f"{fault}: {done.stderr}"
    assert len(lines) == 1, f"{fault}: {done.stderr}"
    assert lines[0].startswith("tlogd: ")
    assert all(json.loads(line) for line in done.stderr.splitlines() if line.startswith("{"))
