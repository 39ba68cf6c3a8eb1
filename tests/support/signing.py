"""Real `tlogd signer` processes, each started, asked, killed and ended by its own process ID."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.support.server import DEADLINE_S, TLOGD
from tlog.server.signer.remote import RemoteSigner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class SignerProcess:
    """A signer in a folder: `key`, `state.db`, `socket`.

    Attributes:
        path: Its socket.
    """

    def __init__(self, folder: Path, *options: str, program: Sequence[str] = TLOGD) -> None:
        """Take the folder; nothing is started yet."""
        self.path = folder / "socket"
        self._program = program
        self._arguments = ["signer", "serve", "--key", str(folder / "key"), "--state", str(folder / "state.db")]
        self._arguments += ["--socket", str(self.path), *options]
        self._process: subprocess.Popen[str] | None = None
        self.stderr = ""
        self._clients: list[RemoteSigner] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill it, if it runs, and hang up."""
        for client in self._clients:
            client.close()
        if self._process is not None:
            self.kill()

    @property
    def pid(self) -> int:
        """Its process ID."""
        assert self._process is not None
        return self._process.pid

    def start(self, program: Sequence[str] | None = None) -> None:
        """Start it, and wait until it listens."""
        assert self._process is None
        command = [*(program or self._program), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if "signer.listening" not in line:
            code = self.wait()
            raise AssertionError(f"it does not listen, and ended with {code}: {line}{self.stderr}")
        assert json.loads(line)["socket"] == str(self.path)

    def connect(self) -> RemoteSigner:
        """Be the log that it signs for."""
        self._clients.append(RemoteSigner(self.path))
        return self._clients[-1]

    def raw(self) -> socket.socket:
        """Be anybody."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(DEADLINE_S)
        client.connect(str(self.path))
        return client

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        process = self._process
        assert process is not None
        try:
            _, self.stderr = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
            self._process = None
        return process.returncode
