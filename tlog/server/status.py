"""What an operator asks first: is it running, how large is it, what is wrong at first sight. Nothing is written.

A look is quick and never fails because of the log's state: what cannot be told is None, and `problems` says why. It
works while the log is served; then the signed head comes from the server, and the rest is read beside it.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tlog.errors import FormatError, TreeheadError
from tlog.freeze import is_freeze
from tlog.note import Signer
from tlog.server.ballast import BALLAST_NAME
from tlog.server.errors import StartRefusedError
from tlog.server.head import log_verifier, served_head, stored_head
from tlog.server.key import read_key_file
from tlog.server.lock import LOCK_NAME, Glance
from tlog.server.mark import MARK_NAME, read_mark
from tlog.server.signer import connect_signer
from tlog.server.storage.database import typed
from tlog.server.storage.reading import open_reading
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.tiles import SCHEMA as TILES_SCHEMA
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tlog.server.config import Config
    from tlog.server.lock import Holder
    from tlog.server.storage import SignedHead

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a log.

    Attributes:
        path: Where it is.
        size: Its bytes, with those of its write-ahead log; None where it is missing.
        free: Free bytes on its volume; None where the folder is missing.
    """

    path: Path
    size: int | None
    free: int | None


@dataclass(slots=True)
class Status:
    """The state of a log. Owned by whoever asked.

    Attributes:
        holder: The process that uses the log; None for a log that is not in use.
        head: The signed head.
        stored: Entries in log.db.
        derived: Entries that have tiles.
        signed_ms: When the newest signed entry was stored, milliseconds since 1970.
        key: What the key is: "plain", "encrypted", or why it cannot be used.
        frozen: Whether the log was ended.
        read_only: Why no entry is taken; empty where entries are.
        files: Its files by name.
        problems: What could not be told, or is not as it should be.
    """

    holder: Holder | None = None
    head: SignedHead | None = None
    stored: int | None = None
    derived: int | None = None
    signed_ms: int | None = None
    key: str = ""
    frozen: bool = False
    read_only: str = ""
    files: dict[str, File] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def look(config: Config) -> Status:
    """Return the state of a configured log.

    Raises:
        ConfigError: The configuration has no usable vkey.
    """
    log_verifier(config)
    status = Status()
    store = config.path(config.checkpoints)
    with Glance(config.path(LOCK_NAME)) as glance:
        status.holder = glance.holder
        if glance.holder is None:  # nobody begins to use it meanwhile
            status.head = _try(status, lambda: stored_head(config, store))
            _look_inside(config, status, alone=True)
    if status.holder is not None:
        holder = status.holder
        status.head = _try(status, lambda: served_head(config, holder))
        _look_inside(config, status, alone=False)
    status.key = _try(status, lambda: _key_state(config)) or "unusable"
    for name, path in (
        ("log.db", config.path("log.db")),
        ("tiles.db", config.path("tiles.db")),
        ("checkpoints", store),
        ("ballast", config.path(BALLAST_NAME)),
    ):
        status.files[name] = _file(path)
    for spot in _try(status, lambda: read_mark(config.path(MARK_NAME))) or []:
        status.problems.append(f"a scrub found damage: {spot}")
    status.read_only = _why_read_only(config, status)
    return status


def _look_inside(config: Config, status: Status, *, alone: bool) -> None:
    """Look into the databases."""
    _try(status, lambda: _look_at_entries(config, status, alone=alone))
    status.derived = _try(status, lambda: _derived(config.path("tiles.db"), alone=alone))


def _try(status: Status, look: Callable[[], T]) -> T | None:
    """Return what a look finds; where it fails, None, and a problem is noted."""
    try:
        return look()
    except (TreeheadError, OSError) as error:
        problem = str(error)
    except sqlite3.Error as error:
        problem = f"a database is damaged: {error}; see: tlogd fsck"
    if problem not in status.problems:
        status.problems.append(problem)
    return None


def _key_state(config: Config) -> str:
    if config.signer:
        return _signer_state(config)
    found = read_key_file(config.path(config.key))
    if found.verifier.vkey != config.vkey:
        raise FormatError(f"the key {config.path(config.key)} is of {found.verifier.vkey}, and not of {config.vkey}")
    if isinstance(found, Signer):
        return "plain"
    passphrase = config.passphrase_path()
    if passphrase is None or not passphrase.exists():
        raise StartRefusedError(
            f"the key is encrypted, and its passphrase is missing: passphrase = {config.passphrase!r}"
        )
    return "encrypted"


def _signer_state(config: Config) -> str:
    signer = connect_signer(config)
    try:
        return f"held by {config.signer}, which has signed up to size {signer.newest().size}"
    finally:
        signer.close()


def _look_at_entries(config: Config, status: Status, *, alone: bool) -> None:
    """Read the newest segments: how many entries there are, when the newest came, and whether it ended the log."""
    select = "SELECT first, count, time_ms, entries FROM segment WHERE first < ? ORDER BY first DESC LIMIT 1"
    with closing(open_reading(config.path("log.db"), LOG_SCHEMA, alone=alone)) as connection:
        newest = connection.execute(select, (2**63 - 1,)).fetchone()
        status.stored = sum(typed(newest, int, int, int, bytes)[:2]) if newest else 0
        signed = connection.execute(select, (status.head.size,)).fetchone() if status.head else None
    if signed:
        first, count, status.signed_ms, framed = typed(signed, int, int, int, bytes)
        last = parse_bundle(framed, count)[-1]
        status.frozen = is_freeze(last, first + count - 1, log_verifier(config))


def _derived(path: Path, *, alone: bool) -> int | None:
    if not path.exists():  # it is built at the next start
        return 0
    with closing(open_reading(path, TILES_SCHEMA, alone=alone)) as connection:
        row = connection.execute("SELECT size FROM position").fetchone()
    return int(typed(row, int)[0]) if row else None


def _file(path: Path) -> File:
    sizes = [part.stat().st_size for part in (path, path.with_name(f"{path.name}-wal")) if part.is_file()]
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else None
    return File(path, sum(sizes) if path.is_file() else None, free)


def _why_read_only(config: Config, status: Status) -> str:
    if status.frozen:
        return "it was ended by its last entry"
    if status.stored is not None and status.stored >= config.limits.tree_size:
        return f"it has reached its largest size, limits.tree_size = {config.limits.tree_size}"
    free = [file.free for name, file in status.files.items() if name != "tiles.db" and file.free is not None]
    if free and min(free) < config.limits.free_bytes:
        return f"less than limits.free_bytes = {config.limits.free_bytes} are free on its disk"
    return ""
