"""The entry point of `tlogd`: says in one line what to install where the server's dependencies are missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

EXTRA = ("aiohttp", "aiosqlite", "click", "isal", "msgspec", "structlog", "uvloop")
"""What the extra `server` brings, as import packages."""


def main() -> None:
    """Run `tlogd`."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        print(f"tlogd: {missing[0]} is missing; install: pip install 'treehead[server]'", file=sys.stderr)  # noqa: T201 — as said
        raise SystemExit(1)

    try:
        from tlog.server.cli import run
    except KeyboardInterrupt:  # while it is imported, which takes a while
        raise SystemExit(130) from None
    run()
