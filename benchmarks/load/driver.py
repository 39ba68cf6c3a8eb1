"""The two loops of the load generator.

    closed   N connections; each sends the next request when the last is answered. It shows what a server can do.
    open     requests are due at a fixed rate, whatever the server does; one that finds no free connection waits, and
             its latency counts from when it was due. It shows what users see: a server that stands still for a
             second delays every request of that second, not one a connection (no coordinated omission).

The timed part begins after the warm-up; an answer counts when it comes within. After its end, what is under way is
still waited for, because what is acknowledged then is acknowledged, too.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import uvloop

from benchmarks.load.kind import kind_of
from benchmarks.load.part import Acknowledged, Outcome
from benchmarks.load.wire import Connection, WireError, now

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.load.part import Part
    from benchmarks.load.wire import Parsed

MAX_SAMPLES = 300
"""Most answers that are kept by one process."""

MAX_ERRORS = 10
"""Most errors that are told."""

_DRAIN_S = 60.0
_TICK_S = 0.001
_GOOD = frozenset((200, 201))


class Loop:
    """What both loops share. Owned by the event loop of one process."""

    def __init__(self, part: Part) -> None:
        """Take the work."""
        self.outcome = Outcome(Acknowledged(part.source))
        self._part = part
        self._kind = kind_of(part, self.outcome.acknowledged)
        self._request = self._kind.request
        self._numbers = itertools.count()
        self._connections: list[Connection] = []
        self._idle: list[Connection] = []
        self._alive = 0
        self._from = self._until = 0.0
        self.done = asyncio.Event()

    def free(self, connection: Connection) -> None:
        """Keep a connection until the load begins."""
        self._alive += 1
        self._connections.append(connection)
        self._idle.append(connection)

    def begin(self) -> None:
        """Begin the load now."""
        self._from = now() + self._part.warm_up
        self._until = self._from + self._part.seconds

    def answered(self, connection: Connection, answer: bytes, parsed: Parsed) -> None:
        """Count an answer, and go on."""
        time = now()
        status, at, end = parsed
        outcome = self.outcome
        if status in _GOOD:
            if self._from <= time < self._until:
                outcome.times.append(time - connection.since)
                outcome.size += end - at
            outcome.answers += 1
            self._note(connection.number, answer[at:end])
        else:
            outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        self.go_on(connection)

    def _note(self, number: int, body: bytes) -> None:
        if number % self._kind.every == 0 and len(self.outcome.samples) < MAX_SAMPLES:
            self.outcome.samples.append((number, body))
        if self._part.is_recorded:
            try:
                self._kind.take(number, body)
            except WireError as error:
                self._fail(error)

    def go_on(self, connection: Connection) -> None:
        """Use a free connection."""
        raise NotImplementedError

    def lost(self, connection: Connection, error: Exception) -> None:
        """Go on without a connection."""
        if connection in self._idle:
            self._idle.remove(connection)
        if self._part.may_hang_up:
            self.outcome.hung_up += 1
        else:
            self._fail(error)
        self.retire()

    def retire(self) -> None:
        """Count one connection less; without any the work is done."""
        self._alive -= 1
        if self._alive == 0:
            self.done.set()

    def _fail(self, error: Exception) -> None:
        if len(self.outcome.errors) < MAX_ERRORS:
            self.outcome.errors.append(f"{type(error).__name__}: {error}")

    def finish(self) -> None:
        """Hang up, count what was never answered, and note what was left for later."""
        unanswered = sum(connection.is_busy for connection in self._connections)
        self.outcome.unanswered += unanswered
        if unanswered and not self._part.may_hang_up:
            self._fail(WireError(f"{unanswered} requests without an answer"))
        for connection in self._connections:
            connection.close()
        try:
            self._kind.settle()
        except WireError as error:
            self._fail(error)


class ClosedLoop(Loop):
    """Each connection sends the next request when the last is answered."""

    def begin(self) -> None:
        """Send the first request on every connection."""
        super().begin()
        idle, self._idle = self._idle, []
        for connection in idle:
            self.go_on(connection)

    def go_on(self, connection: Connection) -> None:
        """Send the next request, or end."""
        if now() < self._until:
            number = next(self._numbers)
            request = self._request(number)
            connection.send(number, request, now())
        else:
            self.retire()


class OpenLoop(Loop):
    """Requests are due at a fixed rate."""

    def __init__(self, part: Part) -> None:
        """Take the work."""
        super().__init__(part)
        self._due: deque[float] = deque()
        self._next = 0.0

    def begin(self) -> None:
        """Start the clock."""
        super().begin()
        self._next = now()
        self._tick()

    def _tick(self) -> None:
        """Send what is due; later what finds no connection."""
        time = now()
        step = 1 / self._part.rate
        while self._next <= time and self._next < self._until:
            if self._idle:
                self._send(self._idle.pop(), self._next)
            else:
                self._due.append(self._next)
            self._next += step
        if self._next < self._until:
            asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        elif not self._due:
            for _ in range(len(self._idle)):
                self._idle.pop()
                self.retire()

    def _send(self, connection: Connection, due: float) -> None:
        number = next(self._numbers)
        connection.send(number, self._request(number), due)

    def go_on(self, connection: Connection) -> None:
        """Send what waits, or wait for what comes."""
        if self._due:
            self._send(connection, self._due.popleft())
        elif self._next < self._until:
            self._idle.append(connection)
        else:
            self.retire()
            while self._idle:
                self._idle.pop()
                self.retire()

    def finish(self) -> None:
        """Count what was due and never sent, too."""
        self.outcome.unanswered += len(self._due)
        super().finish()


def run_part(part: Part, begun: Callable[[], None] = lambda: None) -> Outcome:
    """Do the work of one generator process.

    Args:
        part: The work.
        begun: Is called when all connections stand and the load begins.

    Raises:
        OSError: The server cannot be reached.
    """
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a pause of the generator would count as one of the server
    try:
        return uvloop.run(_run(part, begun))
    finally:
        gc.enable()
        gc.unfreeze()


async def _run(part: Part, begun: Callable[[], None]) -> Outcome:
    loop = asyncio.get_running_loop()
    driver = OpenLoop(part) if part.rate else ClosedLoop(part)
    for _ in range(part.connections):
        await loop.create_connection(lambda: Connection(driver), part.address.host, part.address.port)
    await asyncio.sleep(max(0.0, part.start - now()))
    begun()
    driver.begin()
    with suppress(TimeoutError):  # `finish` counts what is missing
        await asyncio.wait_for(driver.done.wait(), part.warm_up + part.seconds + _DRAIN_S)
    driver.finish()
    return driver.outcome
