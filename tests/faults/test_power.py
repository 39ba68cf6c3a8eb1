"""The power fails under load: what was acknowledged is there when the machine is on again, under one history of heads.

The control is the same log without a wait for the disk: the same check finds what it lost. A check that finds nothing
there would find nothing anywhere.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.faults.test_crash import Load, read_all
from tests.support import careless_tlogd
from tests.support.grow import stored
from tests.support.power import Volume
from tests.support.server import TLOGD, Server, init_log, run_tlogd
from tests.support.witness import Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.invariant("I2", "I5", "I6", "I9", "I10")]

ROUNDS = 30
CONTROLS = 10
CARELESS = (sys.executable, careless_tlogd.__file__)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume(tmp_path) as volume:
        yield volume


def durable_log(data: Path) -> str:
    """Create a log, with what tests set in its configuration on the disk, too, and return its vkey."""
    vkey = init_log(data)
    with (data / "treehead.toml").open("rb") as file:
        os.fsync(file.fileno())
    return vkey


async def fail_power(volume: Volume, server: Server, seen: Seen, after_s: float) -> Load:
    """Cut the power under load; the process is gone with it."""
    load = Load(server, seen)
    run = asyncio.create_task(load.run(32, after_s))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(volume.cut)
    await asyncio.to_thread(server.kill)
    await run
    return load


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_and_no_two_heads_differ_over_30_power_failures_under_load(volume: Volume) -> None:
    data = volume.root / "log"
    seen, dice, attempted = Seen(durable_log(data)), random.Random(ROUNDS), set[bytes]()
    kept = 0
    with Server(data) as server:
        for _ in range(ROUNDS):
            load = uvloop.run(fail_power(volume, server, seen, dice.uniform(0.05, 0.5)))
            attempted |= load.unanswered
            volume.unmount()
            volume.mount()
            server.start(program=TLOGD)
            entries = uvloop.run(read_all(server, seen))
            seen.check(entries)
            kept = len(entries)
        assert server.stop() == 0
    assert len(seen.acknowledged) > ROUNDS, "there was no load"
    entries = stored(data)
    tree = seen.check(entries)
    assert len(entries) == kept
    assert tree.mth(0, len(entries)) == seen.heads[len(entries)]
    extra = set(entries[1:]) - set(seen.acknowledged.values())
    assert extra <= attempted, "an entry that nobody sent"
    done = run_tlogd("fsck", "--config", data / "treehead.toml")
    assert done.returncode == 0, done.stderr
    print(f"{ROUNDS} power failures: {len(seen.acknowledged)} acknowledged, {len(extra)} kept besides, 0 lost")  # noqa: T201


@dataclass
class Losses:
    """How it was found that a log without durable writes has lost something.

    Attributes:
        refused: It refused to start.
        seen: It started, and contradicts what clients saw.
        unseen: Neither.
    """

    refused: int = 0
    seen: int = 0
    unseen: int = 0


@pytest.mark.timeout(300)
def test_a_log_that_does_not_wait_for_the_disk_loses_acknowledged_entries_and_that_is_found(volume: Volume) -> None:
    losses = Losses()
    for number in range(CONTROLS):
        data = volume.root / f"{number}"
        seen = Seen(durable_log(data))
        with Server(data, CARELESS) as server:
            uvloop.run(fail_power(volume, server, seen, 0.4))
            assert seen.acknowledged, "there was no load"
            volume.unmount()
            volume.mount()
            find_loss(data, seen, server, losses)
    assert losses.refused + losses.seen >= CONTROLS - 1, losses
    print(f"{CONTROLS} careless logs: {losses}")  # noqa: T201


def find_loss(data: Path, seen: Seen, server: Server, losses: Losses) -> None:
    """Start the log as it is now, and compare it with what clients saw."""
    try:
        server.start(program=TLOGD)
    except AssertionError:
        losses.refused += 1
        return
    server.kill()
    if is_consistent(stored(data), seen):
        losses.unseen += 1
    else:
        losses.seen += 1


def is_consistent(entries: Sequence[bytes], seen: Seen) -> bool:
    """Return whether entries are all that was acknowledged, under every head that was shown."""
    try:
        seen.check(entries)
    except (AssertionError, IndexError):
        return False
    return max(seen.heads) <= len(entries)
