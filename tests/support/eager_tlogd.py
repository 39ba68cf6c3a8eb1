"""`tlogd` that runs a WAL checkpoint in every commit: for the fault tests only."""

from __future__ import annotations

from tlog.server.main import main
from tlog.server.storage import database

if __name__ == "__main__":
    database.WAL_PAGES = 1
    main()
