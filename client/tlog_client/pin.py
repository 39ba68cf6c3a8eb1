"""What is pinned on disk of each log, for people to see and to change: keys, heads, evidence.

A key is added and a log is forgotten only because somebody said so. Both happen under the locks that a monitor and a
saving client take, so nothing is lost between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.note import parse_vkey
from tlog.policy import Policy
from tlog_client.state import (
    KINDS,
    NotKeptError,
    Saved,
    StateError,
    StateFile,
    alone,
    locked,
    read_state,
    state_path,
    sync_folder,
)

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pinned:
    """What is kept of one log.

    Attributes:
        origin: The log's origin.
        states: What its state files hold, by kind; at least one.
        evidence: Folders of proven forks, in the order of their names.
    """

    origin: str
    states: dict[str, Saved]
    evidence: tuple[Path, ...]

    @property
    def vkeys(self) -> list[str]:
        """The pinned keys."""
        return list(dict.fromkeys(vkey for saved in self.states.values() for vkey in saved.vkeys))


def pinned(state_dir: Path) -> list[Pinned]:
    """Return what is kept of each log, in the order of origins.

    Raises:
        StateError: A state file cannot be read.
    """
    states: dict[str, dict[str, Saved]] = {}
    for path in sorted(state_dir.glob("*.json")) if state_dir.is_dir() else ():
        if (saved := read_state(path)) is not None:
            states.setdefault(saved.signed.head.origin, {})[saved.kind] = saved
    return [Pinned(origin, states[origin], _evidence(state_dir, origin)) for origin in sorted(states)]


def _evidence(state_dir: Path, origin: str) -> tuple[Path, ...]:
    folder = state_path(state_dir / "evidence", origin, "")
    return tuple(sorted(folder.glob("fork-*"))) if folder.is_dir() else ()


def add_key(state_dir: Path, vkey: str) -> list[str]:
    """Pin one more key of a log that is known already, keeping its head; return all of its keys.

    Raises:
        FormatError: Not a vkey.
        NotKeptError: Nothing is kept of that log: its first use will pin the key.
        StateError: A state file cannot be used, or is in use.
    """
    origin = parse_vkey(vkey).name
    keys: list[str] = []
    with alone(state_dir, origin):
        for kind, ending in KINDS.items():
            path = state_path(state_dir, origin, ending)
            if (saved := read_state(path)) is not None:
                keys += _pin(StateFile(path, kind, _policy_of(saved)), saved, vkey)
    if not keys:
        raise NotKeptError(f"nothing is kept of {origin} in {state_dir}; the first use pins the key that it is given")
    return list(dict.fromkeys(keys))


def _policy_of(saved: Saved) -> Policy:
    return Policy(tuple(parse_vkey(vkey) for vkey in saved.vkeys))


def _pin(file: StateFile, saved: Saved, vkey: str) -> list[str]:
    if vkey in saved.vkeys:
        return list(saved.vkeys)
    file.adopt(saved)
    file.pin(vkey)
    if not file.save(saved.signed, **saved.more):
        raise StateError(f"{file.path} was changed at the same moment; try again")
    return [*saved.vkeys, vkey]


def forget(state_dir: Path, origin: str) -> list[Path]:
    """Remove what is kept of a log, evidence excepted; return the files that were removed.

    Raises:
        NotKeptError: Nothing is kept of it.
        StateError: A state file cannot be removed, or is in use.
    """
    removed: list[Path] = []
    with alone(state_dir, origin):
        for ending in KINDS.values():
            path = state_path(state_dir, origin, ending)
            with locked(path.with_name(path.name + ".lock")):
                if path.exists():
                    path.unlink()
                    removed.append(path)
        sync_folder(state_dir)
    if not removed:
        raise NotKeptError(f"nothing is kept of {origin} in {state_dir}")
    return removed
