"""`tlogd`, imported once and forked for each command: the same program and exit codes without a second of imports.

Reads one JSON object a line, {"arguments": […], "output": FILE}, and writes the exit code of each.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import uvloop  # noqa: F401  # so that no child has to import it

from tlog.server.api import serve  # noqa: F401  # as above
from tlog.server.main import main

LIMIT_S = 20


def run(arguments: list[str], output: str) -> int:
    """Run one command in a child."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        null, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for source, target in ((null, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        sys.argv = ["tlogd", *arguments]
        main()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{run(**json.loads(line))}\n")
        sys.stdout.flush()
