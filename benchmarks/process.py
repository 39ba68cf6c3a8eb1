"""Servers as processes of their own: started, waited for, and stopped by their own process IDs.

A server tells where it listens in a line of JSON with a `port`, on standard output or standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

BIN = Path(sys.executable).parent
"""Where this environment's programs are."""

START_S = 600.0
"""Seconds in which a server must listen: it may rebuild what is derived from millions of entries."""

_STOP_S = 60.0
_POLL_S = 0.002


class ServerError(Exception):
    """A server did not start, or did not stop."""


class Program:
    """One server process.

    Attributes:
        port: Where it listens.
        start_s: Seconds from the command to the line that told so.
        pid: Its process ID.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        """Start it, and wait until it listens.

        Raises:
            ServerError: It does not.
        """
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`; a pipe would fill
        began = time.monotonic()
        self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT)
        self.pid = self._process.pid
        try:
            self.port = self._wait(began + START_S)
        except BaseException:
            self.kill()
            self._output.close()
            raise
        self.start_s = time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def _wait(self, deadline: float) -> int:
        while time.monotonic() < deadline:
            has_ended = self._process.poll() is not None
            descriptor = self._output.fileno()  # its position is the server's, too, and where that writes next
            text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
            for line in text.splitlines()[: text.count("\n")]:
                if line.startswith("{") and "port" in (said := json.loads(line)):
                    return int(said["port"])
            if has_ended:
                raise ServerError(f"the server ended: {text[-2000:]}")
            time.sleep(_POLL_S)
        raise ServerError("the server does not listen")

    def stop(self) -> None:
        """End it in order; by force where that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._output.close()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()


def init_log(data: Path, **limits: int) -> str:
    """Create a log, with other limits than usual where they are named, and return its vkey."""
    command = [str(BIN / "tlogd"), "init", "--origin", "localhost/bench", "--data", str(data), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    if limits:
        with (data / "treehead.toml").open("a") as file:
            file.write("\n[limits]\n" + "".join(f"{name} = {value}\n" for name, value in limits.items()))
    return str(json.loads(done.stdout)["vkey"])


def serve_log(data: Path) -> Program:
    """Serve a log on a free port."""
    return Program([BIN / "tlogd", "serve", "--config", data / "treehead.toml", "--host", "127.0.0.1", "--port", "0"])


@contextmanager
def serving_new_log(data: Path, **limits: int) -> Iterator[tuple[Program, str]]:
    """Serve a log that has only its first entry; yield the process and the vkey."""
    vkey = init_log(data, **limits)
    with serve_log(data) as program:
        yield program, vkey
