"""Restoring log.db from a backup, for the head that the checkpoint store holds now, and for no other.

1  the backup is of this log, and its head has the size and root of the signed head; else refuse
2  a log.db that is whole is left alone: refuse
3  copy the segments of the backup beside it
4  check the copy as `tlogd fsck --deep` would, against the checkpoint store
5  keep the damaged log.db, and what SQLite keeps beside it, under other names; nothing is removed
6  give the copy its name, in one step, and remove tiles.db, which the next start builds anew

Up to step 4 nothing is changed. What was acknowledged after the backup was made is not in it, so a backup that is
smaller than the signed head is refused, and the refusal says how much is missing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tlog.server.backup import SCHEMA, check_copy, copy_entries, read_backup
from tlog.server.config import CONFIG_NAME, format_config
from tlog.server.disk import drafted, remove_database, swapped, sync
from tlog.server.errors import CreateError, DamageFoundError, StartRefusedError, UnusableNameError
from tlog.server.head import log_verifier, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.storage.reading import open_reading
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.segments import empty_wal
from tlog.server.verify import LOG, TILES

if TYPE_CHECKING:
    from tlog.note import Verifier
    from tlog.server.backup import Steps
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead


@dataclass(frozen=True, slots=True)
class Restored:
    """A log that was restored.

    Attributes:
        head: Its signed head.
        data: Its folder.
        aside: Where the damaged log.db is now; None where there was none.
    """

    head: SignedHead
    data: Path
    aside: Path | None = None


def restore(config: Config, file: Path, steps: Steps) -> Restored:
    """Put the entries of a backup in the place of a log.db that is lost or damaged.

    Raises:
        StartRefusedError: The backup does not fit the signed head, log.db is whole, the log is in use, or a file is
            missing that is needed. Nothing was changed.
        DamageFoundError: The backup is damaged. Nothing was changed.
        CreateError: The disk refuses.
    """
    verifier, target = log_verifier(config), config.path(LOG)
    with Lock(config.path(LOCK_NAME)):
        head = stored_head(config, config.path(config.checkpoints))
        _check_fits(file, head, verifier)
        _refuse_whole(target, head, verifier, steps)
        try:
            with swapped(target) as swap:
                _copy(file, swap.draft, head, verifier, steps)
                empty_wal(target)
            remove_database(config.path(TILES))
        except OSError as error:
            raise CreateError(f"{target} could not be written: {error.strerror}") from error
    return Restored(head, Path(config.directory), swap.aside)


def restore_elsewhere(config: Config, file: Path, data: Path, checkpoints: Path | None, steps: Steps) -> Restored:
    """Make a new data directory from a backup; its key and its checkpoint store are used where they are.

    Args:
        config: The configuration of the log.
        file: The backup.
        data: The new folder; must not exist.
        checkpoints: The checkpoint store, which must be the current one; None takes that of the configuration.
        steps: Told what is being done.

    Raises:
        UnusableNameError: The folder exists.
        StartRefusedError: The backup does not fit the signed head, or the checkpoint store is in use or missing.
        DamageFoundError: The backup is damaged.
        CreateError: The disk refuses.
    """
    data, store = data.absolute(), (checkpoints or config.path(config.checkpoints)).absolute()
    if os.path.lexists(data):
        raise UnusableNameError(f"{data} exists; name a new folder, or restore into one with --config alone")
    verifier, head = log_verifier(config), stored_head(config, store)
    _check_fits(file, head, verifier)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{data.name}.restore-", dir=data.parent))
        try:
            with drafted(folder / LOG) as draft:
                _copy(file, draft, head, verifier, steps)
            _write(folder / CONFIG_NAME, format_config(_moved(config, store)))
            _write(folder / "vkey", f"{verifier.vkey}\n")
            sync(folder)
            folder.rename(data)  # fails where a folder with content took the name meanwhile
            sync(data.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise CreateError(f"{data} could not be written: {error.strerror}") from error
    return Restored(head, data)


def _moved(config: Config, store: Path) -> Config:
    """Return a configuration for another folder, whose paths are absolute."""
    secret = config.passphrase.removeprefix("file:")
    return msgspec.structs.replace(
        config,
        key=str(config.path(config.key)),
        passphrase=f"file:{config.path(secret)}" if secret and not secret.startswith("$") else config.passphrase,
        checkpoints=str(store),
        directory="",
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def _check_fits(file: Path, head: SignedHead, verifier: Verifier) -> None:
    """Take step 1."""
    with closing(open_reading(file, SCHEMA, alone=True)) as connection:
        found = read_backup(connection, file, verifier).head
    if found.size < head.size:
        missing = head.size - found.size
        raise StartRefusedError(
            f"the backup holds {found.size} entries, and {head.size} are signed: the newest {missing} are missing, so "
            "the log would contradict its signed head. Nothing was changed. Take a newer backup; from a mirror, the "
            "missing entries come back with: tlogd repair --from URL|DIR"
        )
    if found.size > head.size:
        raise StartRefusedError(
            f"the backup was signed at size {found.size}, and the checkpoint store is at {head.size}: it is an older "
            "copy, and a signed head must never be taken back. Nothing was changed; bring the current checkpoint store"
        )
    if found.root != head.root:
        raise StartRefusedError(
            f"the backup is of another tree: its root at size {head.size} is not the signed one. Nothing was changed. "
            "If both are real, the log has forked; keep the backup and the checkpoint store as evidence"
        )


def _refuse_whole(target: Path, head: SignedHead, verifier: Verifier, steps: Steps) -> None:
    """Take step 2: whatever makes it less than whole is why it is restored."""
    try:
        check_copy(target, LOG_SCHEMA, head, verifier, steps("checking what is there"))
    except DamageFoundError:
        return
    raise StartRefusedError(f"{target} is whole: it has all {head.size} signed entries. Nothing was changed")


def _copy(file: Path, draft: Path, head: SignedHead, verifier: Verifier, steps: Steps) -> None:
    """Take steps 3 and 4."""
    with closing(open_reading(file, SCHEMA, alone=True)) as source:
        copy_entries(source, draft, LOG_SCHEMA, head.size, steps("copying"))
    check_copy(draft, LOG_SCHEMA, head, verifier, steps("checking"))
