"""Checking a log on its disk: the truth by itself, what is derived against the truth, everything against the head.

    log.db           every segment, the row of them, and the root of their entries       `verify.entries`
    checkpoints.db   one head of the origin, whose note verifies and says the same       `tlog.server.head`
    tiles.db         every tile and bundle, made anew from the entries                   `verify.tiles`
                     the leaf index                                                      `verify.leaves`
    beside them      first of all: nothing that SQLite would apply to what it reads      `tlog.server.stray`

It reads the databases itself and shares no code with what serves them but the formats. Nothing is written. It goes on
behind a damage where that makes sense, so that one run tells all; of each file the first hundred are told one by one.

A deep check hashes everything. A plain one hashes the newest entries and a sample of the others, and ties each to the
signed head through its tiles; where these do not lead there, everything is hashed after all.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.server.errors import DamageFoundError, InUseError
from tlog.server.head import log_verifier, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.mark import MARK_NAME, read_mark
from tlog.server.storage.checkpoints import SCHEMA as CHECKPOINTS_SCHEMA
from tlog.server.storage.leaves import PREFIX_SIZE
from tlog.server.storage.reading import open_reading, read_segments
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.tiles import SCHEMA as TILES_SCHEMA
from tlog.server.stray import check_strays
from tlog.server.verify.entries import EntryCheck
from tlog.server.verify.finding import CHECKPOINTS, LOG, REMEDIES, STRAY, TILES, Findings
from tlog.server.verify.leaves import StoredLeaves
from tlog.server.verify.sample import LeafReader, Sample, edge_is_signed
from tlog.server.verify.tiles import StoredTiles, TileCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from tlog.note import Verifier
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead

    Progress = Callable[[int, int], None]
    """Called with the number of entries that were checked, and of those that there are."""

__all__ = ["CHECKPOINTS", "LOG", "REMEDIES", "TILES", "Findings", "Report", "check_entries", "check_log"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a check of a log says.

    Attributes:
        origin: The log.
        head: The signed head; None where it is lost.
        findings: What is wrong, what is worth knowing, and how much was looked at.
        is_deep: Whether everything was hashed.
    """

    origin: str
    head: SignedHead | None
    findings: Findings
    is_deep: bool


def check_log(config: Config, progress: Progress, *, deep: bool) -> Report:
    """Check a log that nobody uses; it is locked meanwhile.

    Args:
        config: Its configuration.
        progress: Told from time to time how far the check is.
        deep: Whether to hash everything.

    Raises:
        InUseError: A process uses it.
        ConfigError: The configuration has no usable vkey.
    """
    task = _Task(log_verifier(config), Findings(), progress)
    with Lock(config.path(LOCK_NAME)):
        _note_mark(config, task.findings)
        with _damage(task.findings, STRAY):
            check_strays(config)
        if task.findings.total:
            return Report(config.origin, None, task.findings, is_deep=deep)
        head = None
        store = config.path(config.checkpoints)
        with (
            _damage(task.findings, CHECKPOINTS),
            _pages(store, CHECKPOINTS, task.findings, schema=CHECKPOINTS_SCHEMA, deep=deep),
        ):
            head = stored_head(config, store)
        with ExitStack() as stack, _damage(task.findings, LOG):
            pages = _pages(config.path(LOG), LOG, task.findings, schema=LOG_SCHEMA, deep=deep)
            entries = stack.enter_context(pages)
            derived = _open_derived(config, stack, task.findings, deep=deep)
            if (
                not deep
                and head is not None
                and derived
                and Sample(entries, *derived, task.findings).run(head, progress)
            ):
                return Report(config.origin, head, task.findings, is_deep=False)
            _check_all(entries, derived, head, task)
    return Report(config.origin, head, task.findings, is_deep=True)


def _note_mark(config: Config, findings: Findings) -> None:
    """Tell of the mark of a scrub: no damage by itself, and only a start that reads again what it names removes it."""
    try:
        spots = read_mark(config.path(MARK_NAME))
    except DamageFoundError as error:
        findings.notes.append(str(error))
        return
    if spots:
        findings.notes.append(f"a scrub found damage, which the next start reads again: {spots[0]} ({MARK_NAME})")


def check_entries(path: Path, schema: str, head: SignedHead | None, verifier: Verifier, progress: Progress) -> Findings:
    """Check log.db, or a copy of it, that nobody uses: every entry against a signed head.

    Args:
        path: The file.
        schema: What it must be made of; its entries are in the table of log.db.
        head: The signed head; None where it is lost, and log.db is checked by itself.
        verifier: The log's key.
        progress: Told from time to time how far the check is.
    """
    task = _Task(verifier, Findings(), progress)
    with _damage(task.findings, LOG), _pages(path, LOG, task.findings, schema=schema, deep=True) as connection:
        _check_all(connection, None, head, task)
    return task.findings


@dataclass(frozen=True, slots=True)
class _Task:
    """What the parts of a check share."""

    verifier: Verifier
    findings: Findings
    progress: Progress


class _damage:  # noqa: N801 — a context manager
    """Count what makes a file unreadable as damage, and go on behind it; a log in use is none."""

    def __init__(self, findings: Findings, file: str) -> None:
        self._findings = findings
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, (TreeheadError, sqlite3.Error)) or isinstance(error, InUseError):
            return False
        self._findings.damage(self._file, str(error))
        return True


@contextmanager
def _pages(path: Path, name: str, findings: Findings, *, schema: str, deep: bool) -> Iterator[sqlite3.Connection]:
    """Open a database, and let SQLite check its pages, and its indexes where the check is deep."""
    with closing(open_reading(path, schema, alone=True)) as connection:
        check = "integrity_check" if deep else "quick_check"
        for (said,) in connection.execute(f"PRAGMA {check}(10)").fetchall():
            if said != "ok":
                findings.damage(name, f"SQLite says: {' '.join(str(said).split())}")
        yield connection


def _open_derived(
    config: Config, stack: ExitStack, findings: Findings, *, deep: bool
) -> tuple[StoredTiles, StoredLeaves] | None:
    """Open tiles.db; None where it is missing or cannot be read."""
    path = config.path(TILES)
    if not path.exists():
        findings.notes.append("tiles.db is missing; it is derived, and the next start builds it")
        return None
    with _damage(findings, TILES):
        connection = stack.enter_context(_pages(path, TILES, findings, schema=TILES_SCHEMA, deep=deep))
        return StoredTiles(connection, findings), StoredLeaves(connection, findings)
    return None


def _check_all(
    entries: sqlite3.Connection, derived: tuple[StoredTiles, StoredLeaves] | None, head: SignedHead | None, task: _Task
) -> None:
    """Hash every entry, and make anew what is derived from them."""
    findings = task.findings
    check = EntryCheck(head, task.verifier, findings)
    made = TileCheck(derived[0], findings) if derived else None
    prefixes = bytearray()
    done, size = 0, 0 if head is None else head.size
    for part in check.run(read_segments(entries)):
        if made and derived:
            made.add(part)
            if part.first * PREFIX_SIZE == len(prefixes) and part.first < derived[1].end:
                prefixes += b"".join(leaf[:PREFIX_SIZE] for leaf in part.leaves)
        done += len(part.entries)
        task.progress(done, size)
    if made is None or derived is None:
        return
    is_signed = check.is_signed if head is not None else not findings.is_damaged(LOG)
    with _damage(findings, TILES):
        made.finish(
            entries_are_signed=is_signed,
            edge_is_signed=head is not None and not is_signed and edge_is_signed(LeafReader(entries), derived[0], head),
        )
        if is_signed:
            derived[1].check_all(bytes(prefixes), LeafReader(entries).leaf)
        else:
            findings.notes.append("the leaf index was not checked, because log.db is damaged")
