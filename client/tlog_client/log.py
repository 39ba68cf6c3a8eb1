"""A log as its users see it. Results are verified before they are returned; `tlog_client.flow` says what that means.

async with AsyncLog("https://log.example", vkey) as log:
added = await log.add(b"an entry")
added.index, added.proof.format()
"""

from __future__ import annotations

import threading
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, NotFoundError
from tlog_client.flow import BUNDLES, DEFAULT_STATE_DIR, Flows, chunks
from tlog_client.follow import POLL_INTERVAL, follow, tail
from tlog_client.patience import Patience
from tlog_client.run import AsyncRunner, OptionError, SyncRunner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Fetching
    from tlog.policy import Policy
    from tlog_client.flow import Added, Fetched, Published, UncheckedError
    from tlog_client.run import T


class AsyncLog:
    """A log, for code with asyncio. Any number of calls may be under way at once.

    What its methods raise, beside what each says:

    - FormatError: What the log answered breaks its form.
    - ForkProvenError: The log showed two histories; both notes are saved.
    - VerificationError: What the log answered is wrong.
    - PushbackError: The log asks to try later.
    - CouldNotCheckError: No answer, or one that could not be checked.
    - StateError: Trust could not be written.
    """

    def __init__(
        self,
        url: str,
        policy: Policy | str,
        *,
        state_dir: Path | str | None = DEFAULT_STATE_DIR,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the log is, and by whose signature it is believed.

        Args:
            url: Address of the log, http or https.
            policy: The log's vkey, or a policy; never fetched from the log.
            state_dir: Folder in which trust is kept; None keeps it in memory only: each time the past is trusted anew.
            token: Bearer token.
            clock: Seconds that only grow.

        Raises:
            FormatError: Not a vkey.
            OptionError: The URL or the token cannot be used.
            StateError: The kept trust cannot be used.
        """
        self._runner = AsyncRunner(url, token=token)
        self._flows = Flows(policy, state_dir, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what is trusted, and close the connections.

        Raises:
            ForkProvenError: Another process accepted a head that excludes the one trusted here.
            StateError: Trust could not be written.
        """
        try:
            await self._runner.run(self._flows.close())
        finally:
            await self._runner.close()

    async def add(self, entry: bytes, *, key: str | None = None) -> Added:
        """Append an entry of 0 to 65,535 bytes. When this returns, the log can no longer deny it.

        Args:
            entry: The entry.
            key: Idempotency-Key: sent again with the same key, the entry is not appended again, come what may.

        Raises:
            FormatError: The entry is too long.
            OptionError: The key cannot be used.
            UncheckedError: The log says that it appended the entry, and something was missing to check it.
        """
        return await self._runner.run(self._flows.add(entry, key))

    async def add_many(self, entries: Sequence[bytes], *, key: str | None = None) -> list[Added]:
        """Append entries with one request, and return one result for each, in their order.

        They get one head together. An entry that the log had already, or that is there twice, keeps its first index.

        Args:
            entries: At most 4,096, of at most 4 MiB together; `tlog_client.submit.submit_all` takes any number.
            key: Idempotency-Key: sent again with the same key, nothing is appended again, come what may.

        Raises:
            FormatError: An entry is too long.
            OptionError: Too many entries, or the key cannot be used.
            UncheckedError: The log says that it appended the entries, and something was missing to check it.
        """
        return await self._runner.run(self._flows.add_many(entries, key))

    async def complete(self, error: UncheckedError) -> list[Added]:
        """Check what could not be checked when entries were added, without adding anything.

        Raises:
            UncheckedError: Something is still missing.
        """
        return await self._runner.run(self._flows.complete(error))

    async def get(self, index: int) -> Fetched:
        """Return the entry at a zero-based index.

        Raises:
            NotFoundError: The log has no such entry.
        """
        return await self._runner.run(self._flows.get(index))

    async def checkpoint(self) -> Checkpoint:
        """Return the newest head that the log serves, however old: nothing that is signed carries a time."""
        return await self._runner.run(self._flows.checkpoint())

    async def entries(self, start: int, end: int | None = None) -> AsyncGenerator[Published, None]:
        """Yield entries [start, end), a few bundles in memory at a time; to the end of the served head by default.

        Raises:
            NotFoundError: The log has fewer entries.
            OptionError: Not 0 ≤ start ≤ end.
        """
        head = await self.checkpoint()
        for low, high in _range(head, start, end):
            for published in await self._runner.run(self._flows.read(head, low, high)):
                yield published

    async def follow(
        self, *, interval: float = POLL_INTERVAL, notice: Callable[[CouldNotCheckError], None] = lambda _: None
    ) -> AsyncGenerator[Checkpoint, None]:
        """Yield the served head, and then each larger one, consistent with the one before, until this is closed.

        When the log is away, this waits until it is back; only before the first head is that raised.

        Args:
            interval: Seconds between two looks at a log that has no stream of checkpoints.
            notice: Is called once in each outage.
        """
        async with aclosing(follow(self._runner, self._flows, interval, notice)) as heads:
            async for head in heads:
                yield head

    async def tail(
        self,
        start: int | None = None,
        *,
        interval: float = POLL_INTERVAL,
        notice: Callable[[CouldNotCheckError], None] = lambda _: None,
    ) -> AsyncGenerator[Published, None]:
        """Yield each entry from an index on, or those that come from now on, as it is published; as `follow`.

        Raises:
            OptionError: The index is negative.
        """
        if start is not None and start < 0:
            raise OptionError("an index is not negative")
        async with aclosing(tail(self._runner, self._flows, start, interval, notice)) as entries:
            async for published in entries:
                yield published


class Log:
    """A log, for code without asyncio; as `AsyncLog`. Calls from several threads wait for each other."""

    def __init__(
        self,
        url: str,
        policy: Policy | str,
        *,
        state_dir: Path | str | None = DEFAULT_STATE_DIR,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the log is, and by whose signature it is believed; as `AsyncLog`."""
        self._runner = SyncRunner(url, token=token)
        self._flows = Flows(policy, state_dir, clock)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is trusted, and close the connections; as `AsyncLog.close`."""
        try:
            self._run(self._flows.close())
        finally:
            self._runner.close()

    def add(self, entry: bytes, *, key: str | None = None) -> Added:
        """Append an entry; as `AsyncLog.add`."""
        return self._run(self._flows.add(entry, key))

    def add_many(self, entries: Sequence[bytes], *, key: str | None = None) -> list[Added]:
        """Append entries with one request; as `AsyncLog.add_many`."""
        return self._run(self._flows.add_many(entries, key))

    def complete(self, error: UncheckedError) -> list[Added]:
        """Check what could not be checked when entries were added; as `AsyncLog.complete`."""
        return self._run(self._flows.complete(error))

    def get(self, index: int) -> Fetched:
        """Return the entry at an index; as `AsyncLog.get`."""
        return self._run(self._flows.get(index))

    def checkpoint(self) -> Checkpoint:
        """Return the newest head that the log serves; as `AsyncLog.checkpoint`."""
        return self._run(self._flows.checkpoint())

    def entries(self, start: int, end: int | None = None) -> Iterator[Published]:
        """Yield entries [start, end); as `AsyncLog.entries`."""
        head = self.checkpoint()
        for low, high in _range(head, start, end):
            yield from self._run(self._flows.read(head, low, high))

    def follow(
        self, *, interval: float = POLL_INTERVAL, notice: Callable[[CouldNotCheckError], None] = lambda _: None
    ) -> Iterator[Checkpoint]:
        """Yield the served head, and then each larger one; as `AsyncLog.follow`, by looking every few seconds."""
        size, patience = -1, Patience()
        while True:
            delay = interval
            try:
                head = self.checkpoint()
            except CouldNotCheckError as error:
                if size < 0 or not patience.lasts(error):
                    raise
                delay = max(interval, patience.delay(error))
                if patience.failures == 1:
                    notice(error)
            else:
                if head.size > size:
                    size = head.size
                    yield head
            time.sleep(delay)

    def _run(self, flow: Fetching[T]) -> T:
        with self._lock:
            return self._runner.run(flow)


def _range(head: Checkpoint, start: int, end: int | None) -> Iterator[tuple[int, int]]:
    """Return the chunks of a range of entries of a head."""
    end = head.size if end is None else end
    if start < 0 or (start > end and end != head.size):
        raise OptionError("a range of entries is START and END, with START not above END")
    if max(start, end) > head.size:
        raise NotFoundError(f"the log has {head.size} entries")
    return chunks(start, end, BUNDLES)
