"""Creating a log, on purpose and once: beside its final place, and renamed last.

1  a new folder beside DIR: key, configuration, log.db, checkpoints.db; the key is marked as used, wherever it is
2  commit the genesis entry through the write path, so that the log begins with a signed head of size 1
3  a checkpoint store elsewhere gets its name, which must be free
4  the folder gets its name, which must be free
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge
from tlog.errors import FormatError
from tlog.genesis import Genesis
from tlog.merkle import EMPTY_ROOT, leaf_hash
from tlog.note import KEY_SIZE, Signer, sign_note
from tlog.server.claim import mark_used, used
from tlog.server.commit import Commit
from tlog.server.config import CONFIG_NAME, Config, format_config
from tlog.server.errors import CreateError, StartRefusedError, UnusableNameError
from tlog.server.key import read_key, read_key_file, read_passphrase, write_key
from tlog.server.signer import LocalSigner
from tlog.server.space import check_blocks
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog.note import Verifier

_CHECKPOINTS = "checkpoints.db"
_KEY = "key"


def create_key(origin: str, path: Path, passphrase: bytes | None = None) -> Verifier:
    """Make a new key for a log that is to be created, and return its public part.

    Args:
        origin: The log's unique name.
        path: Its file; must not exist.
        passphrase: What to encrypt it under; None leaves it plain.

    Raises:
        UnusableNameError: The origin cannot be one, or the file exists.
        CreateError: The disk refuses; nothing is left behind.
    """
    signer = _new_signer(origin)
    try:
        write_key(path, signer, passphrase)
        _sync(path.absolute().parent)
    except FileExistsError:
        raise UnusableNameError(f"{path} exists; a key is never written over anything") from None
    except OSError as error:
        raise CreateError(f"the key could not be written to {path}: {error.strerror}") from error
    return signer.verifier


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the key of a new log comes from.

    Attributes:
        file: A key that is used where it is; None makes a new one in the log's folder.
        passphrase_file: Holds the passphrase that it is, or is to be, encrypted under; None for a plain one.
    """

    file: Path | None = None
    passphrase_file: Path | None = None


def create_log(
    origin: str, data: Path, now_ms: int, checkpoints: Path | None = None, key: KeySource = KeySource()
) -> Config:
    """Create a log with its genesis entry, and return its configuration.

    Args:
        origin: The log's unique name, as a rule its URL without the scheme.
        data: Its folder; must not exist.
        now_ms: Milliseconds since 1970.
        checkpoints: Where its checkpoint store is to be, best on another volume; None keeps it in the folder.
        key: Where its key comes from.

    Raises:
        UnusableNameError: The origin cannot be one, a name is taken, or the key is of another log, or in use.
        ConfigError: The configuration of a log that is beside the key cannot be read.
        CreateError: The key cannot be used, or the disk refuses; nothing is left behind.
    """
    data, checkpoints = data.absolute(), checkpoints and checkpoints.absolute()
    _check_free(data, *_store_files(checkpoints))
    signer, passphrase = _signer(origin, key)
    marked = used(key.file, signer.verifier.vkey, data) if key.file else nullcontext()
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(data.parent)
        with _drafted(data) as draft, marked:
            if key.file is None:
                write_key(draft / _KEY, signer, passphrase)
                mark_used(draft / _KEY, data)
            config = _fill(draft, signer, now_ms, _settings(signer, checkpoints, key))
            with _store_moved(draft / _CHECKPOINTS, checkpoints):
                _sync(draft)
                draft.rename(data)  # fails where a folder with content took the name meanwhile
        _sync(data.parent)
    except OSError as error:
        raise CreateError(f"the log could not be created: {error}") from error
    return config


@contextmanager
def _drafted(data: Path) -> Iterator[Path]:
    """Give a new folder beside the final place; what is still there afterwards is removed."""
    draft = Path(tempfile.mkdtemp(prefix=f".{data.name}.init-", dir=data.parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_free(*names: Path) -> None:
    for name in names:
        if os.path.lexists(name):
            raise UnusableNameError(f"{name} exists; a log is never created over anything")


def _check_disk(folder: Path) -> None:
    try:
        check_blocks(folder)
    except StartRefusedError as error:
        raise CreateError(str(error)) from error


def _new_signer(origin: str) -> Signer:
    if origin.startswith(("https://", "http://")):
        raise UnusableNameError(f"{origin!r} cannot be an origin: leave out the scheme, {origin.partition('://')[2]!r}")
    try:
        return Signer(origin, os.urandom(KEY_SIZE))
    except FormatError as error:
        raise UnusableNameError(f"{origin!r} cannot be an origin: {error}") from error


def _signer(origin: str, key: KeySource) -> tuple[Signer, bytes | None]:
    """Return the key of a new log, and the passphrase that it is to be encrypted under."""
    try:
        passphrase = read_passphrase(key.passphrase_file) if key.passphrase_file else None
        if key.file and passphrase is None and not isinstance(read_key_file(key.file), Signer):
            raise CreateError(f"{key.file} is encrypted; name its passphrase with --passphrase-file FILE")
        signer = read_key(key.file, passphrase) if key.file else _new_signer(origin)
    except StartRefusedError as error:
        raise CreateError(str(error)) from error
    if signer.verifier.name != origin:
        raise UnusableNameError(f"the key {key.file} is of {signer.verifier.name!r}, and not of {origin!r}")
    return signer, passphrase


def _settings(signer: Signer, checkpoints: Path | None, key: KeySource) -> Config:
    """Return the configuration of a new log."""
    return Config(
        1,
        signer.verifier.name,
        signer.verifier.vkey,
        key=str(key.file.absolute()) if key.file else _KEY,
        passphrase=f"file:{key.passphrase_file.absolute()}" if key.passphrase_file else "",
        checkpoints=str(checkpoints or _CHECKPOINTS),
    )


def _store_files(checkpoints: Path | None) -> list[Path]:
    """Return the files that SQLite would take for a part of the checkpoint store."""
    endings = ("", "-wal", "-shm", "-journal") if checkpoints else ()
    return [checkpoints.with_name(checkpoints.name + ending) for ending in endings if checkpoints]


def _fill(draft: Path, signer: Signer, now_ms: int, config: Config) -> Config:
    """Take what is left of step 1, and step 2."""
    vkey = config.vkey
    (draft / "vkey").write_text(f"{vkey}\n", encoding="utf-8")
    (draft / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    start = Checkpoint(config.origin, 0, EMPTY_ROOT)
    empty = SignedHead(config.origin, 0, 0, EMPTY_ROOT, sign_note(start.format(), [signer]))
    genesis = Genesis(config.origin, vkey, now_ms).format()
    with (
        closing(open_segments(draft / "log.db", create=True)) as segments,
        closing(open_checkpoints(draft / _CHECKPOINTS, create=True)) as connection,
    ):
        store = SqliteCheckpointStore(connection)
        store.create(empty)
        commit = Commit(SqliteStorage(segments), store, LocalSigner(signer, start), empty, Edge(), 0)
        commit.run([genesis], [leaf_hash(genesis)], now_ms)
    return config


@contextmanager
def _store_moved(source: Path, target: Path | None) -> Iterator[None]:
    """Give the checkpoint store its name elsewhere, if it has one (step 3); taken away where the log is not created."""
    if target is None:
        yield
        return
    _move_store(source, target)
    try:
        _sync(target.parent)
        yield
    except BaseException:
        target.unlink()
        raise


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
    """Make a file, or a folder with all the files that this module made in it, durable."""
    for part in (*_files(path), path):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _files(path: Path) -> Iterator[Path]:
    """Return the files that this module made in a folder."""
    return iter(sorted(path.iterdir()) if path.is_dir() and (path / CONFIG_NAME).exists() else [])
