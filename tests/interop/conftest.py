"""Programs and libraries written in Go by others, built from pinned versions, and logs for them to read."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow
from tests.support.server import Server
from tests.support.skips import need_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("go")
"""Our own program, and the versions of everything that it is built from."""

TESSERA = "github.com/transparency-dev/tessera"
PROGRAMS = {
    "interop": ".",
    "fsck": f"{TESSERA}/cmd/fsck",
    "hammer": f"{TESSERA}/internal/hammer",
    "mirror": f"{TESSERA}/cmd/experimental/mirror/posix",
    "migrate": f"{TESSERA}/cmd/experimental/migrate/posix",
    "tessera": f"{TESSERA}/cmd/conformance/posix",
}
"""The package of each program. All but the first run as they were published."""

BUILD_S = 240.0
"""Seconds that a build may take; a minute is usual for the first on a machine."""

RUN_S = 60.0
"""Seconds after which a program counts as stuck."""

SIZE = 70_000
"""Entries of the large log: tiles on three levels, the last of them a single hash wide."""


@dataclass(frozen=True)
class Tools:
    """The programs, built.

    Attributes:
        go: The Go command.
        folder: Where the programs are.
    """

    go: str
    folder: Path

    def build(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the Go command in the folder of our program, with the versions that are pinned there."""
        pinned = {"GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
        return subprocess.run(
            [self.go, *arguments],
            cwd=SOURCE,
            env=os.environ | pinned,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )

    def run(self, name: str, *arguments: str | Path, lines: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with lines on its standard input."""
        command = [self.folder / name, *arguments]
        return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=RUN_S, check=False)

    def output(self, name: str, *arguments: str | Path, lines: str = "") -> str:
        """Run a program that must succeed, and return what it prints."""
        done = self.run(name, *arguments, lines=lines)
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass(frozen=True)
class Served:
    """A log that `tlogd` serves.

    Attributes:
        data: Its folder.
        url: Where it is.
        vkey: Its key.
    """

    data: Path
    url: str
    vkey: str


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Build all programs."""
    built = Tools(need_tool("go"), tmp_path_factory.mktemp("go"))
    for name, package in PROGRAMS.items():
        done = built.build("build", "-o", str(built.folder / name), package)
        assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a log of 70,000 entries for reading: empty, short and longer ones, text and not."""
    data = tmp_path_factory.mktemp("interop") / "log"
    entries = [b"", *(b"%d\xff\x00\n" % number * (1 + number % 5) for number in range(2, SIZE))]
    config = create(data, origin="localhost/interop")
    grow(config, [entries[at : at + 8192] for at in range(0, len(entries), 8192)])
    with Server(data) as server:
        yield served(data, server)


def served(data: Path, server: Server) -> Served:
    """Return where a log is served."""
    return Served(data, f"http://127.0.0.1:{server.port}", (data / "vkey").read_text().strip())
