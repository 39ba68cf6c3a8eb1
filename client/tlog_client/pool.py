"""Worker processes that check ranges of a log: each fetches and hashes on its own, so that every core is used.

    parent  → worker    a Task for each free place
    worker  → parent    the number of bundles that were read; a Done for each task; a Stopped where it cannot go on

A worker has a few ranges under way at once: while one is hashed, the answers for another arrive. It ends when its pipe
does, which is also how it learns that the parent was killed. No worker writes anything, so ending it loses nothing.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, TypeVar

from tlog.errors import CouldNotCheckError, PushbackError, TreeheadError, UnavailableError
from tlog.fetch import check, fetch_checkpoint
from tlog.fsck import check_range, fetch_each
from tlog_client.direct import DirectRunner
from tlog_client.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from multiprocessing.context import SpawnProcess
    from typing import Self

    from tlog.damage import Checked
    from tlog.fetch import Fetching, Request, Response
    from tlog_client.run import AsyncRunner

T = TypeVar("T")

PLACES = 3
"""Ranges that a worker has under way at once."""

ATTEMPTS = 5
"""How often in a row a request may fail before it counts as failed."""

_BUSY = (429, 503)
_END_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """One range to check.

    Attributes:
        size: Size of the tree.
        number: Number of the range.
        expected: The hash that it must have; None where it is not known.
    """

    size: int
    number: int
    expected: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """What the check of a range has found.

    Attributes:
        number: Number of the range.
        checked: What was found.
    """

    number: int
    checked: Checked


@dataclass(frozen=True, slots=True)
class Stopped:
    """The log does not answer any more.

    Attributes:
        reason: Why, for people.
    """

    reason: str


class WorkerError(TreeheadError):
    """A worker process ended that should not have."""


class GoneError(Exception):
    """The log does not answer at all."""


class Patient:
    """Drives flows, and asks again where the log is busy or an answer was lost.

    What fails again and again while the log still answers something else is left to the flow.
    """

    def __init__(
        self,
        runner: AsyncRunner,
        advance: Callable[[int], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take a runner, what is called with each number of bundles that were read, and what waits."""
        self._runner = runner
        self._advance = advance
        self._sleep = sleep
        self._failed: set[str] = set()  # paths for which nobody waits a second time

    async def run(self, flow: Fetching[T]) -> T:
        """Run a flow to its end.

        Raises:
            TreeheadError: Whatever the flow raises.
        """
        with closing(flow):
            try:
                requests = next(flow)
                while True:
                    try:
                        responses = await self._send(requests)
                    except UnavailableError as error:
                        requests = flow.throw(error)
                    else:
                        self._advance(sum(request.path.startswith("tile/entries/") for request in requests))
                        requests = flow.send(responses)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration is not generic

    async def _send(self, requests: list[Request]) -> list[Response]:
        """Return the response to each request, in order: the last one where the log stays busy.

        Raises:
            UnavailableError: One of them could not be got.
        """
        answers: dict[int, Response] = {}
        patience = Patience()
        while True:
            waiting = [at for at in range(len(requests)) if at not in answers or answers[at].status in _BUSY]
            failure = await self._try([requests[at] for at in waiting], waiting, answers)
            if failure is None:
                return [answers[at] for at in range(len(requests))]
            left = [at for at in waiting if at not in answers or answers[at].status in _BUSY]
            if len(left) < len(waiting):
                patience.failures = 0  # a log that limits its clients answers little by little
            paths, delay = {requests[at].path for at in left}, patience.delay(failure)
            if patience.failures >= ATTEMPTS or paths <= self._failed:
                await self._give_up(paths, failure)
                if isinstance(failure, UnavailableError):
                    raise failure
                return [answers[at] for at in range(len(requests))]
            await self._sleep(delay)

    async def _try(
        self, requests: list[Request], places: list[int], answers: dict[int, Response]
    ) -> CouldNotCheckError | None:
        """Put answers in their places, and return why some are still missing."""
        try:
            responses = await self._runner.run(_ask(requests))
        except UnavailableError as error:
            return error
        answers.update(zip(places, responses, strict=True))
        return _pushback(response for response in responses if response.status in _BUSY)

    async def _give_up(self, paths: set[str], failure: CouldNotCheckError) -> None:
        """Remember what failed; where the log answers nothing else either, there is no use in going on."""
        try:
            await self._runner.run(fetch_checkpoint())
        except CouldNotCheckError as error:
            raise GoneError(str(failure)) from error
        self._failed |= paths


def _ask(requests: list[Request]) -> Fetching[list[Response]]:
    responses = yield requests
    return responses


def _pushback(busy: Iterable[Response]) -> PushbackError | None:
    """Return what the log asks for: of several waits the longest."""
    errors: list[PushbackError] = []
    for response in busy:
        try:
            check(response)
        except PushbackError as error:
            errors.append(error)
    return max(errors, key=lambda error: error.retry_after or 0, default=None)


# The worker.


def work(pipe: Connection, url: str, token: str | None) -> None:
    """Check ranges until the pipe ends."""
    gc.freeze()  # what the imports made stays, and is not looked at again
    asyncio.run(_work(pipe, url, token))


async def _work(pipe: Connection, url: str, token: str | None) -> None:
    def receive() -> None:
        group.create_task(_check(pipe, patient, _receive_task(pipe)))

    async with DirectRunner(url, token=token) as runner, asyncio.TaskGroup() as group:
        patient = Patient(runner, lambda bundles: _report(pipe, bundles))
        asyncio.get_running_loop().add_reader(pipe.fileno(), receive)
        await asyncio.Event().wait()


async def _check(pipe: Connection, patient: Patient, task: Task) -> None:
    try:
        checked = await patient.run(fetch_each(check_range(task.size, task.number, task.expected)))
    except GoneError as error:
        _report(pipe, Stopped(str(error)))
    else:
        _report(pipe, Done(task.number, checked))


def _receive_task(pipe: Connection) -> Task:
    try:
        task = pipe.recv()
    except (EOFError, OSError):
        os._exit(0)
    assert isinstance(task, Task)  # noqa: S101  # nothing else is sent
    return task


def _report(pipe: Connection, message: Done | Stopped | int) -> None:
    try:
        pipe.send(message)
    except OSError:
        os._exit(0)  # nobody listens any more, and nothing here is worth closing


def check_here(url: str, token: str | None, task: Task) -> Done:
    """Check one range in this process, which for one is faster than to start another.

    Raises:
        UnavailableError: The log does not answer any more.
    """

    async def check() -> Checked:
        async with DirectRunner(url, token=token) as runner:
            return await Patient(runner).run(fetch_each(check_range(task.size, task.number, task.expected)))

    try:
        return Done(task.number, asyncio.run(check()))
    except GoneError as error:
        raise UnavailableError(str(error)) from error


# The parent.


class Pool:
    """Worker processes; they end with the context."""

    def __init__(self, url: str, token: str | None, workers: int) -> None:
        """Take where the log is, and how many processes to start."""
        self._arguments = (url, token)
        self._workers = workers
        self._processes: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> Self:
        """Start the processes; a signal that reaches all of them, as Ctrl-C does, is only the parent's business."""
        context = multiprocessing.get_context("spawn")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # inherited
        try:
            for _ in range(self._workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, *self._arguments), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process
        except OSError:
            self.__exit__()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._processes:
            pipe.close()
        for process in self._processes.values():
            process.join(_END_TIMEOUT)
            if process.is_alive():
                process.kill()
                process.join()

    def run(self, tasks: Iterable[Task]) -> Iterator[Done | int]:
        """Yield the result of each task, in any order, and in between numbers of bundles that were read.

        Raises:
            UnavailableError: The log does not answer any more.
            WorkerError: A worker ended.
        """
        waiting = iter(tasks)
        under_way = 0
        for pipe in [pipe for _ in range(PLACES) for pipe in self._processes]:
            under_way += _hand_out(pipe, waiting)
        while under_way:
            ready = wait(list(self._processes))
            for pipe in [pipe for pipe in self._processes if pipe in ready]:
                message = _receive(pipe)
                if isinstance(message, Done):
                    under_way += _hand_out(pipe, waiting) - 1
                yield message


def _hand_out(pipe: Connection, waiting: Iterator[Task]) -> int:
    """Give a worker the next task; return how many that were."""
    task = next(waiting, None)
    if task is None:
        return 0
    with suppress(BrokenPipeError):  # the next answer of the worker is the end of its pipe
        pipe.send(task)
    return 1


def _receive(pipe: Connection) -> Done | int:
    try:
        message = pipe.recv()
    except (EOFError, OSError) as error:
        raise WorkerError("a worker process ended; what was checked is kept: run the same command again") from error
    if isinstance(message, Stopped):
        raise UnavailableError(message.reason)
    assert isinstance(message, (Done, int))  # noqa: S101  # nothing else is sent
    return message
