"""`tlogd`, made to fail at one exact point of a commit: for the fault tests only.

python faulty_tlogd.py POINT MOMENT KIND NUMBER serve --config …

POINT    append (the entries become durable) or swap (the head becomes signed)
MOMENT   before or after it took effect
KIND     exit (the process is gone) or raise (the disk reports an error)
NUMBER   in which commit, from 1
"""

from __future__ import annotations

import os
import sqlite3
import sys
from itertools import count
from typing import TYPE_CHECKING

from tlog.server.main import main
from tlog.server.storage.checkpoints import SqliteCheckpointStore
from tlog.server.storage.segments import SqliteStorage

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODE = 99

POINTS: dict[str, type] = {"append": SqliteStorage, "swap": SqliteCheckpointStore}


def arm(point: str, moment: str, kind: str, number: int) -> None:
    """Wrap a method of a store so that it fails in one commit."""
    honest: Callable[..., None] = getattr(POINTS[point], point)
    numbers = count(1)

    def fail() -> None:
        if kind == "exit":
            os._exit(EXIT_CODE)
        raise sqlite3.OperationalError("disk I/O error")

    def faulty(*arguments: object) -> None:
        armed = next(numbers) == number
        if armed and moment == "before":
            fail()
        honest(*arguments)
        if armed:
            fail()

    setattr(POINTS[point], point, faulty)


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.argv[1:5] = []
    main()
