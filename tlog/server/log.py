"""One open log: adding, reading and proving, each answer verified before it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING

from tlog.errors import NotFoundError
from tlog.freeze import is_freeze
from tlog.note import parse_vkey
from tlog.server.anchor import ANCHOR_MARK, compare_note
from tlog.server.anchored import AnchorWriter
from tlog.server.clock import Clock, ClockError, steady, wall_clock_ms
from tlog.server.duplicates import Duplicates
from tlog.server.errors import CommitError, ReadOnlyError
from tlog.server.idempotency import key_digest
from tlog.server.lock import LOCK_NAME, announce
from tlog.server.mark import MARK_NAME
from tlog.server.metrics import Gauges, Meter
from tlog.server.prover import Prover
from tlog.server.scrub import Files, Scrub, scrubbing
from tlog.server.sequencer import End, Placed, Sequencer
from tlog.server.space import Space
from tlog.server.startup import Opened, open_parts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tlog.server.config import Config
    from tlog.server.idempotency import RequestKey
    from tlog.server.limit import Limits
    from tlog.server.pool import Answer, Submission
    from tlog.server.storage import SignedHead

Fatal = Callable[[BaseException], None]
"""Called when a commit failed or its outcome is unknown; a server ends its process here and now."""


class ServedLog(Prover):
    """An open log. Owned by the event loop.

    Attributes:
        origin: Its name.
        limits: How much it takes.
        tree: What is visible.
        closing: Whether it is about to end.
        meter: What is counted.
        anchor: What keeps the newest head outside; None where nothing does.
        damage: What was found damaged while it was served; empty where nothing was.
    """

    def __init__(
        self,
        config: Config,
        parts: Opened,
        duplicates: Duplicates,
        space: Space,
        writer: Sequencer | None,
        read_only: str,
    ) -> None:
        """Serve what a tree holds.

        Args:
            config: The configuration.
            parts: The open files, and what is visible.
            duplicates: Finds entries by their leaf hash.
            space: The disks that it is written to.
            writer: What appends to it; None where nothing is appended any more.
            read_only: Why nothing is appended; empty where something is.
        """
        self.origin = config.origin
        self.limits: Limits = config.limits
        super().__init__(parts.tree)
        self.closing = False
        self._writer = writer
        self._read_only = read_only
        self._last = parts.head
        self._parts = parts
        self._lock = config.path(LOCK_NAME)
        self._files = [config.path("log.db"), config.path("tiles.db"), config.path(config.checkpoints)]
        self.meter = writer.meter if writer else Meter(advanced_at=monotonic())
        self._duplicates = duplicates
        self._space = space
        self._failed = False
        self.anchor: AnchorWriter | None = None
        self.damage = ""

    @property
    def head(self) -> SignedHead:
        """The served head: the newest signed one, as this log has no policy."""
        return self._writer.head if self._writer else self._last

    def announce(self, url: str) -> None:
        """Tell other processes of the operator where the log is served."""
        announce(self._lock, url)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing is appended any more, whatever happens."""
        return self._writer is None

    def check_admission(self, key: str | None = None) -> None:
        """Refuse early what would be refused anyway; nothing that has an answer under its idempotency key.

        Raises:
            FormatError: That is no key.
            ReadOnlyError: Nothing is appended any more.
            NoSpaceError: The disk is too full.
            StoppedError: The log is closing.
            PushbackError: Too much is waiting, or the clock is not believed.
        """
        writer = self._writable()
        if key is None or not writer.admission.knows(key_digest(key)):
            writer.check_admission()

    async def add(self, entry: bytes, request: RequestKey | None = None) -> Placed:
        """Append an entry; see Sequencer."""
        (placed,) = await self.add_many([entry], request)
        return placed

    async def add_many(self, entries: Sequence[bytes], request: RequestKey | None = None) -> list[Placed]:
        """Append entries in one commit; see Sequencer."""
        return await self._writable().add(entries, request)

    def submit(self, entry: bytes, answer: Answer) -> Submission:
        """Admit an entry now, or refuse it; the answer is told of the outcome. See Sequencer."""
        if self._writer is None:
            raise ReadOnlyError(self._read_only)
        return self._writer.submit([entry], answer)

    async def sign_end(self, reason: str) -> bytes:
        """Return the signed entry that would end the log where it is now.

        Raises:
            ReadOnlyError: Nothing is appended any more.
            FormatError: The reason is too long, or not one line.
            SigningError: The signer does not sign it.
        """
        signer, size = self._parts.signer, self.head.size
        if signer is None:
            raise ReadOnlyError(self._read_only)
        return await self._parts.writer.run(lambda _: signer.freeze(size, reason))

    async def find(self, leaf_hash: bytes) -> int:
        """Return the first index of an entry by its leaf hash.

        Raises:
            NotFoundError: No signed tree has it.
            DamageError: What is stored does not verify.
        """
        (index,) = await self._duplicates.find([leaf_hash])
        if index is None:
            raise NotFoundError("no signed tree has an entry with this leaf hash")
        return index

    async def wait_for_head(self, size: int) -> SignedHead:
        """Return the served head as soon as it is larger than a size; of a log that has ended, never."""
        if self._writer is None and self._last.size <= size:
            await asyncio.get_running_loop().create_future()
        return await self._writable().wait_for_head(size) if self._writer else self._last

    def is_ready(self) -> bool:
        """Return whether the log does what it is there for: to sign in time what it takes. An idle log does."""
        return not self.why_not_ready()

    def why_not_ready(self) -> str:
        """Return why the log does not sign in time what it takes; empty where it does."""
        if self.closing or self._failed:
            return "it is closing" if self.closing else "it has stopped"
        if self._writer is None:
            return ""
        if self._writer.halted:
            return self._writer.halted
        try:
            self._writer.read_clock()
        except ClockError as error:
            return str(error)
        return "an admitted entry waits for its signature" if self._writer.is_late() else ""

    def is_healthy(self) -> bool:
        """Return whether a restart would not help: a log that waits for its clock, or found damage, goes on reading."""
        if self.is_ready():  # which looks at the clock
            return True
        return self._writer is not None and (bool(self._writer.halted) or self._writer.is_clock_stopped())

    def halt(self, reason: str) -> None:
        """Sign nothing any more, and go on reading."""
        if self._writer is not None:
            self._writer.halt(reason)

    def condemn(self, reason: str) -> None:
        """Take its files for damaged: sign nothing any more, and go on reading, because every answer is verified."""
        self.damage = self.damage or reason
        self.halt(self.damage)

    def gauges(self) -> Gauges:
        """Return what the log is like now."""
        pool, overlay = self._writer.pool if self._writer else None, self._parts.derived.overlay
        return Gauges(
            size=self.head.size,
            is_ready=self.is_ready(),
            is_clock_stopped=self._writer is not None and self._writer.is_clock_stopped(),
            pool_entries=pool.entries if pool else 0,
            pool_bytes=pool.bytes if pool else 0,
            lag=overlay.size - overlay.position,
            keys=len(self._parts.keys),
            free=self._space.free,
            wal=sum(map(_wal_size, self._files)),
        )

    def _writable(self) -> Sequencer:
        if self._writer is None:
            raise ReadOnlyError(self._read_only)
        return self._writer

    def fail(self) -> None:
        """Be not ready from now on."""
        self._failed = True


def _wal_size(database: Path) -> int:
    """Return the bytes of a database's write-ahead log; 0 where it has none."""
    try:
        return database.with_name(f"{database.name}-wal").stat().st_size
    except OSError:
        return 0


@asynccontextmanager
async def open_log(
    config: Config,
    on_fatal: Fatal,
    clock_ms: Callable[[], int] = wall_clock_ms,
    *,
    steady_ms: Callable[[], int] | None = None,
    read_only: bool = False,
) -> AsyncIterator[ServedLog]:
    """Open a log, run it, and close it when every admitted entry is signed.

    Args:
        config: Its configuration.
        on_fatal: Called at once when a commit fails.
        clock_ms: The wall clock, milliseconds since 1970.
        steady_ms: A clock that is never set, and counts milliseconds; None takes the system's.
        read_only: Whether it takes no entries, and needs no key.

    Raises:
        StartRefusedError: The state on disk does not fit together.
    """
    now_ms = clock_ms()
    clock = Clock(clock_ms, steady_ms or steady(now_ms))
    async with open_parts(config, now_ms, read_only=read_only) as parts:
        served, sequencer = _assemble(config, parts, clock, on_fatal)
        running = _running(config, parts, sequencer, served, on_fatal) if sequencer else nullcontext()
        async with running, _scrubbed(config, parts, served, clock_ms):
            yield served


def _assemble(config: Config, parts: Opened, clock: Clock, on_fatal: Fatal) -> tuple[ServedLog, Sequencer | None]:
    """Put a log together; what appends to it is None where nothing is appended any more."""
    why = "this server is read-only" if parts.commit is None else ""
    if not why and is_freeze(parts.last, parts.head.size - 1, parse_vkey(config.vkey)):
        why = "the log was ended for ever by its last entry"
    duplicates = Duplicates(parts.derived.overlay, parts.tree, parts.derived.leaves, parts.reader, parts.leaf_store)
    places, floor, sequencer = [config.path("log.db"), config.path(config.checkpoints)], config.limits.free_bytes, None
    space = Space(places, floor)
    if not why and parts.commit is not None:
        space = Space(places, floor, on_gone=on_fatal)
        end = End(parts.writer, parts.commit, parts.head, parts.derived.overlay, duplicates, parts.keys, space)
        sequencer = Sequencer(end, config.limits, clock, dedup=config.dedup)
    return ServedLog(config, parts, duplicates, space, sequencer, why), sequencer


@asynccontextmanager
async def _running(
    config: Config, parts: Opened, sequencer: Sequencer, served: ServedLog, on_fatal: Fatal
) -> AsyncIterator[None]:
    """Append to a log until every admitted entry is signed; the anchor has the last head as well."""
    async with _anchored(config, served):
        appending, deriving = _start(parts, sequencer, served, on_fatal)
        try:
            yield
        finally:
            served.closing = True
            sequencer.close()
            await asyncio.wait([appending])
            deriving.cancel()
            await asyncio.wait([deriving])


def _scrubbed(
    config: Config, parts: Opened, served: ServedLog, clock_ms: Callable[[], int]
) -> AbstractAsyncContextManager[None]:
    """Read everything again and again, unless the configuration turns that off."""
    pace = config.limits.scrub_bytes
    if not pace:
        return nullcontext()
    files = Files(config.path("log.db"), config.path("tiles.db"), config.path(MARK_NAME))
    scrub = Scrub(files, parts.derived.overlay, pace, served.meter, now_ms=clock_ms, halt=served.condemn)
    return scrubbing(scrub, served.condemn)


@asynccontextmanager
async def _anchored(config: Config, served: ServedLog) -> AsyncIterator[None]:
    """Keep a copy of the newest head outside, where the configuration names a file for it."""
    if not config.anchor_file:
        yield
        return
    served.anchor = AnchorWriter(
        config.path(config.anchor_file),
        config.path(ANCHOR_MARK),
        lambda note: compare_note(config, note, served.head, served.tree),
        served.halt,
    )
    task = asyncio.create_task(served.anchor.run(served.wait_for_head, config.limits.anchor_seconds), name="anchor")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await served.anchor.finish(served.head)


def _start(
    parts: Opened, sequencer: Sequencer, served: ServedLog, on_fatal: Fatal
) -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """Start the sequencer and the follower; whatever ends one of them before its time ends the log."""
    appending = asyncio.create_task(sequencer.run(), name="sequencer")
    deriving = asyncio.create_task(parts.derived.follower.run(sequencer.advanced), name="follower")

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() and task is deriving and appending.done():
            return
        error = CommitError(f"the {task.get_name()} was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            served.fail()
            sequencer.close()
            on_fatal(error)  # a server ends here: an unknown outcome is not answered
            sequencer.abandon()

    for task in (appending, deriving):
        task.add_done_callback(ended)
    return appending, deriving
