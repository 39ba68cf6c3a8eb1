"""One step of a simulated life, and what each of them may need."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, ClassVar

from hypothesis.stateful import RuleBasedStateMachine

from tests.support.clocks import HOUR, SECOND
from tests.support.simulation import Simulation

if TYPE_CHECKING:
    from tests.support.clients import Clients
    from tests.support.history import Request
    from tests.support.tally import Tally
    from tests.support.tapped import Plan
    from tests.support.template import Template


def scratch() -> Path:
    """Return a new folder, in memory where that can be."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="life-", dir=memory if memory.is_dir() else None))


class Steps(RuleBasedStateMachine):
    """What the rules of a life are made of.

    Attributes:
        templates: The logs that lives begin with.
        tally: What was done in all of them.
        age: Steps that the process has lived.
        lived: The steps of this life, as they are told where it goes wrong.
    """

    templates: ClassVar[list[Template]]
    tally: ClassVar[Tally]

    def __init__(self) -> None:
        super().__init__()
        self.age = 0
        self.trouble_ends = 0
        self.lived: list[str] = []
        self.folder = scratch()
        self.sim: Simulation
        self.clients: Clients

    def simulate(self, template: Template, *, dedup: bool) -> Simulation:
        return Simulation(self.folder, template, dedup=dedup)

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            shutil.rmtree(self.folder)
            return
        try:
            if sys.exception() is None:
                self.end_troubles()
                self.sim.stop()
                self.start()
                self.sim.stop()
            elif isinstance(sys.exception(), AssertionError):
                print(*self.lived, sep="\n")  # noqa: T201
        finally:
            self.tally.add(self.sim.tally)
            self.sim.close()

    def step(self, number: int) -> Random:
        """Begin a step."""
        self.age += 1
        self.lived.append(f"{sys._getframe(1).f_code.co_name}({number})")
        self.tally.steps += 1
        self.sim.clocks.pass_by(7)
        if self.trouble_ends and self.tally.steps >= self.trouble_ends:
            self.end_troubles()
        return Random(number)

    def trouble(self, random: Random) -> None:
        """Let troubles end in some steps."""
        self.trouble_ends = self.tally.steps + random.randint(2, 8)

    def end_troubles(self) -> None:
        self.trouble_ends = 0
        self.sim.free = 1 << 40
        self.sim.set_clock_right()
        self.sim.run(self.sim.release_follower())

    def send(self, *requests: Request, cancels: bool = False) -> None:
        """Send requests to a process that outlives them."""
        self.sim.run(self.clients.send(requests, cancels=cancels))
        assert self.sim.is_alive, f"the log stopped for no reason: {self.sim.fatal}"

    def fail(self, plan: Plan, *requests: Request, restarts: bool = True) -> None:
        """Send requests while a statement fails, and go on with what that leaves."""
        sim = self.sim
        sim.tap.plan = plan
        sim.run(self.clients.send(requests))
        sim.tap.plan = None
        if sim.tap.fired:
            sim.tally.faults += 1
            assert not sim.is_alive, f"{sim.tap.fired} failed, and the log goes on"
            if not sim.tap.gone:
                sim.run(self.clients.is_refused_by_the_dead())
            sim.bury()
            if restarts:
                self.start()

    def leave(self, random: Random) -> None:
        """End the process, one way or the other."""
        if random.random() < 0.5:
            self.sim.crash()
        else:
            self.sim.stop()

    async def stop_while_adding(self, requests: list[Request]) -> None:
        """End the process as soon as it has taken what was sent: it is answered before the end."""
        states = [self.clients.state(request.key) for request in requests]
        tasks = self.clients.begin(requests)
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(self.sim.exit())
        await self.clients.end(requests, tasks, states)
        await ending

    def start(self, random: Random | None = None) -> None:
        """Start a process; sometimes at a time before the newest entry first, which must be refused."""
        sim = self.sim
        if random is not None and random.random() < 0.2:
            wall, sim.clocks.wall = sim.clocks.wall, sim.last_ms - random.choice([SECOND + 1, HOUR])
            assert sim.start(), "the log was opened at a time before its newest entry"
            sim.clocks.wall = wall
        sim.clocks.is_frozen, sim.free = False, 1 << 40
        sim.must_start()
        self.age = self.trouble_ends = 0
        if len(sim.snapshots) < 3:
            sim.snapshot()
