"""The operator's guide: its sessions run, print what it shows, and every command is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.skips import CHECKOUT
from tlog.server.cli import cli

GUIDE = (CHECKOUT / "docs" / "operating.md").read_text()
BIN = Path(sys.executable).parent

SERVED = """tlogd status --json --config {} | grep -q '"url": "'"""
SIGNS = "test -S {}"


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


def in_background(command: str) -> str:
    """Return a command that ends in `&`, and goes on when the log is served, or the signer listens."""
    words = command.split()
    if words[1] == "signer":
        options, is_up = "", SIGNS.format(words[words.index("--socket") + 1])
    else:
        options, is_up = "--port 0", SERVED.format(words[words.index("--config") + 1])
    wait = f"for _ in $(seq 200); do if {is_up}; then break; fi; sleep 0.1; done"
    return command.replace(" &", f" {options} 2>/dev/null &\n{wait}")


@pytest.mark.timeout(150)
def test_the_sessions_print_what_they_show(tmp_path: Path) -> None:
    script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    for command, _ in steps():
        script += in_background(command) if command.endswith(" &") else command
        script += "\necho '=== end'\n"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("=== end\n")
    assert len(printed) == len(steps()) + 1
    for (command, shown), text in zip(steps(), printed, strict=False):
        pattern = re.escape(shown).replace(":8080", r":\d+").replace("…", r"[^\n]+")
        assert not shown or re.fullmatch(pattern, text), f"$ {command}\n{text}"


def test_every_command_is_in_the_guide() -> None:
    for name in cli.commands:
        assert re.search(rf"tlogd {name}\b", GUIDE), name
