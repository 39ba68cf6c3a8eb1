"""The operator's guide: its sessions run, print what it shows, and every command is in it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.skips import CHECKOUT
from tlog.server.cli import cli

GUIDE = (CHECKOUT / "docs" / "operating.md").read_text()
BIN = Path(sys.executable).parent

WAIT = """for _ in $(seq 200); do
    tlogd status --json --config log/treehead.toml | grep -q '"url": "' && break
    sleep 0.1
done"""
"""Goes on when the log is served."""


def steps() -> list[tuple[str, str]]:
    """Return the commands of all sessions, and what each prints."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL):
        for line in block.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:].strip(), ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def test_the_sessions_print_what_they_show(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = "set -eu\ntrap 'kill ${!:-} 2>/dev/null || true' EXIT\n"
    for command, _ in steps():
        served = command.replace(" &", f" --port {port} 2>/dev/null &\n{WAIT}") if command.endswith(" &") else command
        script += f"{served}\necho '=== end'\n"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("=== end\n")
    assert len(printed) == len(steps()) + 1
    for (command, shown), text in zip(steps(), printed, strict=False):
        pattern = re.escape(shown.replace(":8080", f":{port}")).replace("…", r"[^\n]+")
        assert not shown or re.fullmatch(pattern, text), f"$ {command}\n{text}"


def test_every_command_is_in_the_guide() -> None:
    for name in cli.commands:
        assert re.search(rf"tlogd {name}\b", GUIDE), name
