"""What a client keeps on disk: files that are whole, or an error; and the evidence of a fork.

    <state_dir>/<SHA-256 of the origin, hex>.json           trust
    <state_dir>/<the same>.monitor.json                     what a monitor has checked
    <state_dir>/evidence/<the same>/fork-…/*.checkpoint     both notes of a fork

A state file is JSON: format, origin, pinned vkeys, the newest accepted head's signed note in base64, and a checksum
over the rest. What cannot be read is an error, never a first use: damage must not be able to start a new history.

**The order of a save**, under an operating-system lock:

1. the file still holds what this process last saw; otherwise another one saved, and its head is checked first
2. write beside it, fsync
3. rename, fsync the folder
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from tlog.errors import ForkError, FormatError, NotFoundError, TreeheadError, VerificationError
from tlog.note import parse_vkey
from tlog.policy import Policy
from tlog.strict import parse_base64

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tlog.checkpoint import Checkpoint

KINDS = {"trust": ".json", "monitor": ".monitor.json", "fsck": ".fsck.json"}
"""The kinds of state, and how the names of their files end."""

_FORMAT = "treehead/{}/v1"


class StateError(TreeheadError):
    """A state file that cannot be used; the message says what to do."""


class NotKeptError(NotFoundError):
    """Nothing is kept on this machine of the log that was named."""


class BadEntryError(VerificationError):
    """An entry that is served is not the one in the signed tree."""


class ForkProvenError(ForkError):
    """A fork, with both notes saved.

    Attributes:
        evidence: The folder that holds `first.checkpoint` and `second.checkpoint`; None where nothing could be saved.
    """

    def __init__(self, message: str, *, first: bytes, second: bytes, evidence: Path | None) -> None:
        """Keep where the evidence is."""
        super().__init__(message, first=first, second=second)
        self.evidence = evidence
        self.add_note(f"evidence: {evidence or 'not saved; it is in the attributes first and second'}")


@dataclass(frozen=True, slots=True)
class Signed:
    """A head and what proves that the log said so.

    Attributes:
        head: The checkpoint.
        note: Its signed note, as received.
    """

    head: Checkpoint
    note: bytes


def default_state_dir() -> Path:
    """Return $XDG_STATE_HOME/treehead, or ~/.local/state/treehead."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "treehead"


def origin_of(policy: Policy) -> str:
    """Return the one origin that a policy names.

    Raises:
        StateError: It names none, or several.
    """
    origins = sorted({verifier.name for verifier in policy.logs})
    if len(origins) != 1:
        raise StateError(f"state is kept for one log; the policy names {len(origins)}: use one with a single origin")
    return origins[0]


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold an operating-system lock, which dies with the process; wait for it unless a message for its holder is given.

    Raises:
        StateError: Somebody else holds it, or the file cannot be made.
    """
    with _explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise StateError(busy) from None
        yield
    finally:
        os.close(handle)


def alone(state_dir: Path, origin: str) -> AbstractContextManager[None]:
    """Keep monitors of this log with this state away, until the context ends.

    Raises:
        StateError: One runs.
    """
    path = state_path(state_dir, origin, KINDS["monitor"])
    busy = f"another monitor of this log runs with {path}; end it, or pass another --state-dir"
    return locked(path.with_suffix(".lock"), busy)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot use {path}: {error.strerror}; make it accessible, or pass another --state-dir"
        ) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 and make its bytes durable; its name is not yet."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a state file held.

    Attributes:
        data: The file, byte for byte.
        kind: What it is the state of, one of KINDS.
        vkeys: The pinned keys.
        signed: The head; its origin is that of the state.
        more: The fields that only one kind of state has.
    """

    data: bytes
    kind: str
    vkeys: tuple[str, ...]
    signed: Signed
    more: dict[str, list[str]]


class StateFile:
    """One state file, exchanged by compare-and-swap."""

    def __init__(self, path: Path, kind: str, policy: Policy) -> None:
        """Name a file, the kind of state in it, and the keys that must be pinned there."""
        self.path = path
        self._kind = kind
        self._policy = policy
        self._origin = origin_of(policy)
        self._vkeys = tuple(verifier.vkey for verifier in policy.logs)
        self._seen: bytes | None = None

    def load(self) -> Saved | None:
        """Return what the file holds, None where there is none.

        Raises:
            StateError: It cannot be read, or was made for other keys.
        """
        saved = read_state(self.path)
        if saved is None:
            return None
        if (saved.kind, saved.signed.head.origin) != (self._kind, self._origin):
            raise _damaged(self.path)
        if missing := [verifier.vkey for verifier in self._policy.logs if verifier.vkey not in saved.vkeys]:
            raise StateError(
                f"{missing[0]} is not among the keys pinned in {self.path}; adding a key is an explicit act: if its "
                "operator says so, tlog trust add"
            )
        return saved

    def adopt(self, saved: Saved | None) -> None:
        """Take note that what was loaded is known, and checked, so that the next save may replace it."""
        self._seen = saved.data if saved else None
        self._vkeys = saved.vkeys if saved else self._vkeys

    def save(self, signed: Signed, **more: list[str]) -> bool:
        """Replace the file, durably; return False, and do nothing, where somebody else changed it.

        Raises:
            StateError: It cannot be written.
        """
        fields: dict[str, str | list[str]] = {
            "format": _FORMAT.format(self._kind),
            "note": b64encode(signed.note).decode(),
            "origin": self._origin,
            "vkeys": list(self._vkeys),
            **more,
        }
        data = _format_state(fields)
        with locked(self.path.with_name(self.path.name + ".lock")), _explained(self.path):
            if (self.path.read_bytes() if self.path.exists() else None) != self._seen:
                return False
            fresh = self.path.with_name(self.path.name + ".new")
            _write(fresh, data)
            fresh.replace(self.path)
            sync_folder(self.path.parent)
            self._seen = data
        return True

    def pin(self, vkey: str) -> None:
        """Take another key among the pinned ones, from the next save on."""
        self._vkeys = (*self._vkeys, vkey)


def read_state(path: Path) -> Saved | None:
    """Return what a state file holds, None where there is none; whose state it is is for the caller to check.

    Raises:
        StateError: It cannot be read.
    """
    with _explained(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return _parse(data)
    except (TreeheadError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StateError:
    return StateError(
        f"{path} is damaged or of another version; restore it from a backup, pass another --state-dir, or "
        "remove that file on purpose: then the log's past is trusted anew"
    )


def _parse(data: bytes) -> Saved:
    fields = _parse_state(data)
    kinds = [kind for kind in KINDS if _FORMAT.format(kind) == fields["format"]]
    note, vkeys, origin = fields["note"], fields["vkeys"], fields["origin"]
    if not kinds or not isinstance(note, str) or not isinstance(vkeys, list):
        raise FormatError("another version, or a field of another type")
    signed = parse_base64(note.encode())
    head = Policy(tuple(parse_vkey(vkey) for vkey in vkeys)).open_checkpoint(signed)
    if head.origin != origin:
        raise FormatError("a head of another origin")
    more = {name: value for name, value in fields.items() if isinstance(value, list) and name != "vkeys"}
    return Saved(data, kinds[0], tuple(vkeys), Signed(head, signed), more)


def _format_state(fields: Mapping[str, str | list[str]]) -> bytes:
    rest = json.dumps(fields, indent=1, sort_keys=True)
    return (
        json.dumps({**fields, "checksum": sha256(rest.encode()).hexdigest()}, indent=1, sort_keys=True).encode() + b"\n"
    )


def _parse_state(data: bytes) -> dict[str, str | list[str]]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise FormatError("not an object")
    del fields["checksum"]
    if _format_state(fields) != data:
        raise FormatError("the checksum does not fit")
    return fields


def state_path(state_dir: Path, origin: str, ending: str) -> Path:
    """Return the path of a file that belongs to an origin."""
    return state_dir / (sha256(origin.encode()).hexdigest() + ending)


def prove_fork(error: ForkError, state_dir: Path | None, heads: Sequence[Checkpoint]) -> ForkProvenError:
    """Save both notes of a fork, durably and never over others, and return the error that says where."""
    evidence, trouble = None, ""
    try:
        if state_dir is not None:
            evidence = _save_evidence(error, state_dir, heads)
    except OSError as failure:
        trouble = f" (the evidence could not be saved: {failure.strerror})"
    return ForkProvenError(f"{error}{trouble}", first=error.first, second=error.second, evidence=evidence)


def _save_evidence(error: ForkError, state_dir: Path, heads: Sequence[Checkpoint]) -> Path:
    mark = sha256(error.first + error.second).hexdigest()[:8]
    parent = state_path(state_dir / "evidence", heads[0].origin, "")
    folder = parent / f"fork-{heads[0].size}-{heads[1].size}-{mark}"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(dir=parent, prefix="."))
        try:
            _write(fresh / "first.checkpoint", error.first)
            _write(fresh / "second.checkpoint", error.second)
            sync_folder(fresh)
            fresh.rename(folder)  # fails where another process was first: its folder is not empty
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.exists():
                raise
        for path in (parent, parent.parent, state_dir):
            sync_folder(path)
    return folder
