"""Anchors: copies of the newest head that are kept outside, and show whether a log was taken back.

Data and checkpoint store that are restored together fit together, so nothing on the machine can tell. Whoever kept a
newer head can. A start reads each anchor of the configuration, a file or a URL, and compares:

    larger than the signed head                      the log was taken back: refuse
    as large or smaller, with the root of the tree   the log grew out of it
    another root                                     two histories: refuse; both notes are evidence

An anchor is a signed note, as `GET /checkpoint` answers with. It is verified under the pinned key, so whoever controls
one can keep a log from starting, or withhold that it was taken back, and can never make it sign anything.

A served log that has an anchor file writes one itself (`anchored`). Before the first time there is none; afterwards a
mark in the data directory says so, and a file that is missing is an anchor that is missing: its volume may not be
mounted.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
from contextlib import closing, contextmanager, suppress
from threading import Event, Timer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tlog.errors import TreeheadError
from tlog.merkle import EMPTY_ROOT, subtree_nodes, subtree_root
from tlog.note import MAX_NOTE_SIZE
from tlog.server.disk import sync
from tlog.server.errors import DamageError, MissingFileError, OtherHistoryError, StartRefusedError
from tlog.server.head import log_verifier, open_head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tlog.checkpoint import Checkpoint
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead
    from tlog.server.tree import Tree

ANCHOR_MARK = "anchored"
"""The file in the data directory that says that the log has written its head outside, and where."""

ANSWER_S = 10.0
"""Seconds within which the server of an anchor has answered."""

_WAYS_ON = (
    "mend that; or, if you know from elsewhere that the log was not taken back, start without it: take it out of the "
    "configuration, or leave the option away"
)


async def check_anchors(config: Config, head: SignedHead, tree: Tree) -> None:
    """Compare the signed head with each anchor of the configuration, and with what the anchor file holds.

    Args:
        config: The configuration.
        head: The signed head.
        tree: Its tree.

    Raises:
        StartRefusedError: An anchor cannot be read, is of another log, or has seen a head that is not in the tree.
    """
    for anchor, seen in await asyncio.to_thread(read_anchors, config):
        await _check(anchor, seen, head, tree)


async def compare_note(config: Config, note: bytes, head: SignedHead, tree: Tree) -> None:
    """Compare what the anchor file of a configuration holds with the signed head, and its tree.

    Raises:
        OtherHistoryError: It is a head of the log that is not in the tree.
        StartRefusedError: It is no head of the log, or the tree is damaged.
    """
    await _check(config.anchor_file, _opened(config, config.anchor_file, note), head, tree)


def read_anchors(config: Config) -> list[tuple[str, Checkpoint]]:
    """Return each anchor of the configuration, the anchor file as well where it is there, with the head it has seen.

    Raises:
        StartRefusedError: One cannot be read, or is of another log.
    """
    found = [(anchor, _opened(config, anchor, _read(config, anchor))) for anchor in dict.fromkeys(config.anchors)]
    if config.anchor_file and config.anchor_file not in config.anchors:
        try:
            note = _read_file(config.path(config.anchor_file))
        except MissingFileError as error:
            _check_first(config, error)
        else:
            found.append((config.anchor_file, _opened(config, config.anchor_file, note)))
    return found


def _check_first(config: Config, missing: MissingFileError) -> None:
    """Refuse an anchor file that is missing where it is not to be written for the first time.

    Raises:
        StartRefusedError: The log has written one before, or the folder is missing as well.
    """
    mark, folder = config.path(ANCHOR_MARK), config.path(config.anchor_file).absolute().parent
    if os.path.lexists(mark):
        raise StartRefusedError(
            f"{missing}, and {mark} says that the log has written its head outside before: is a volume not mounted, or "
            "is that another file? Bring it back. To begin a new one, if you know from elsewhere that the log was not "
            f"taken back, remove {mark}"
        )
    if not folder.is_dir():
        raise StartRefusedError(
            f"{missing}, and so is its folder: is a volume not mounted? The log makes no folder for its anchor; make "
            "it, or name another file"
        )


def leave_mark(mark: Path, file: Path) -> None:
    """Say in the data directory, durably, that a head of the log was written outside.

    Raises:
        OSError: The disk refuses.
    """
    if os.path.lexists(mark):
        return
    with mark.open("x", encoding="utf-8") as writing:
        writing.write(f"{file}\n")
    sync(mark)
    sync(mark.absolute().parent)


def is_url(anchor: str) -> bool:
    """Return whether an anchor is asked for over HTTP; else it is a file."""
    return anchor.startswith(("http://", "https://"))


def _read(config: Config, anchor: str) -> bytes:
    if is_url(anchor):
        return _fetch(anchor)
    try:
        return _read_file(config.path(anchor))
    except MissingFileError as error:
        raise StartRefusedError(f"{error}: the newest head is not known from outside; {_WAYS_ON}") from error


def _read_file(path: Path) -> bytes:
    """Read a small file.

    Raises:
        MissingFileError: It is missing.
        StartRefusedError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_NOTE_SIZE + 1)
    except FileNotFoundError as error:
        raise MissingFileError(f"the anchor {path} is missing") from error
    except OSError as error:
        raise StartRefusedError(f"the anchor {path} cannot be read: {error.strerror}; {_WAYS_ON}") from error


def _fetch(url: str) -> bytes:
    """Get an anchor, from exactly this address.

    Raises:
        StartRefusedError: It does not answer with 200, in time.
    """
    try:
        parts = urlsplit(url)
        with closing(_connect(parts.scheme, parts.hostname or "", parts.port)) as connection:
            connection.connect()
            with _cut_off(connection.sock):
                connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
                with connection.getresponse() as response:
                    status, body = response.status, response.read(MAX_NOTE_SIZE + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StartRefusedError(f"the anchor {url} does not answer: {error}; {_WAYS_ON}") from error
    if status != http.client.OK:
        raise StartRefusedError(f"the anchor {url} answers {status}; {_WAYS_ON}")
    return body


@contextmanager
def _cut_off(connection: socket.socket) -> Iterator[None]:
    """Let whoever reads from a connection see its end in time: its timeout is one of each read, and not of the whole.

    Raises:
        TimeoutError: It was cut off.
    """
    is_cut = Event()

    def cut() -> None:
        is_cut.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    late = Timer(ANSWER_S, cut)
    late.daemon = True
    late.start()
    try:
        yield
        if is_cut.is_set():
            raise TimeoutError(f"not all of it came within {ANSWER_S:g} s")
    finally:
        late.cancel()


def _connect(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=ANSWER_S)


def _opened(config: Config, anchor: str, note: bytes) -> Checkpoint:
    try:
        return open_head(note, log_verifier(config))
    except TreeheadError as error:
        raise StartRefusedError(f"the anchor {anchor} is no head of {config.origin}: {error}; {_WAYS_ON}") from error


async def _check(anchor: str, seen: Checkpoint, head: SignedHead, tree: Tree) -> None:
    """Compare a head that was seen outside with the signed one.

    Raises:
        OtherHistoryError: The tree does not have it.
        StartRefusedError: What is stored is damaged.
    """
    if seen.size > head.size:
        raise OtherHistoryError(
            f"the log was taken back: the anchor {anchor} has seen it at size {seen.size}, and here it is signed up to "
            f"{head.size}; to sign on would fork it. Bring back the newest log.db and checkpoints.db; where log.db has "
            f"all {seen.size} entries and only that checkpoints.db is lost, the anchor is the lost head: move the old "
            "checkpoints.db away, then: tlogd recover-checkpoints --from FILE"
        )
    root = head.root if seen.size == head.size else await _root(anchor, seen.size, tree)
    if seen.root != root:
        raise OtherHistoryError(
            f"the log has forked: the anchor {anchor} has another root at size {seen.size} than the tree has here, "
            "and both are signed. Both notes are evidence: keep the anchor and the checkpoint store as they are, and "
            "start neither history"
        )


async def _root(anchor: str, size: int, tree: Tree) -> bytes:
    if size == 0:
        return EMPTY_ROOT
    try:
        return subtree_root(0, size, await tree.hashes(subtree_nodes(0, size)))
    except DamageError as error:
        raise StartRefusedError(f"the anchor {anchor} cannot be compared with the tree: {error}") from error
