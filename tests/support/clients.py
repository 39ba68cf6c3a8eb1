"""Clients of a simulated log: what they send, what they expect of it, and what they read.

Whether a request must be answered follows from the machine alone: its clocks, its disk, its follower, and what was sent
under the request's key before. A proof must be the one that the RFC's definition gives, hash by hash.
"""

from __future__ import annotations

import asyncio
import enum
import gzip
import sqlite3
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

from tests.support.clocks import HOUR
from tests.support.history import Request
from tests.support.nth_call import Crash
from tests.support.simulation import DAY, UNSURE
from tests.support.static import content
from tlog.errors import NotFoundError, PushbackError
from tlog.merkle import verify_consistency, verify_inclusion
from tlog.multiproof import verify_multiproof
from tlog.server.clock import ClockError
from tlog.server.errors import DamageError, KeyReusedError, NoSpaceError, StoppedError
from tlog.server.idempotency import request_key
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from random import Random

    from tests.support.simulation import Simulation
    from tlog.server.sequencer import Placed
    from tlog.server.storage import SignedHead

Outcome: TypeAlias = "list[Placed] | BaseException"

KNOWN = 0.15
"""Share of entries that the log has already."""


class Key(enum.Enum):
    """What a client may expect of a key."""

    NEW = "it was never sent, or is forgotten"
    HELD = "the request that was answered under it is answered alike, and another one is refused"
    UNSURE = "the request that was sent under it comes out alike, whether the log knows it or not"
    USELESS = "nothing: it is about to be forgotten"


class Clients:
    """Send requests and read, and let the history of a simulation judge what they see."""

    def __init__(self, simulation: Simulation) -> None:
        self.sim = simulation
        self._number = 0

    # Requests.

    def entries(self, random: Random, count: int) -> tuple[bytes, ...]:
        """Make entries: most of them new, some that the log has, some of them twice."""
        made: list[bytes] = []
        for _ in range(count):
            choice = random.random()
            if choice < KNOWN:
                made.append(random.choice(self.sim.history.entries))
            elif choice < 1.3 * KNOWN and made:
                made.append(random.choice(made))
            else:
                self._number += 1
                made.append(b"%d" % self._number + b"." * random.choice([0, 0, 0, 300]))
        return tuple(made)

    def requests(self, random: Random) -> list[Request]:
        """Make requests that are sent at once: some with keys, some for the same entries, some of them twice."""
        made: list[Request] = []
        for _ in range(random.randint(1, 5)):
            entries = self.entries(random, random.choice([1, 1, 1, 2, 12]))
            if made and random.random() < 0.2:
                entries = (*entries, *made[-1].entries[:1])
            made.append(Request(entries, self.new_key() if random.random() < 0.25 else ""))
            if random.random() < 0.1:
                made.append(made[-1])
        return made

    def new_key(self) -> str:
        """Make a key that was never sent."""
        self._number += 1
        return f"key-{self._number}"

    def state(self, key: str) -> Key:
        """Return what may be expected of a key now."""
        keyed = self.sim.history.keys.get(key)
        if keyed is None:
            return Key.NEW
        age = abs(self.sim.steady_ms() - keyed.made_ms)
        if not keyed.is_held:  # equal entries come out alike in any case, where the log looks for them
            return Key.UNSURE if self.sim.history.dedup or age < 12 * HOUR else Key.USELESS
        if age < DAY - UNSURE:
            return Key.HELD
        return Key.NEW if age > DAY + UNSURE else Key.USELESS

    async def send(self, requests: Sequence[Request], *, cancels: bool = False) -> None:
        """Send requests at once, and see what comes of them.

        Args:
            requests: The requests.
            cancels: Whether the first client goes away before it is answered.
        """
        tasks, states = self.begin(requests), [self.state(request.key) for request in requests]
        if cancels:
            await asyncio.sleep(0)
            tasks[0].cancel()
        await self.end(requests, tasks, states)
        if self.sim.is_alive:
            await self.sim.until(self._is_idle)
        if self.sim.is_alive:
            await self.sim.observe()
            await self.sim.until_derived()

    def begin(self, requests: Sequence[Request]) -> list[asyncio.Task[list[Placed]]]:
        """Send requests."""
        sim = self.sim
        for request in requests:
            if request.key and self.state(request.key) is Key.NEW:
                sim.history.keys.pop(request.key, None)
        sim.history.sent(requests)
        sim.sent_ms = sim.clocks.wall
        return [asyncio.ensure_future(self._ask(request)) for request in requests]

    async def end(
        self, requests: Sequence[Request], tasks: Sequence[asyncio.Task[list[Placed]]], states: Sequence[Key]
    ) -> None:
        """Wait for the answers to requests, and note what they are."""
        before = self.sim.history.newest
        outcomes: list[Outcome] = await asyncio.gather(*tasks, return_exceptions=True)
        for request, outcome, state in zip(requests, outcomes, states, strict=True):
            if isinstance(outcome, BaseException):
                self._refused(request, outcome, state)
            else:
                self._answered(request, outcome, state, before)

    async def _ask(self, request: Request) -> list[Placed]:
        key = request_key(request.key, "entries", repr(request.entries).encode()) if request.key else None
        return await self.sim.log.add_many(request.entries, key)

    def _answered(self, request: Request, placed: list[Placed], state: Key, before: int) -> None:
        sim = self.sim
        if request.key and state is Key.HELD:
            assert sim.history.keys[request.key].entries == request.entries, "a key was answered for another request"
        elif state is Key.NEW:
            assert sim.is_believed() is not False, "an entry was signed at a time that is not to be believed"
            assert sim.free, "an entry was taken, and the disk is full"
        sim.tally.answers += 1
        sim.history.answered(request, placed, before)

    def _refused(self, request: Request, error: BaseException, state: Key) -> None:
        sim = self.sim
        sim.tally.refusals += 1
        if isinstance(error, asyncio.CancelledError) or not sim.is_alive or (sim.tap.fired and _is_failure(error)):
            sim.history.doubt(request, sim.sent_ms)
            return
        sim.history.refused(request)
        if request.key and state is Key.HELD:
            is_same = sim.history.keys[request.key].entries == request.entries
            assert not is_same, f"a key that was answered is refused: {error!r}"
            assert isinstance(error, KeyReusedError), (
                f"another request under a key is refused, but not for that: {error!r}"
            )
        elif isinstance(error, ClockError):
            assert sim.is_believed() is not True, f"the clock is right: {error}"
        elif isinstance(error, NoSpaceError):
            assert not sim.free, "the disk is not full"
        else:
            assert isinstance(error, PushbackError), f"a request was refused for no reason: {error!r}"
            assert sim.is_held, f"nothing holds the log up: {error}"

    def _is_idle(self) -> bool:
        writer = self.sim.log._writer
        assert writer is not None
        return writer.pool.oldest() is None

    async def is_refused_by_the_dead(self) -> None:
        """Check that a process that has failed takes nothing any more."""
        head = self.sim.log.head
        for _ in range(2):
            try:
                await self.sim.log.add(b"to the dead")
            except StoppedError:
                continue
            raise AssertionError("a process that has failed goes on")
        assert self.sim.log.head == head
        assert not self.sim.log.is_ready()

    # Reads.

    async def read_entry(self, index: int) -> None:
        """Read an entry with its proof."""
        history = self.sim.history
        entry, leaf, proof, head = await self.sim.log.read_entry(index)
        assert history.served(head.note) == len(history.entries)
        assert entry == history.entries[index], f"entry {index} has changed"
        self._check_inclusion(index, head.size, leaf, proof)

    async def read_tile(self, level: int | None, index: int, width: int) -> None:
        """Read a tile or bundle that is visible."""
        tree = self.sim.log.tree
        if level is None:
            data = gzip.decompress(await tree.bundle(Bundle(index, width)))
        else:
            data = await tree.tile(Tile(level, index, width))
        self.sim.tally.reads += 1
        assert data == content(self.sim.history.tree, (level, index, width)), "a tile has changed"

    async def prove_inclusion(self, index: int, size: int) -> None:
        """Ask for the proof that an entry is in the tree of a size."""
        leaf, proof = await self.sim.log.prove_inclusion(index, size)
        self._check_inclusion(index, size, leaf, proof)

    async def prove_batch(self, indexes: Sequence[int]) -> None:
        """Ask for one proof of several entries."""
        log, history = self.sim.log, self.sim.history
        leaves = {index: _leaf(history.entries[index]) for index in sorted(indexes)}
        proof = await log.prove_batch(leaves, log.head)
        size = len(history.entries)
        verify_multiproof(leaves, size, proof, history.tree.mth(0, size))
        self.sim.tally.proofs += 1

    async def prove_consistency(self, old: int, new: int) -> None:
        """Ask for the proof that a tree grew out of another."""
        tree = self.sim.history.tree
        proof = await self.sim.log.prove_consistency(old, new)
        assert proof == tree.proof(old, new)
        verify_consistency(old, new, proof, tree.mth(0, old), tree.mth(0, new))
        self.sim.tally.proofs += 1

    async def find(self, entry: bytes) -> None:
        """Look for an entry by its leaf hash."""
        self.sim.tally.reads += 1
        expected = self.sim.history.first.get(entry)
        if expected is None:
            await self.finds_nothing(self.sim.log.find(_leaf(entry)))
        else:
            assert await self.sim.log.find(_leaf(entry)) == expected

    async def read_while_adding(self, requests: Sequence[Request], index: int, size: int) -> None:
        """Read while a commit moves the head: each answer is of one head, the old one or the new one."""
        log, history = self.sim.log, self.sim.history
        sending = asyncio.ensure_future(self.send(requests))
        answers: list[tuple[bytes, bytes, list[bytes], SignedHead]] = []
        while not sending.done() and len(answers) < 8:
            answers.append(await log.read_entry(index))
            await self.prove_inclusion(index, size)
        await sending
        for entry, leaf, proof, head in answers:
            assert history.head(head.note) <= len(history.entries)
            assert entry == history.entries[index], f"entry {index} has changed"
            self._check_inclusion(index, head.size, leaf, proof)

    async def finds_nothing(self, work: Awaitable[object]) -> None:
        """Check that what is not visible is not there."""
        try:
            await work
        except NotFoundError:
            return
        raise AssertionError("what no signed tree has was served")

    async def read_with_fault(self, work: Awaitable[object]) -> None:
        """Read, and put up with a failure of the disk in the middle of it."""
        try:
            await work
        except DamageError:
            assert self.sim.tap.fired, "the log says that it is damaged, and is not"

    def _check_inclusion(self, index: int, size: int, leaf: bytes, proof: list[bytes]) -> None:
        tree = self.sim.history.tree
        assert leaf == _leaf(self.sim.history.entries[index])
        assert proof == tree.path(index, 0, size)
        verify_inclusion(leaf, index, size, proof, tree.mth(0, size))
        self.sim.tally.proofs += 1


def _leaf(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def _is_failure(error: BaseException) -> bool:
    return isinstance(error, DamageError | StoppedError | Crash | sqlite3.Error)
