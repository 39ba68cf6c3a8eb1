"""A log that lives through many processes on a simulated machine, and a history of what clients saw of it.

The log is the real one, in real files. A process is an open log in this one. Simulated are the clocks, the free space,
the pace of the follower, and how a process ends: at any statement that goes to SQLite. The parts that tiles and leaf
index are written in are small, so that a log of a few hundred entries has what one of millions has.
"""

from __future__ import annotations

import asyncio
import gzip
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tests.support.clocks import HOUR, MINUTE, SECOND, Clocks
from tests.support.history import History, Keyed
from tests.support.nth_call import Crash
from tests.support.static import unframed
from tests.support.tally import Tally
from tests.support.tapped import Tap, copy_log, put_back, tapped_sqlite
from tests.support.template import SmallParts
from tlog.errors import TreeheadError
from tlog.server import space
from tlog.server.config import read_config
from tlog.server.errors import StartRefusedError
from tlog.server.follower import Follower
from tlog.server.log import open_log
from tlog.tile import Bundle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from random import Random

    from tests.support.tapped import Plan
    from tests.support.template import Template
    from tlog.server.log import ServedLog

T = TypeVar("T")

LAG = 400
"""Entries above the follower's position at which the log takes no more."""

DAY = 24 * HOUR

UNSURE = 30 * MINUTE
"""About the age at which keys are forgotten nothing is expected: they age by another clock than segments."""

FAILURES = (TreeheadError, sqlite3.Error, OSError)
"""What the command line turns into one line and an exit code."""

TURNS = 50_000
"""Turns of the event loop within which what is under way must end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of the files of a log at a moment when nothing was under way.

    Attributes:
        folder: The copies.
        size: Size of its signed head then.
    """

    folder: Path
    size: int


class Simulation:
    """One log and its machine. It begins closed.

    Attributes:
        history: What clients saw.
        tally: What was done.
        clocks: The machine's.
        free: Bytes that are free on its disk.
        tap: What the statements of the process go through.
        fatal: What ended the process.
        last_ms: The time of the newest segment.
        sent_ms: The wall clock when something was sent last.
        snapshots: Copies of earlier states, oldest first.
    """

    def __init__(self, folder: Path, template: Template, *, dedup: bool = True) -> None:
        """Begin with a copy of a template, in an empty folder."""
        self.history = History(template.vkey, list(template.entries), dedup)
        self.tally = Tally()
        self.clocks = Clocks(steady=0, wall=template.last_ms + MINUTE)
        self.free = 1 << 40
        self.tap = Tap()
        self.fatal: list[BaseException] = []
        self.last_ms = self.sent_ms = template.last_ms
        self.snapshots: list[Snapshot] = []
        self._stamps: dict[int, int] = {}  # index of the first entry of a growth → the time of its segments
        self._log: ServedLog | None = None
        self._context: AbstractAsyncContextManager[ServedLog] | None = None
        self._began = self.clocks.steady, self.clocks.wall
        self._base, self._copies = folder, 0
        self._folder = self._left = copy_log(template.folder, self._next_folder())
        config = read_config(self._folder / "treehead.toml")
        limits = msgspec.structs.replace(config.limits, lag=LAG, free_bytes=1, scrub_bytes=0)
        self._config = msgspec.structs.replace(config, limits=limits, dedup=dedup)
        self._gate = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._parts = SmallParts()
        self._parts.enter_context(tapped_sqlite(lambda: self.tap))
        self._parts.patch.setattr(space, "_free", lambda _: self.free)
        self._parts.patch.setattr(space, "LOOK_S", 0)
        self._parts.patch.setattr(Follower, "catch_up", self._behind_gate(Follower.catch_up))

    @property
    def log(self) -> ServedLog:
        """The open log."""
        assert self._log is not None, "the log is closed"
        return self._log

    @property
    def size(self) -> int:
        """Size of the largest head that clients have seen."""
        return self.history.newest

    @property
    def is_open(self) -> bool:
        return self._log is not None

    @property
    def is_alive(self) -> bool:
        """Whether the process is neither dead nor has failed."""
        return not (self.tap.gone or self.fatal)

    @property
    def is_held(self) -> bool:
        """Whether the follower is held up."""
        return not self._gate.is_set()

    def hold_follower(self) -> None:
        self._gate.clear()

    async def release_follower(self) -> None:
        self._gate.set()
        await self.until_derived()

    def run(self, work: Coroutine[object, None, T]) -> T:
        """Run to the end."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """End everything, in any state."""
        if self._context is not None:
            with suppress(Crash, *FAILURES):
                self.run(self._exit())
        self.run(self._loop.shutdown_default_executor())
        self._loop.close()
        self._parts.close()
        shutil.rmtree(self._base)

    # Processes.

    def start(self, *, plan: Plan | None = None, anchors: tuple[str, ...] = ()) -> str:
        """Start a process; return why it refused, and an empty string where it did not.

        Raises:
            Crash: It died on the way, as planned.
        """
        self.tap, self.fatal = Tap(self._copy), []
        self.tap.plan = plan
        self._gate.set()
        self._began = self.clocks.steady, self.clocks.wall
        config = msgspec.structs.replace(self._config, directory=str(self._folder), anchors=anchors)
        self._context = open_log(config, self.fatal.append, self.clocks.wall_ms, steady_ms=self.steady_ms)
        self.tally.starts += 1
        try:
            self._log = self.run(self._context.__aenter__())
        except FAILURES as error:
            if not (isinstance(error, StartRefusedError) or self.tap.fired):
                raise
            self.tally.refused_starts += 1
            self._closed()
            return str(error)
        except Crash:
            self._closed()
            self._bury()
            raise
        self.tap.plan = None
        self._take_over()
        return ""

    def must_start(self) -> None:
        """Start a process, which nothing keeps from starting."""
        self.clocks.wall = max(self.clocks.wall, self.last_ms)
        refusal = self.start()
        assert not refusal, f"nothing is wrong, and the log refuses: {refusal}"
        self.check_files()

    def stop(self) -> None:
        """End the process as it ends when it is asked to."""
        self.run(self.exit())

    def crash(self) -> None:
        """Kill the process between two statements."""
        self.tap.crash()
        self.bury()

    def bury(self) -> None:
        """Clear away a process that is dead, and go on with the files that it has left; or one that has failed."""
        with suppress(Crash, *FAILURES):
            self.run(self._exit())
        self._bury()

    def _bury(self) -> None:
        if self.tap.gone:
            shutil.rmtree(self._folder)
            self._folder = self._left
            self.tally.crashes += 1

    async def exit(self) -> None:
        """End the process as it ends when it is asked to."""
        await self._exit()
        assert not self.fatal, f"a process that was asked to end has failed: {self.fatal[0]!r}"
        self.tally.stops += 1

    async def _exit(self) -> None:
        context = self._context
        assert context is not None
        try:
            await asyncio.wait_for(context.__aexit__(None, None, None), timeout=20)
        finally:
            self._closed()

    def _closed(self) -> None:
        self._context = self._log = None
        self.tap.close()

    def _copy(self) -> None:
        self._left = copy_log(self._folder, self._next_folder())

    def _next_folder(self) -> Path:
        self._copies += 1
        return self._base / str(self._copies)

    def _take_over(self) -> None:
        """Look at what a new process serves: what was served before, and perhaps a commit that nobody was answered."""
        self.run(self._look_back())
        _, now_ms = self._began
        for keyed in self.history.keys.values():
            keyed.is_held = keyed.is_held and keyed.is_durable
            keyed.made_ms = min(keyed.stamp_ms, now_ms)

    async def _look_back(self) -> None:
        known = len(self.history.entries)
        await self.observe()
        self.tally.resumed += self.size > known
        for index in {0, known // 512, max(known - 1, 0) // 256}:
            first, end = 256 * index, min(known, 256 * index + 256)
            assert await self._bundle(index, end - first) == self.history.entries[first:end], "an entry has changed"
        await self.until_derived()

    # What is seen.

    async def observe(self) -> None:
        """See the head that is served and every entry below it, and let history judge."""
        known = len(self.history.entries)
        size = self.history.served(self.log.head.note)
        entries = await self._read(known, size)
        if entries:
            self.last_ms = self._stamps[known] = max(self.sent_ms, self.last_ms)
            self.tally.heads += 1
            self.tally.entries += size - known
        self.history.grown(entries)
        while self.history.fresh:
            self._note_age(self.history.fresh.pop())

    async def _read(self, start: int, end: int) -> list[bytes]:
        if end - start <= 4:
            return [await self.log.tree.entry(index) for index in range(start, end)]
        entries: list[bytes] = []
        for index in range(start // 256, -(-end // 256)):
            entries += await self._bundle(index, min(end - 256 * index, 256))
        return entries[start % 256 :]

    async def _bundle(self, index: int, width: int) -> list[bytes]:
        self.tally.reads += 1
        return unframed(gzip.decompress(await self.log.tree.bundle(Bundle(index, width))))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Let the process go on until something is so, or it has failed."""
        for turn in range(TURNS):
            if not self.is_alive or is_so():
                return
            await asyncio.sleep(0 if turn < 100 else 0.0005)
        raise AssertionError("what is under way does not end")

    async def until_derived(self) -> None:
        """Let the follower write everything that is full."""
        writer = self.log._writer
        assert writer is not None
        advanced = writer.advanced
        await self.until(lambda: self.is_held or (not advanced.is_set() and bool(advanced._waiters)))

    def check_files(self) -> None:
        """Check what log.db holds: what clients have seen and nothing else, stamped with times that were believed."""
        with closing(sqlite3.connect(self._folder / "log.db")) as connection:
            rows = connection.execute("SELECT first, time_ms, entries FROM segment ORDER BY first").fetchall()
        self.history.same(b"".join(row[2] for row in rows))
        expected = -1
        for first, time_ms, _ in rows:
            expected = self._stamps.get(first, expected)
            assert expected in (-1, time_ms), f"entry {first} has the time {time_ms}, and came in at {expected}"

    # The clock.

    def steady_ms(self) -> int:
        """Return the steady clock of the process: the wall clock when it began, and what has passed since."""
        steady, wall = self._began
        return wall + self.clocks.steady - steady

    def is_believed(self) -> bool | None:
        """Return whether the log must believe its clock, or must not; None where either is right."""
        if self.clocks.wall < self.last_ms - SECOND:
            return False
        off, drift = abs(self.clocks.wall - self.steady_ms()), (self.clocks.steady - self._began[0]) // 1000 + 2
        return None if abs(off - 10 * MINUTE) <= drift else off < 10 * MINUTE

    def set_clock_right(self) -> None:
        self.clocks.is_frozen = False
        self.clocks.wall = max(self.steady_ms(), self.last_ms)

    def _note_age(self, keyed: Keyed) -> None:
        keyed.is_held, keyed.made_ms, keyed.stamp_ms = True, self.steady_ms(), self.last_ms

    # The files.

    def snapshot(self) -> None:
        """Keep a copy of all files, and forget the oldest of four."""
        copy = self.tap.pausing(lambda: copy_log(self._folder, self._next_folder()))
        self.snapshots.append(Snapshot(copy, self.history.newest))
        if len(self.snapshots) > 4:
            shutil.rmtree(self.snapshots.pop(0).folder)

    def commits_since(self, snapshot: Snapshot) -> int:
        """Return how many commits the log has more than a snapshot."""
        with closing(sqlite3.connect(self._folder / "log.db")) as connection:
            found = connection.execute("SELECT count(*) FROM segment WHERE first >= ?", (snapshot.size,)).fetchone()
        return int(found[0])

    def restored(self, snapshot: Snapshot, names: tuple[str, ...], anchors: tuple[str, ...] = ()) -> str:
        """Put files of a snapshot in their place, and start; return why it refused, with the right ones back."""
        right = copy_log(self._folder, self._next_folder())
        for name in names:
            put_back(snapshot.folder, self._folder, name)
        self.tally.restores += 1
        self.clocks.wall = max(self.clocks.wall, self.last_ms)
        refusal = self.start(anchors=anchors)
        if refusal:
            shutil.rmtree(self._folder)
            self._folder = right
        else:
            shutil.rmtree(right)
        return refusal

    def spoil_tiles(self, random: Random) -> None:
        """Lose tiles.db, or overwrite it with what is none; of a closed log."""
        for name in ("tiles.db", "tiles.db-wal"):
            (self._folder / name).unlink(missing_ok=True)
        if random.random() < 0.7:
            (self._folder / "tiles.db").write_bytes(random.randbytes(random.choice([0, 100, 5000])))

    def write_anchor(self) -> str:
        """Write the newest head that clients have seen to a file outside, and return where."""
        path = self._base / "anchor"
        path.write_bytes(self.history.note_of(self.history.newest))
        return str(path)

    def _behind_gate(self, honest: Callable[[Follower], Awaitable[None]]) -> Callable[[Follower], Awaitable[None]]:
        async def catch_up(each: Follower) -> None:
            await self._gate.wait()
            await honest(each)

        return catch_up


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Report what nobody has looked at, unless it is of a process that is gone, or has no connection left."""
    error = context.get("exception")
    if not (isinstance(error, Crash) or (isinstance(error, ValueError) and str(error) == "no active connection")):
        loop.default_exception_handler(context)
