"""The life of a log as a state machine: what clients do, and what happens to the machine, in any order.

Each rule takes one number and makes all its choices from it, so a life is a short list, and can be lived again.
Troubles (a wrong clock, a full disk, a follower that is held up) last for some steps, and then end.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from random import Random
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.support.clients import Clients, Key
from tests.support.clocks import HOUR, MINUTE, SECOND, YEAR
from tests.support.history import Request
from tests.support.nth_call import Crash, Kind
from tests.support.static import addresses
from tests.support.steps import Steps
from tests.support.tapped import COMMIT, FOLLOW, START_STATEMENTS, Plan
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NUMBERS = st.integers(0, (1 << 32) - 1)

LIFE = 16
"""Steps that a process lives at least: a start takes as long as many of them."""

SIZES = {1: 3, 255: 3, 520: 3, 2030: 1}
"""Sizes of the logs that a life begins with, and how often; the largest is about to merge runs of its leaf index."""

LARGEST = 2600
"""Entries from which no batches are added any more, so that no life grows slow."""


def _late(work: Callable[[Life, int], None]) -> Callable[[Life, int], None]:
    """Let a process live for a while before it ends; until then, read instead.

    That is no precondition: which rules can be drawn must not depend on how fast the log was.
    """

    @wraps(work)
    def rule(self: Life, number: int) -> None:
        if self.age >= LIFE:
            work(self, number)
        else:
            self.step(number)
            self.sim.run(self.clients.read_entry(number % self.sim.size))

    return rule


class Life(Steps):
    """A log, its machine and its clients."""

    @initialize(number=NUMBERS)
    def begin(self, number: int) -> None:
        random = Random(number)
        (template,) = random.choices(self.templates, list(SIZES.values()))
        self.sim = self.simulate(template, dedup=random.random() < 0.75)
        self.clients = Clients(self.sim)
        self.start()

    # What clients do.

    @rule(number=NUMBERS)
    def add(self, number: int) -> None:
        random = self.step(number)
        self.send(Request(self.clients.entries(random, 1)))

    @rule(number=NUMBERS)
    def add_at_once(self, number: int) -> None:
        random = self.step(number)
        self.send(*self.clients.requests(random), cancels=random.random() < 0.1)

    @rule(number=NUMBERS)
    def add_batch(self, number: int) -> None:
        random = self.step(number)
        count = random.choice([2, 8, 40]) if self.sim.size < LARGEST else 1
        self.send(Request(self.clients.entries(random, count), self.clients.new_key() if random.random() < 0.3 else ""))

    @rule(number=NUMBERS)
    def add_again(self, number: int) -> None:
        random = self.step(number)
        old = random.choice(self.sim.history.entries)
        self.send(Request((old,)), Request((old, *self.clients.entries(random, 1))))

    @rule(number=NUMBERS)
    def repeat_key(self, number: int) -> None:
        random = self.step(number)
        if not self.sim.history.keys:
            return
        key = random.choice(list(self.sim.history.keys)[-40:])
        entries, state = self.sim.history.keys[key].entries, self.clients.state(key)
        if state is Key.USELESS:
            return
        is_other = state is Key.NEW or (state is Key.HELD and random.random() < 0.3)
        self.send(Request(self.clients.entries(random, 2) if is_other else entries, key))

    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        random = self.step(number)
        if not self.sim.history.unanswered:
            return
        request = random.choice(self.sim.history.unanswered)
        if not request.key or self.clients.state(request.key) in (Key.HELD, Key.UNSURE):
            known = self.sim.history.keys.get(request.key)
            self.send(request if known is None else Request(known.entries, request.key))

    @rule(number=NUMBERS)
    def read_entry(self, number: int) -> None:
        self.step(number)
        self.sim.run(self.clients.read_entry(number % self.sim.size))

    @rule(number=NUMBERS)
    def read_while_adding(self, number: int) -> None:
        random = self.step(number)
        size = random.choice([self.sim.size, random.choice(self.sim.history.sizes)])
        self.sim.run(self.clients.read_while_adding(self.clients.requests(random), random.randrange(size), size))

    @rule(number=NUMBERS)
    def read_tile(self, number: int) -> None:
        random = self.step(number)
        level, index, most = random.choice(addresses(self.sim.size))
        self.sim.run(self.clients.read_tile(level, index, random.randint(1, most)))

    @rule(number=NUMBERS)
    def read_beyond_the_end(self, number: int) -> None:
        random = self.step(number)
        size, log = self.sim.size, self.sim.log
        index, width = size // 256, size % 256 + 1
        works: list[Callable[[], Awaitable[object]]] = [
            lambda: log.tree.tile(Tile(0, index, width)),
            lambda: log.tree.bundle(Bundle(index, width)),
            lambda: log.tree.tile(Tile(1, 0, size // 256 + 1)),
            lambda: log.tree.entry(size),
            lambda: log.prove_inclusion(size, size + 1),
            lambda: log.prove_consistency(1, size + 1),
        ]
        self.sim.run(self.clients.finds_nothing(random.choice(works)()))

    @rule(number=NUMBERS)
    def prove_inclusion(self, number: int) -> None:
        random = self.step(number)
        size = random.choice([self.sim.size, random.choice(self.sim.history.sizes), random.randint(1, self.sim.size)])
        self.sim.run(self.clients.prove_inclusion(random.randrange(size), size))

    @rule(number=NUMBERS)
    def prove_consistency(self, number: int) -> None:
        random = self.step(number)
        old = random.choice([0, random.choice(self.sim.history.sizes), random.randint(1, self.sim.size)])
        self.sim.run(self.clients.prove_consistency(old, random.randint(old, self.sim.size)))

    @rule(number=NUMBERS)
    def prove_batch(self, number: int) -> None:
        random = self.step(number)
        indexes = [random.randrange(self.sim.size) for _ in range(random.randint(1, 8))]
        self.sim.run(self.clients.prove_batch(sorted(set(indexes))))

    @rule(number=NUMBERS)
    def find(self, number: int) -> None:
        random = self.step(number)
        entry = random.choice(self.sim.history.entries) if random.random() < 0.8 else b"%d" % number
        self.sim.run(self.clients.find(entry))

    # What happens to the machine.

    @rule(number=NUMBERS)
    def wait(self, number: int) -> None:
        random = self.step(number)
        self.sim.clocks.pass_by(random.choice([1, SECOND, MINUTE, 20 * MINUTE]))

    @rule(number=NUMBERS)
    def clock_goes_wrong(self, number: int) -> None:
        random = self.step(number)
        clocks = self.sim.clocks
        steps = [-900, -SECOND - 1, -5 * MINUTE, -HOUR, SECOND, 9 * MINUTE, 11 * MINUTE, 25 * HOUR, 10 * YEAR, 0]
        by = random.choice(steps)
        clocks.wall += by
        clocks.is_frozen = not by
        self.trouble(random)
        self.send(Request(self.clients.entries(random, 1)))

    @rule(number=NUMBERS)
    def disk_fills(self, number: int) -> None:
        random = self.step(number)
        self.sim.free = 0
        self.trouble(random)
        self.send(Request(self.clients.entries(random, 1)))

    @rule(number=NUMBERS)
    def follower_lags(self, number: int) -> None:
        random = self.step(number)
        self.sim.hold_follower()
        self.trouble(random)
        is_long = self.sim.size < LARGEST and random.random() < 0.15
        for _ in range(5 if is_long else 1):  # up to the limit, and beyond it
            self.send(Request(self.clients.entries(random, 120 if is_long else 5)))

    @rule(number=NUMBERS)
    def snapshot(self, number: int) -> None:
        self.step(number)
        self.sim.snapshot()

    # How a process ends, and how the next one begins.

    @rule(number=NUMBERS)
    @_late
    def crash(self, number: int) -> None:
        random = self.step(number)
        self.sim.crash()
        self.start(random)

    @rule(number=NUMBERS)
    @_late
    def stop(self, number: int) -> None:
        random = self.step(number)
        self.end_troubles()
        requests = self.clients.requests(random)
        self.sim.run(self.stop_while_adding(list(dict.fromkeys(requests))))
        self.start(random)

    @rule(number=NUMBERS)
    @_late
    def fail_in_a_commit(self, number: int) -> None:
        random = self.step(number)
        plan = Plan(random.choice(COMMIT[:3] if random.random() < 0.8 else COMMIT), 1, random.choice(list(Kind)))
        self.fail(plan, *self.clients.requests(random))

    @rule(number=NUMBERS)
    @_late
    def fail_in_the_follower(self, number: int) -> None:
        random = self.step(number)
        self.end_troubles()
        plan = Plan(random.choice(FOLLOW), random.choice([1, 1, 2]), random.choice(list(Kind)))
        count = 256 - self.sim.size % 256 + random.randrange(20) if self.sim.size < LARGEST else 1
        self.fail(plan, Request(self.clients.entries(random, count)))

    @rule(number=NUMBERS)
    def fail_in_a_read(self, number: int) -> None:
        random = self.step(number)
        self.end_troubles()
        self.sim.tap.plan = Plan("tiles.db SELECT", 1, Kind.FAILS)
        self.sim.run(self.clients.read_with_fault(self.clients.read_entry(number % self.sim.size)))
        old = random.choice(self.sim.history.entries)
        if self.sim.history.dedup:
            self.send(Request((old,)))
        self.sim.run(self.clients.read_with_fault(self.clients.find(old)))
        self.sim.tap.plan, self.sim.tap.fired = None, ""
        self.sim.run(self.clients.read_entry(number % self.sim.size))

    @rule(number=NUMBERS)
    @_late
    def fail_in_a_start(self, number: int) -> None:
        random = self.step(number)
        if random.random() < 0.5:
            kind = random.choice([Kind.DONE_AND_CRASH, Kind.CRASH])
            self.fail(Plan(COMMIT[random.choice([0, 0, 2])], 1, kind), *self.clients.requests(random), restarts=False)
        if self.sim.is_open:
            self.sim.crash()
        for _ in range(random.randint(1, 3)):
            self.sim.clocks.wall = max(self.sim.clocks.wall, self.sim.last_ms)
            plan = Plan("", random.randint(1, START_STATEMENTS), random.choice(list(Kind)))
            with suppress(Crash):
                self.sim.start(plan=plan)
            if self.sim.is_open:
                self.sim.crash()
        self.start()

    @rule(number=NUMBERS)
    @_late
    def restore(self, number: int) -> None:
        random = self.step(number)
        self.end_troubles()
        snapshot = random.choice(self.sim.snapshots)
        commits = self.sim.commits_since(snapshot)
        self.leave(random)
        what = random.choice(["log", "checkpoints", "both", "tiles", "no tiles"])
        anchors: tuple[str, ...] = ()
        if what == "no tiles":
            self.sim.spoil_tiles(random)
            names: tuple[str, ...] = ()
        elif what == "both":
            names = ("log.db", "checkpoints.db", "tiles.db")[: random.choice([2, 3])]
            anchors = (self.sim.write_anchor(),)
        else:
            names = (f"{what}.db",)
        most = {"log": 0, "checkpoints": 1, "both": 0}.get(what, commits)
        refusal = self.sim.restored(snapshot, names, anchors)
        assert bool(refusal) == (commits > most), f"{what} of {commits} commits ago: {refusal or 'opened'}"
        self.sim.tally.resumed += what == "checkpoints" and commits == 1
        if refusal:
            self.start()
        self.age = 0
