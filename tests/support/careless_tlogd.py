"""`tlogd` that waits for no disk: for the negative control of the power failure test only."""

from __future__ import annotations

from typing import cast

from tlog.server.main import main
from tlog.server.storage import database

if __name__ == "__main__":
    for settings in (database.DURABLE, database.DURABLE_ALONE):
        cast("dict[str, str | int]", settings)["synchronous"] = 0
    main()
