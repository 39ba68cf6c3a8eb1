"""Cancellation at one exact await: a coroutine is driven, and its suspension points are counted."""

from __future__ import annotations

import asyncio
import enum
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

T = TypeVar("T")


class Moment(enum.Enum):
    """When a task that waits is cancelled."""

    WAITING = "as it begins to wait"
    ANSWERED = "when what it waits for is there, and it has not gone on yet"


class CancelledAt(Generic[T]):
    """Awaits a coroutine whose task is cancelled at one of its suspension points.

    Attributes:
        points: Suspension points that were reached.
    """

    def __init__(self, work: Coroutine[object, None, T], at: int, moment: Moment = Moment.WAITING) -> None:
        """Take a coroutine.

        Args:
            work: The coroutine.
            at: Its suspension point, from 1; 0 cancels nowhere.
            moment: When, at that point.
        """
        self.points = 0
        self._work = work
        self._at = at
        self._moment = moment

    @property
    def was_reached(self) -> bool:
        """Whether the point was reached."""
        return 0 < self._at <= self.points

    def __await__(self) -> Generator[object, None, T]:
        step: Callable[[], object] = partial(self._work.send, None)
        while True:
            try:
                waits_for = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration is not generic
            self.points += 1
            if self.points == self._at:
                self._cancel(waits_for)
            try:
                yield waits_for
                step = partial(self._work.send, None)
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's to deal with
                step = partial(self._work.throw, error)

    def _cancel(self, waits_for: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._moment is Moment.ANSWERED and isinstance(waits_for, asyncio.Future):
            waits_for.add_done_callback(lambda _: task.cancel())  # before the task's own: it has not gone on
        else:
            task.cancel()


async def outcome(work: Awaitable[T], seconds: float = 20) -> T | None:
    """Run to the end; return what came out, or None where it was cancelled.

    Raises:
        TimeoutError: It did not end.
    """

    async def run() -> T:
        return await work

    task = asyncio.ensure_future(run())
    _, waiting = await asyncio.wait([task], timeout=seconds)
    if waiting:
        task.cancel()
        raise TimeoutError
    return None if task.cancelled() else task.result()
