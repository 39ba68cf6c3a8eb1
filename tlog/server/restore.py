"""Restoring log.db from a backup, for the head that the checkpoint store holds now, and for no other.

1  the backup is of this log, and its head has the size and root of the signed head; else refuse
2  a log.db that is whole is left alone: refuse
3  nothing has seen more than the signed head (`unseen`); what the damaged log.db holds behind it is nothing, or the one
   commit that the next start signs, which is kept: anything else refuses
4  copy the segments of the backup beside it, and that commit
5  check the copy as `tlogd fsck --deep` would, against the checkpoint store
6  keep the damaged log.db, and what SQLite keeps beside it, under other names; nothing is removed
7  give the copy its name, in one step, and remove tiles.db, which the next start builds anew

Up to step 5 nothing is changed. What was acknowledged after the backup was made is not in it, so a backup that is
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

from tlog.errors import VerificationError
from tlog.server.anchor import ANCHOR_MARK, is_url
from tlog.server.backup import SCHEMA, check_copy, copy_entries, read_backup
from tlog.server.config import CONFIG_NAME, format_config
from tlog.server.discard import find_tail, open_damaged, signed_tree
from tlog.server.disk import drafted, remove_database, swapped, sync
from tlog.server.errors import CreateError, DamageFoundError, StartRefusedError, UnusableNameError
from tlog.server.head import log_verifier, stored_head
from tlog.server.lock import LOCK_NAME, Lock
from tlog.server.storage.reading import open_reading
from tlog.server.storage.segments import SCHEMA as LOG_SCHEMA
from tlog.server.storage.segments import empty_wal
from tlog.server.stray import check_strays
from tlog.server.unseen import check_derived, check_unseen
from tlog.server.verify import LOG, TILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.note import Verifier
    from tlog.server.backup import Steps
    from tlog.server.config import Config
    from tlog.server.discard import Tail
    from tlog.server.storage import Segment, SignedHead


@dataclass(frozen=True, slots=True)
class Restored:
    """A log that was restored.

    Attributes:
        head: Its signed head.
        data: Its folder.
        aside: Where the damaged log.db is now; None where there was none.
        unsigned: Entries behind the head that were kept, and that the next start signs.
    """

    head: SignedHead
    data: Path
    aside: Path | None = None
    unsigned: int = 0


def restore(config: Config, file: Path, steps: Steps) -> Restored:
    """Put the entries of a backup in the place of a log.db that is lost or damaged.

    Raises:
        StartRefusedError: The backup does not fit the signed head, log.db is whole, or holds or something has seen more
            than can be kept, the log is in use, or a file is missing that is needed. Nothing was changed.
        DamageFoundError: The backup is damaged. Nothing was changed.
        SigningError: The signer process does not say what it has signed. Nothing was changed.
        CreateError: The disk refuses.
    """
    verifier, target = log_verifier(config), config.path(LOG)
    with Lock(config.path(LOCK_NAME)):
        check_strays(config)
        head = stored_head(config, config.path(config.checkpoints))
        _check_fits(file, head, verifier)
        _refuse_whole(target, head, verifier, steps)
        check_unseen(config, head)
        tail = _read_tail(target, file, head, steps)
        try:
            with swapped(target) as swap:
                _copy(file, swap.draft, head, verifier, steps, tail)
                empty_wal(target)
            remove_database(config.path(TILES))
        except OSError as error:
            raise CreateError(f"{target} could not be written: {error.strerror}") from error
    return Restored(head, Path(config.directory), swap.aside, sum(segment.count for segment in tail))


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
        StartRefusedError: The backup does not fit the signed head, the folder of the configuration has more, or the
            checkpoint store is in use or missing.
        DamageFoundError: The backup is damaged.
        CreateError: The disk refuses.
    """
    data, store = data.absolute(), (checkpoints or config.path(config.checkpoints)).absolute()
    if os.path.lexists(data):
        raise UnusableNameError(f"{data} exists; name a new folder, or restore into one with --config alone")
    check_strays(msgspec.structs.replace(config, checkpoints=str(store)))
    verifier, head = log_verifier(config), stored_head(config, store)
    _check_fits(file, head, verifier)
    check_derived(config, head.size)  # anchors and signer are asked by the next start, which nothing is taken from
    _check_nothing_left(config.path(LOG), head)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{data.name}.restore-", dir=data.parent))
        try:
            with drafted(folder / LOG) as draft:
                _copy(file, draft, head, verifier, steps)
            _write(folder / CONFIG_NAME, format_config(_moved(config, store)))
            if os.path.lexists(config.path(ANCHOR_MARK)):
                _write(folder / ANCHOR_MARK, config.path(ANCHOR_MARK).read_text(encoding="utf-8"))
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
    secret, socket = config.passphrase.removeprefix("file:"), config.signer.removeprefix("unix:")
    return msgspec.structs.replace(
        config,
        key=str(config.path(config.key)),
        passphrase=f"file:{config.path(secret)}" if secret and not secret.startswith("$") else config.passphrase,
        signer=f"unix:{config.path(socket)}" if socket else "",
        anchors=tuple(name if is_url(name) else str(config.path(name)) for name in config.anchors),
        anchor_file=str(config.path(config.anchor_file)) if config.anchor_file else "",
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


def _read_tail(target: Path, file: Path, head: SignedHead, steps: Steps) -> list[Segment]:
    """Take the second half of step 3, and return what is kept.

    Raises:
        StartRefusedError: What is there cannot be signed.
        DamageFoundError: The backup is damaged.
    """
    tail = _find_tail(target, head)
    if tail is None:
        return []
    reason = tail.why_not_alone()
    if tail.segment and not reason:
        try:
            with closing(open_reading(file, SCHEMA, alone=True)) as source:
                reason = tail.why_not(signed_tree(source, head, steps("hashing")))
        except VerificationError as error:
            raise DamageFoundError(f"the entries of the backup are damaged: {error}") from error
    if reason or not tail.segment:
        raise StartRefusedError(
            f"log.db holds a commit behind the signed head {head.size} that cannot be signed: {reason}. Nothing was "
            "changed. Where that head is the newest that anybody was shown, the entries come back and the commit goes "
            f"with: tlogd repair --from {file} --discard-unsigned"
        )
    return [tail.segment]


def _find_tail(target: Path, head: SignedHead) -> Tail | None:
    old = open_damaged(target)
    if old is None:
        return None
    with closing(old):
        tail = find_tail(old, head)
    return None if tail is None or tail.is_lost else tail


def _check_nothing_left(target: Path, head: SignedHead) -> None:
    """Refuse to leave what a log.db holds behind the signed head."""
    if _find_tail(target, head) is not None:
        raise StartRefusedError(
            f"{target} holds a commit behind the signed head {head.size}, and a new folder would lack it. Nothing was "
            "changed. Start the log there, or restore it there, which keeps the commit: tlogd restore without --data"
        )


def _copy(
    file: Path, draft: Path, head: SignedHead, verifier: Verifier, steps: Steps, tail: Sequence[Segment] = ()
) -> None:
    """Take steps 4 and 5."""
    with closing(open_reading(file, SCHEMA, alone=True)) as source:
        copy_entries(source, draft, LOG_SCHEMA, head.size, steps("copying"), tail=tail)
    check_copy(draft, LOG_SCHEMA, head, verifier, steps("checking"))
