"""`tlogd`, made to die before or after its first call of one function: for the tests of what repairs a log.

python dying_tlogd.py OWNER NAME MOMENT COMMAND …

OWNER    a module, or a class in one: tlog.server.repair, pathlib:Path
NAME     the function of it
MOMENT   before or after
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from tlog.server.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXIT_CODE = 77

SWAP = {"sync": ("tlog.server.disk", "sync"), "aside": ("os", "link"), "swap": ("pathlib:Path", "replace")}
"""The steps of `tlog.server.disk.swapped`, which every repair ends with: owner and name of each."""


def kill(place: tuple[str, str], moment: str, *command: str | Path) -> None:
    """Run a command that dies there, in a process of its own."""
    program = [sys.executable, "-m", __name__, *place, moment, *map(str, command)]
    killed = subprocess.run(program, capture_output=True, timeout=30, check=False)
    assert killed.returncode == EXIT_CODE, killed.stderr


def _main(owner: str, name: str, moment: str, *command: str) -> None:
    module, _, inner = owner.partition(":")
    place = getattr(import_module(module), inner) if inner else import_module(module)
    honest: Callable[..., object] = getattr(place, name)

    def dying(*arguments: object, **named: object) -> None:
        if moment == "after":
            honest(*arguments, **named)
        os._exit(EXIT_CODE)

    setattr(place, name, dying)
    run(list(command))


if __name__ == "__main__":
    _main(*sys.argv[1:])
