"""Backups of a log, made while it is served or not: its entries up to one signed head, and that head.

A backup is one SQLite file. It has the table of log.db, row for row up to the signed size, and one more:

    CREATE TABLE backup (…)         format "treehead/backup/v1", the vkey, the signed note, when it was made

It holds neither the key nor the checkpoint store. The head in it says only what the backup is: which head is the newest
is known to the checkpoint store alone, and that is never restored from a copy.

1  get the signed head: from the server, or from the checkpoint store of a log that is not served
2  copy segments in many short reads, so that a server can empty its WAL in between, up to the signed size
3  check the copy as `tlogd fsck --deep` would, up to the root of the signed head
4  make it durable and give it its name, which must be free
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.server.disk import drafted
from tlog.server.errors import CreateError, DamagedFileError, DamageFoundError, StartRefusedError, UnusableNameError
from tlog.server.head import log_verifier, open_head, read_head
from tlog.server.lock import LOCK_NAME, Glance
from tlog.server.storage import SignedHead
from tlog.server.storage.reading import open_reading, read_segments
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.stray import check_strays
from tlog.server.verify import LOG, check_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from tlog.note import Verifier
    from tlog.server.config import Config
    from tlog.server.storage import Segment
    from tlog.server.verify import Findings, Progress

    Steps = Callable[[str], Progress]
    """Called with the name of the step that begins; returns what is told how far it is."""

FORMAT = "treehead/backup/v1"

SCHEMA = (
    LOG_SCHEMA
    + f"""
CREATE TABLE backup (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    format TEXT NOT NULL CHECK (format = '{FORMAT}'),
    vkey TEXT NOT NULL,
    note BLOB NOT NULL,
    made_ms INTEGER NOT NULL
) STRICT;
"""
)

_COMMIT_SIZE = 8 << 20  # bytes in one transaction of the copy


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup is of.

    Attributes:
        head: The signed head, verified; its epoch is 0.
        made_ms: When it was made, milliseconds since 1970.
    """

    head: SignedHead
    made_ms: int


def make_backup(config: Config, target: Path, now_ms: int, steps: Steps) -> Backup:
    """Copy a log into a new file.

    Args:
        config: Its configuration.
        target: The file; must not exist.
        now_ms: Milliseconds since 1970.
        steps: Told what is being done.

    Raises:
        UnusableNameError: The file exists.
        CreateError: It cannot be written.
        DamageFoundError: The log is damaged; there is no backup.
        StartRefusedError: log.db or the checkpoint store is missing, or cannot be read.
        UnavailableError: The server does not answer.
    """
    if os.path.lexists(target):
        raise UnusableNameError(f"{target} exists; a backup is never written over anything")
    verifier = log_verifier(config)
    with Glance(config.path(LOCK_NAME)) as glance:
        if glance.holder is None:  # a server has looked, before it opened them
            check_strays(config)
    head = read_head(config)
    try:
        with drafted(target) as draft:
            with closing(_open_log(config)) as source:
                copy_entries(source, draft, SCHEMA, head.size, steps("copying"))
            with closing(sqlite3.connect(draft)) as connection, connection:
                row = (0, FORMAT, verifier.vkey, head.note, now_ms)
                connection.execute("INSERT INTO backup (id, format, vkey, note, made_ms) VALUES (?, ?, ?, ?, ?)", row)
            check_copy(draft, SCHEMA, head, verifier, steps("checking"))
    except FileExistsError:
        raise UnusableNameError(f"{target} exists; a backup is never written over anything") from None
    except OSError as error:
        raise CreateError(f"the backup could not be written to {target}: {error.strerror}") from error
    return Backup(SignedHead(head.origin, 0, head.size, head.root, head.note), now_ms)


def _open_log(config: Config) -> sqlite3.Connection:
    try:
        return open_reading(config.path(LOG), LOG_SCHEMA)
    except DamagedFileError as error:
        raise DamageFoundError(str(error)) from error


def copy_entries(
    source: sqlite3.Connection,
    target: Path,
    schema: str,
    size: int,
    progress: Progress,
    *,
    tail: Sequence[Segment] = (),
) -> None:
    """Copy the segments of a log up to a size into an empty database, which the caller makes durable.

    Args:
        source: The log.
        target: The database.
        schema: What it is made of.
        size: The size.
        progress: Told from time to time how far the copy is.
        tail: What follows behind them.

    Raises:
        CreateError: It cannot be written.
        DamageFoundError: The source cannot be read, or no segment ends at the size.
    """
    write_segments(chain(_up_to(source, size), tail), target, schema, lambda end: progress(min(end, size), size))


def write_segments(segments: Iterable[Segment], target: Path, schema: str, progress: Callable[[int], None]) -> None:
    """Write segments into an empty database, which the caller makes durable.

    Args:
        segments: The segments; what they raise passes.
        target: The file, empty or missing.
        schema: What it is made of.
        progress: Told the end of what is written, from time to time.

    Raises:
        CreateError: It cannot be written.
    """
    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            copy.executescript(f"PRAGMA journal_mode = off; PRAGMA synchronous = off; {schema}")
            for part in _parts(segments):
                rows = [tuple(getattr(segment, name) for name in _NAMES) for segment in part]
                copy.execute("BEGIN")
                copy.executemany(_INSERT, rows)
                copy.execute("COMMIT")
                progress(part[-1].end)
    except sqlite3.Error as error:
        raise CreateError(f"the copy could not be written: {error}") from error


_NAMES = ("first", "count", "entries", "root", "leaf_digest", "time_ms", "keys", "digest")
_INSERT = f"INSERT INTO segment ({', '.join(_NAMES)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 — constants


def _up_to(source: sqlite3.Connection, size: int) -> Iterator[Segment]:
    """Yield the segments up to a size, which the last of them must have."""
    end = 0
    try:
        for segment in read_segments(source, end=size):
            end = segment.end
            yield segment
    except sqlite3.Error as error:
        raise DamageFoundError(f"{LOG} cannot be read behind entry {end}: {error}") from error
    if end != size:
        raise DamageFoundError(f"{LOG} holds {end} entries up to the signed size {size}; see: tlogd fsck")


def _parts(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Yield segments in parts of a transaction each."""
    part: list[Segment] = []
    length = 0
    for segment in segments:
        part.append(segment)
        length += len(segment.entries)
        if length >= _COMMIT_SIZE:
            yield part
            part, length = [], 0
    if part:
        yield part


def check_copy(path: Path, schema: str, head: SignedHead, verifier: Verifier, progress: Progress) -> Findings:
    """Check every entry of a copy against a signed head.

    Raises:
        DamageFoundError: They are not the ones that were signed.
    """
    findings = check_entries(path, schema, head, verifier, progress)
    if findings.total:
        damages = [f"{damage.file}: {damage.what}" for damage in findings.damages]
        raise DamageFoundError(f"the entries are damaged: {damages[0]}", damages=damages)
    return findings


def read_backup(connection: sqlite3.Connection, path: Path, verifier: Verifier) -> Backup:
    """Read what a backup is of.

    Raises:
        StartRefusedError: It is not a backup of this log, or does not say.
    """
    try:
        rows = connection.execute("SELECT vkey, note, made_ms FROM backup").fetchall()
        ((vkey, note, made_ms),) = rows if len(rows) == 1 else [("", b"", 0)]
        if vkey != verifier.vkey:
            raise StartRefusedError(
                f"{path} is a backup of another log: of {vkey or 'none'}, and not of {verifier.vkey}"
            )
        checkpoint = open_head(note, verifier)
    except (sqlite3.Error, TreeheadError) as error:
        if isinstance(error, StartRefusedError):
            raise
        raise StartRefusedError(f"{path} holds no signed head of this log: {error}") from error
    return Backup(SignedHead(checkpoint.origin, 0, checkpoint.size, checkpoint.root, note), made_ms)
