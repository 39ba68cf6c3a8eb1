"""Creating a log, on purpose and once: beside its final place, and renamed last.

1  a new folder beside DIR: key, configuration, log.db, checkpoints.db
2  commit the genesis entry through the write path, so that the log begins with a signed head of size 1
3  a checkpoint store elsewhere gets its name, which must be free
4  the folder gets its name, which must be free
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge
from tlog.errors import FormatError
from tlog.merkle import EMPTY_ROOT, leaf_hash
from tlog.note import KEY_SIZE, Signer, sign_note
from tlog.server.commit import Commit
from tlog.server.config import CONFIG_NAME, Config, format_config
from tlog.server.errors import CreateError
from tlog.server.genesis import genesis_entry
from tlog.server.signer import write_key
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKPOINTS = "checkpoints.db"


def create_log(origin: str, data: Path, now_ms: int, checkpoints: Path | None = None) -> Config:
    """Create a log with a new key and its genesis entry, and return its configuration.

    Args:
        origin: The log's unique name, as a rule its URL without the scheme.
        data: Its folder; must not exist.
        now_ms: Milliseconds since 1970.
        checkpoints: Where its checkpoint store is to be, best on another volume; None keeps it in the folder.

    Raises:
        CreateError: A name is taken, or the disk refuses; nothing is left behind.
    """
    data, checkpoints = data.absolute(), checkpoints and checkpoints.absolute()
    for taken in filter(None, (data, *_store_files(checkpoints))):
        if os.path.lexists(taken):
            raise CreateError(f"{taken} exists; a log is never created over anything")
    try:
        signer = Signer(origin, os.urandom(KEY_SIZE))
        data.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{data.name}.init-", dir=data.parent))
        moved = None
        try:
            config = _fill(draft, signer, now_ms, checkpoints)
            if checkpoints is not None:
                _move_store(draft / _CHECKPOINTS, checkpoints)
                moved = checkpoints
                _sync(moved.parent)
            _sync(draft)
            draft.rename(data)  # fails where a folder with content took the name meanwhile
            moved = None
            _sync(data.parent)
        finally:
            if moved is not None:
                moved.unlink()
            shutil.rmtree(draft, ignore_errors=True)
    except FormatError as error:
        raise CreateError(f"{origin!r} cannot be an origin: {error}") from error
    except OSError as error:
        raise CreateError(f"the log could not be created: {error}") from error
    return config


def _store_files(checkpoints: Path | None) -> list[Path]:
    """Return the files that SQLite would take for a part of the checkpoint store."""
    endings = ("", "-wal", "-shm", "-journal") if checkpoints else ()
    return [checkpoints.with_name(checkpoints.name + ending) for ending in endings if checkpoints]


def _fill(draft: Path, signer: Signer, now_ms: int, checkpoints: Path | None) -> Config:
    """Take steps 1 and 2."""
    vkey = signer.verifier.vkey
    config = Config(1, signer.verifier.name, vkey, checkpoints=str(checkpoints or _CHECKPOINTS))
    write_key(draft / "key", signer)
    (draft / "vkey").write_text(f"{vkey}\n", encoding="utf-8")
    (draft / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    note = sign_note(Checkpoint(config.origin, 0, EMPTY_ROOT).format(), [signer])
    empty = SignedHead(config.origin, 0, 0, EMPTY_ROOT, note)
    genesis = genesis_entry(config.origin, vkey, now_ms)
    with (
        closing(open_segments(draft / "log.db", create=True)) as segments,
        closing(open_checkpoints(draft / _CHECKPOINTS, create=True)) as connection,
    ):
        store = SqliteCheckpointStore(connection)
        store.create(empty)
        commit = Commit(SqliteStorage(segments), store, signer, empty, Edge(), 0)
        commit.run([genesis], [leaf_hash(genesis)], now_ms)
    return config


def _move_store(source: Path, target: Path) -> None:
    """Give the checkpoint store its name on another volume, which must be free (step 3)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.init-{os.getpid()}")
    try:
        shutil.copyfile(source, draft)
        draft.chmod(0o600)
        _sync(draft)
        source.unlink()
        os.link(draft, target)  # unlike a rename, it never replaces
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file, or a folder with all its files, durable."""
    for part in (*_files(path), path):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _files(path: Path) -> Iterator[Path]:
    """Return the files that this module made in a folder."""
    return iter(sorted(path.iterdir()) if path.is_dir() and (path / CONFIG_NAME).exists() else [])
