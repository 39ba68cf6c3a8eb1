"""What a check found: each damage once, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_SHOWN = 100
"""Damages of one file that are kept one by one; beyond, they are counted."""

LOG = "log.db"
CHECKPOINTS = "checkpoints.db"
TILES = "tiles.db"
STRAY = "a file beside them"

REMEDIES = {
    LOG: "restore it with: tlogd restore FILE --config CONFIG, or bring entries back with: tlogd repair --from URL|DIR "
    "--config CONFIG; a commit behind the signed head that cannot be signed goes with: tlogd repair --discard-unsigned",
    CHECKPOINTS: "never put an older copy in its place: a signed head must not be taken back; where it is lost for "
    "good: tlogd recover-checkpoints --from NOTE --config CONFIG",
    STRAY: "nothing else was looked at, because SQLite would read the databases through it. Move it away, keep it, and "
    "check again",
    TILES: "it is derived: with the log stopped, remove tiles.db; the next start rebuilds it",
}
"""What to do about a damaged file."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        file: The file, by the name it has in a data directory, or "a file beside them".
        what: What is wrong, in one line.
    """

    file: str
    what: str


@dataclass(slots=True)
class Findings:
    """What a check has found so far. Owned by the check.

    Attributes:
        damages: What is wrong, in the order found; of each file the first 100.
        notes: What is worth knowing and not wrong.
        checked: How many of what were looked at.
    """

    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def damage(self, file: str, what: str) -> None:
        """Add a damage."""
        self._counts[file] = self._counts.get(file, 0) + 1
        if self._counts[file] <= MAX_SHOWN:
            self.damages.append(Damage(file, what))

    def count(self, what: str, number: int = 1) -> None:
        """Count what was looked at."""
        self.checked[what] = self.checked.get(what, 0) + number

    def is_damaged(self, file: str) -> bool:
        """Return whether something is wrong with a file."""
        return file in self._counts

    @property
    def total(self) -> int:
        """Number of damages, with those that are not kept."""
        return sum(self._counts.values())
