"""The entry point of `tlogd`: says in one line what to install where the server's dependencies are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `tlogd`."""
    try:
        from tlog.server.cli import run
    except ModuleNotFoundError as error:
        print(f"tlogd: {error.name} is missing; install: pip install 'treehead[server]'", file=sys.stderr)  # noqa: T201 — as said
        raise SystemExit(1) from None
    run()
