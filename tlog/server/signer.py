"""The log's private key: a file that only its owner may read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.note import Signer, parse_skey
from tlog.server.errors import StartRefusedError

if TYPE_CHECKING:
    from pathlib import Path

KEY_MODE = 0o400
"""Mode of the key file: its owner may read it, and nobody may do anything else."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_KEY_FILE = 4096


def read_key(path: Path) -> Signer:
    """Read the private key.

    Raises:
        StartRefusedError: It is missing, others can read it, or it is not a key. The message holds nothing of it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & _OTHERS:
                raise StartRefusedError(f"{path} can be read by others than its owner; set: chmod 400 {path}")
            text = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise StartRefusedError(f"the key {path} cannot be read: {error.strerror}") from error
    try:
        return parse_skey(text.decode("utf-8", "replace").removesuffix("\n"))
    except FormatError as error:
        raise StartRefusedError(f"{path}: {error}") from error


def write_key(path: Path, signer: Signer) -> None:
    """Write a private key to a new file, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{signer.skey}\n".encode())
        file.flush()
        os.fsync(descriptor)
