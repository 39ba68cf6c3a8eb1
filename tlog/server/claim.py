"""What a key is used for, written down beside it, so that it never signs two histories.

    KEY.used     which log it signs: written by `tlogd init`, whether it made the key or was given it
    KEY.state    where the state of its signer is: written by `tlogd signer init`

Each is made once, before what it tells of, and is never replaced. They belong to the file itself, whatever link it is
named by. A copy of a key elsewhere has neither, and nothing on the machine can tell that it is one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tlog.server.config import CONFIG_NAME, read_config
from tlog.server.disk import sync
from tlog.server.errors import CreateError, StartRefusedError, UnusableNameError
from tlog.server.key import read_key_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tlog.server.config import Config


def mark_used(key: Path, data: Path) -> None:
    """Write beside a key that was made for a log which log that is; the caller makes it durable.

    Raises:
        OSError: The disk refuses.
    """
    with _mark(key, "used").open("x", encoding="utf-8") as file:
        file.write(f"{data}\n")


@contextmanager
def used(key: Path, vkey: str, data: Path) -> Iterator[None]:
    """Mark a key as that of a log which is created in the block; taken back where it is not.

    Args:
        key: The key file.
        vkey: Its public key.
        data: The folder of the log.

    Raises:
        UnusableNameError: It is the key of a log, or has a state.
        ConfigError: The configuration beside it cannot be read, so that cannot be told.
        OSError: The disk refuses.
    """
    beside = key.resolve().with_name(CONFIG_NAME)
    if os.path.lexists(_mark(key, "state")):
        raise _in_use(key, _mark(key, "state"))
    if beside.exists() and read_config(beside).vkey == vkey:  # of a log that is older than the marks, or lost its own
        raise _in_use(key, beside)
    mark = _mark(key, "used")
    try:
        mark_used(key, data)
    except FileExistsError:
        raise _in_use(key, mark) from None
    with _kept(mark):
        yield


@contextmanager
def claimed(config: Config, state: Path) -> Iterator[None]:
    """Mark the key of a log as one whose state is made in the block; taken back where it is not.

    Raises:
        UnusableNameError: It has a state, or the log has a signer.
        StartRefusedError: The key is not there, or is that of another log.
        CreateError: The disk refuses.
    """
    if config.signer:
        raise UnusableNameError(
            f"the log is signed by {config.signer}, whose state its key has, and it has one only: with two it could "
            "sign two histories"
        )
    key = config.path(config.key)
    if read_key_file(key).verifier.vkey != config.vkey:
        raise StartRefusedError(f"the key {key} is not that of the vkey in the configuration")
    mark = _mark(key, "state")
    try:
        with mark.open("x", encoding="utf-8") as file:
            file.write(f"{state.absolute()}\n")
    except FileExistsError:
        raise UnusableNameError(
            f"{mark} says where the state of this key is, and it has one only: with two it could sign two histories"
        ) from None
    except OSError as error:
        raise CreateError(f"{mark} cannot be written: {error.strerror}") from error
    with _kept(mark):
        yield


@contextmanager
def _kept(mark: Path) -> Iterator[None]:
    """Make a mark durable before the block, and remove it where the block fails."""
    try:
        sync(mark)
        sync(mark.parent)
        yield
    except BaseException:
        mark.unlink()
        raise


def _mark(key: Path, ending: str) -> Path:
    file = key.resolve()
    return file.with_name(f"{file.name}.{ending}")


def _in_use(key: Path, said_by: Path) -> UnusableNameError:
    return UnusableNameError(
        f"{said_by} says that {key} is the key of a log already, and a key signs one tree; make another: tlogd keygen"
    )
