"""A log as its users see it: add, get, checkpoint. Results are verified before they are returned.

Verified means: the policy's signature over the head, the leaf hash of the very bytes of the entry, its inclusion in the
head at its index, and the head's consistency with the last one that was trusted.

    async with AsyncLog("https://log.example", vkey) as log:
        added = await log.add(b"an entry")
        added.index, added.proof.format()

`Flows` says what happens, once; `AsyncLog` and `Log` only run it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, FormatError, VerificationError
from tlog.fetch import fetch_add, fetch_checkpoint, fetch_entry
from tlog.merkle import leaf_hash, verify_inclusion
from tlog.policy import Policy
from tlog.tile import MAX_ENTRY_SIZE
from tlog_client.run import AsyncRunner, OptionError, SyncRunner
from tlog_client.state import default_state_dir
from tlog_client.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tlog.checkpoint import Checkpoint
    from tlog.fetch import Answer, Fetching
    from tlog.proof import TlogProof

DEFAULT_STATE_DIR = "$XDG_STATE_HOME/treehead"
"""Stands for what `tlog_client.state.default_state_dir` returns."""

_MAX_INDEX = (1 << 63) - 2


class UncheckedError(CouldNotCheckError):
    """The log answered that it appended an entry, and something was missing to check it: do not add it again.

    Attributes:
        answer: What the log said, with index and checkpoint.
    """

    def __init__(self, message: str, *, answer: Answer) -> None:
        """Keep the answer."""
        super().__init__(message)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Added:
    """An entry that the log appended, or had already; verified.

    Attributes:
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        proof: Proves the entry offline; `.format()` writes a .tlog-proof file.
        checkpoint: The head that the proof leads to.
    """

    index: int
    leaf_hash: bytes
    proof: TlogProof
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Fetched:
    """An entry that the log returned; verified.

    Attributes:
        entry: The entry.
        index: Zero-based index of the entry.
        leaf_hash: Leaf hash, 32 bytes.
        proof: Proves the entry offline; `.format()` writes a .tlog-proof file.
        checkpoint: The head that the proof leads to.
    """

    entry: bytes
    index: int
    leaf_hash: bytes
    proof: TlogProof
    checkpoint: Checkpoint


class Flows:
    """What a client does with a log, as generators that yield requests; several may be under way at once."""

    def __init__(self, policy: Policy | str, state_dir: Path | str | None, clock: Callable[[], float]) -> None:
        """Load trust; see `AsyncLog`."""
        if state_dir == DEFAULT_STATE_DIR:
            state_dir = default_state_dir()
        trusting = Policy.of_log(policy) if isinstance(policy, str) else policy
        self._trust = Trust(trusting, None if state_dir is None else Path(state_dir), clock)

    def add(self, entry: bytes) -> Fetching[Added]:
        """Append an entry; see `AsyncLog.add`."""
        if len(entry) > MAX_ENTRY_SIZE:
            raise FormatError(f"an entry has at most {MAX_ENTRY_SIZE} bytes, not {len(entry)}")
        answer = yield from fetch_add(entry, self._trust.size)
        try:
            head = yield from self._verify(answer, entry)
        except CouldNotCheckError as error:
            raise UncheckedError(
                f"the log says that it appended the entry at index {answer.index}; that could not be checked: {error}",
                answer=answer,
            ) from error
        return Added(answer.index, answer.leaf_hash, answer.tlog_proof(), head)

    def get(self, index: int) -> Fetching[Fetched]:
        """Return the entry at an index; see `AsyncLog.get`."""
        if not 0 <= index <= _MAX_INDEX:
            raise OptionError(f"an index is a number from 0 to {_MAX_INDEX}")
        answer = yield from fetch_entry(index)
        if answer.index != index or answer.entry is None:
            raise VerificationError(f"the log answered with something else than entry {index}")
        head = yield from self._verify(answer, answer.entry)
        return Fetched(answer.entry, index, answer.leaf_hash, answer.tlog_proof(), head)

    def checkpoint(self) -> Fetching[Checkpoint]:
        """Return the newest head that the log serves; see `AsyncLog.checkpoint`."""
        signed = self._trust.open((yield from fetch_checkpoint()))
        yield from self._trust.accept(signed)
        return signed.head

    def close(self) -> Fetching[None]:
        """Write what is trusted."""
        yield from self._trust.close()

    def _verify(self, answer: Answer, entry: bytes) -> Fetching[Checkpoint]:
        signed = self._trust.open(answer.checkpoint)
        if answer.leaf_hash != leaf_hash(entry):
            raise VerificationError(f"the log answered with the leaf hash of another entry than {answer.index}")
        verify_inclusion(answer.leaf_hash, answer.index, signed.head.size, answer.proof, signed.head.root)
        yield from self._trust.accept(signed, answer.consistency)
        return signed.head


class AsyncLog:
    """A log, for code with asyncio. Any number of calls may be under way at once."""

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

    async def add(self, entry: bytes) -> Added:
        """Append an entry of 0 to 65,535 bytes. When this returns, the log can no longer deny it.

        Raises:
            FormatError: The entry is too long, or the answer breaks its form.
            ForkProvenError: The log showed two histories.
            VerificationError: The answer is wrong.
            PushbackError: The log asks to try later.
            CouldNotCheckError: No answer, or one that could not be checked.
        """
        return await self._runner.run(self._flows.add(entry))

    async def get(self, index: int) -> Fetched:
        """Return the entry at a zero-based index.

        Raises:
            NotFoundError: The log has no such entry.
            As `add`.
        """
        return await self._runner.run(self._flows.get(index))

    async def checkpoint(self) -> Checkpoint:
        """Return the newest head that the log serves. It may be older than it should be: nothing signed carries a time.

        Raises:
            As `add`.
        """
        return await self._runner.run(self._flows.checkpoint())


class Log:
    """A log, for code without asyncio. Calls from several threads wait for each other."""

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
        with self._lock:
            try:
                self._runner.run(self._flows.close())
            finally:
                self._runner.close()

    def add(self, entry: bytes) -> Added:
        """Append an entry; as `AsyncLog.add`."""
        with self._lock:
            return self._runner.run(self._flows.add(entry))

    def get(self, index: int) -> Fetched:
        """Return the entry at an index; as `AsyncLog.get`."""
        with self._lock:
            return self._runner.run(self._flows.get(index))

    def checkpoint(self) -> Checkpoint:
        """Return the newest head that the log serves; as `AsyncLog.checkpoint`."""
        with self._lock:
            return self._runner.run(self._flows.checkpoint())
