"""The signed head of a log as other processes than its server get it, verified with the pinned key.

A log that is served is asked for it; the checkpoint store lets nobody else read it meanwhile. Of a log that is not
served, the checkpoint store is read.
"""

from __future__ import annotations

import http.client
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError, TreeheadError, UnavailableError
from tlog.note import MAX_NOTE_SIZE, parse_vkey
from tlog.policy import Policy
from tlog.server.errors import ConfigError, DamagedFileError, InUseError, StartRefusedError
from tlog.server.lock import LOCK_NAME, Glance
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import KINDS, SCHEMA
from tlog.server.storage.database import typed
from tlog.server.storage.reading import open_reading

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.note import Verifier
    from tlog.server.config import Config
    from tlog.server.lock import Holder

ANSWER_S = 10.0
"""Seconds within which a log that is served answers."""


def log_verifier(config: Config) -> Verifier:
    """Return the public key of a configured log.

    Raises:
        ConfigError: It is none, or of another origin.
    """
    try:
        verifier = parse_vkey(config.vkey)
    except FormatError as error:
        raise ConfigError(f"the vkey in the configuration is none: {error}") from error
    if verifier.name != config.origin:
        raise ConfigError(f"the vkey in the configuration is of {verifier.name!r}, and the origin is {config.origin!r}")
    return verifier


def open_head(note: bytes, verifier: Verifier) -> Checkpoint:
    """Return the checkpoint of a signed head, verified.

    Raises:
        FormatError: It is none.
        VerificationError: It is not signed by the key.
    """
    return Policy((verifier,)).open_checkpoint(note)


def read_head(config: Config) -> SignedHead:
    """Return the signed head of a log, which may be served meanwhile.

    Raises:
        ConfigError: The configuration has no usable vkey.
        StartRefusedError: The checkpoint store is missing or damaged, or in use by a process that does not serve it.
        UnavailableError: The server does not answer.
        VerificationError: The head does not verify.
    """
    with Glance(config.path(LOCK_NAME)) as glance:
        if glance.holder is None:
            return stored_head(config, config.path(config.checkpoints))
        holder = glance.holder
    return served_head(config, holder)


def served_head(config: Config, holder: Holder) -> SignedHead:
    """Return the head that a server shows.

    Raises:
        InUseError: The process serves nothing.
        UnavailableError: It does not answer.
        FormatError: It does not answer with a checkpoint.
        VerificationError: The head does not verify.
    """
    verifier = log_verifier(config)
    if not holder.url:
        raise InUseError(f"the log is in use by {holder}, which does not serve it; try again when that has ended")
    note = _get(f"{holder.url}/checkpoint")
    checkpoint = open_head(note, verifier)
    return SignedHead(checkpoint.origin, 0, checkpoint.size, checkpoint.root, note)


def _get(url: str) -> bytes:
    """Get a small resource of a server on this machine.

    Raises:
        UnavailableError: It does not answer, or with an error.
    """
    try:
        parts = urlsplit(url)
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)) as connection:
            connection.request("GET", parts.path)
            response = connection.getresponse()
            body = response.read(MAX_NOTE_SIZE + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnavailableError(f"the log does not answer at {url}: {error}") from error
    if response.status != http.client.OK:
        raise UnavailableError(f"the log answers {response.status} at {url}")
    return body


def stored_head(config: Config, path: Path) -> SignedHead:
    """Return the head in a checkpoint store that nobody uses; call it with the lock, or under a glance.

    Raises:
        ConfigError: The configuration has no usable vkey.
        StartRefusedError: It is missing, damaged, in use, or knows no such log.
        VerificationError: The head does not verify, or contradicts its note.
    """
    verifier = log_verifier(config)
    select = "SELECT origin, epoch, size, root, note FROM head WHERE origin = ?"
    try:
        with closing(open_reading(path, SCHEMA, alone=True)) as connection:
            row = connection.execute(select, (config.origin,)).fetchone()
            head = None if row is None else SignedHead(*typed(row, *KINDS))
    except sqlite3.DatabaseError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if head is None:
        raise StartRefusedError(f"the checkpoint store {path} knows no log named {config.origin!r}")
    try:
        found = open_head(head.note, verifier)
    except TreeheadError as error:
        raise DamagedFileError(f"the head in {path} does not verify: {error}") from error
    if found != Checkpoint(head.origin, head.size, head.root):
        raise DamagedFileError(f"the checkpoint store {path} contradicts itself: its note is of another head")
    return head
