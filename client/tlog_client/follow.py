"""Following a log: its heads as they are signed, and its entries as they are published; for hours.

Heads come from the stream of checkpoints; a log that has none is asked for its checkpoint every few seconds, so any
tiled log can be followed. Each head is verified, and consistent with the one before. When the log is away, following
goes on as soon as it is back. Only what would not end by itself is raised: what is proven bad, and what is wrong from
the first answer on.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, FormatError, NotFoundError, RefusedError, UnavailableError
from tlog.fetch import Request, fetch_checkpoint
from tlog_client.event import EventReader
from tlog_client.flow import BUNDLES, chunks
from tlog_client.patience import Patience

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tlog.checkpoint import Checkpoint
    from tlog_client.flow import Flows, Published
    from tlog_client.run import AsyncRunner

POLL_INTERVAL = 5.0
"""Seconds between two looks at a log without a stream."""

STREAM = Request("GET", "v1/checkpoints/stream", (("Accept", "text/event-stream"),))
"""Asks for the stream of checkpoints."""


async def follow(
    runner: AsyncRunner, flows: Flows, interval: float, notice: Callable[[CouldNotCheckError], None]
) -> AsyncGenerator[Checkpoint, None]:
    """Yield the served head, and then each larger one; see `AsyncLog.follow`."""
    size, patience = -1, Patience()
    while True:
        try:
            async with aclosing(_notes(runner, interval)) as notes:
                async for note in notes:
                    head = (await runner.run(flows.accept(note))).head
                    if head.size > size:
                        size = head.size
                        yield head
        except CouldNotCheckError as error:
            if size < 0:
                raise
            await _wait(patience, error, notice)


async def tail(
    runner: AsyncRunner, flows: Flows, start: int | None, interval: float, notice: Callable[[CouldNotCheckError], None]
) -> AsyncGenerator[Published, None]:
    """Yield entries from an index on, or those to come, as they are published; see `AsyncLog.tail`."""
    at, patience = start, Patience()
    async with aclosing(follow(runner, flows, interval, notice)) as heads:
        async for head in heads:
            at = head.size if at is None else at
            for low, high in chunks(at, head.size, BUNDLES):
                for published in await _read(runner, flows, (head, low, high), patience, notice):
                    yield published
            at = max(at, head.size)


async def _read(
    runner: AsyncRunner,
    flows: Flows,
    what: tuple[Checkpoint, int, int],
    patience: Patience,
    notice: Callable[[CouldNotCheckError], None],
) -> list[Published]:
    """Read entries of a head, again and again until the log gives them."""
    while True:
        try:
            return await runner.run(flows.read(*what))
        except CouldNotCheckError as error:
            await _wait(patience, error, notice)


async def _wait(patience: Patience, error: CouldNotCheckError, notice: Callable[[CouldNotCheckError], None]) -> None:
    """Wait after a failure, and say so once in an outage.

    Raises:
        CouldNotCheckError: This one, where waiting is of no use.
    """
    if not patience.lasts(error):
        raise error
    delay = patience.delay(error)
    if patience.failures == 1:
        notice(error)
    await asyncio.sleep(delay)


async def _notes(runner: AsyncRunner, interval: float) -> AsyncGenerator[bytes, None]:
    """Yield the signed notes that one connection brings; where there is no stream, look every few seconds.

    Raises:
        CouldNotCheckError: It brings no more.
    """
    try:
        async with aclosing(_streamed(runner)) as notes:
            async for note in notes:
                yield note
    except (NotFoundError, RefusedError):
        pass  # no stream; a file server may refuse a path that it does not know
    while True:
        yield await runner.run(fetch_checkpoint())
        await asyncio.sleep(interval * random.uniform(0.9, 1.1))  # noqa: S311  # as in `patience`


async def _streamed(runner: AsyncRunner) -> AsyncGenerator[bytes, None]:
    """Yield the newest note of each chunk of the stream: who is behind skips to it."""
    reader = EventReader()
    async with aclosing(runner.stream(STREAM)) as body:
        async for chunk in body:
            try:
                notes = [event.data for event in reader.feed(chunk) if event.kind == b"checkpoint"]
            except FormatError as error:
                raise UnavailableError(f"the stream of checkpoints cannot be read: {error}") from error
            if notes:
                yield notes[-1]
    raise UnavailableError("the log ended the stream of checkpoints")
