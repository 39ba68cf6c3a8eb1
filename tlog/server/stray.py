"""Files beside the databases of a log that would change what SQLite reads; looked at before SQLite opens anything.

A start looks, and so does every command that reads or mends the files of a log: SQLite applies what it finds.

    log.db-journal      SQLite takes it for a transaction that was cut off, and writes its old pages back into a
                        database that has long gone on; databases in WAL mode have none
    log.db-wal          without its database: the newest commits may be in it alone, and another log.db beside it would
                        be taken for its own
    log.db-wal          beside a database of another moment: see `tlog.server.storage.wal`

What conflicts is refused and left as it is. Other files are nobody's business: copies, drafts that a crash left, what a
restore has set aside, and whatever is derived, which is built anew where it does not fit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tlog.server.errors import MissingFileError, StartRefusedError
from tlog.server.storage.wal import check_segments

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.server.config import Config


def check_strays(config: Config) -> None:
    """Refuse what lies beside the databases of a log and conflicts with them.

    Raises:
        StartRefusedError: Something conflicts; nothing was changed.
    """
    for path in (config.path("log.db"), config.path(config.checkpoints), config.path("tiles.db")):
        _check_journal(path)
    for path in (config.path("log.db"), config.path(config.checkpoints)):
        _check_alone(path)
    check_segments(config.path("log.db"))


def _check_journal(path: Path) -> None:
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):
        raise StartRefusedError(
            f"{journal} is not of this program, and SQLite would write what it holds into {path.name}. "
            f"Nothing was changed. Find out where it came from, and move it away; then check with: tlogd fsck --deep"
        )


def _check_alone(path: Path) -> None:
    wal = path.with_name(f"{path.name}-wal")
    if not os.path.lexists(path) and wal.exists() and wal.stat().st_size:  # a reader may leave an empty one
        raise MissingFileError(
            f"{path} is missing, and its write-ahead log {wal.name} is there: the newest commits may be in it alone. "
            f"Nothing was changed. Bring {path.name} back as it was; before another copy of it, move {wal.name} away"
        )
