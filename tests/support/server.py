"""Real `tlogd` processes: started, watched, stopped and killed, each by its own process ID."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.serving import limit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

TLOGD = (str(Path(sys.executable).parent / "tlogd"),)

_END = "(the process closed its standard error)\n"

DEADLINE_S = 30.0
"""Seconds after which a process that should have started or ended counts as stuck."""


def run_tlogd(*arguments: str | Path, program: Sequence[str] = TLOGD) -> subprocess.CompletedProcess[str]:
    """Run `tlogd` to its end."""
    command = [*program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def init_log(data: Path, *options: str | Path, origin: str = "localhost/x") -> str:
    """Create a log with the real command, and return its vkey; it has no ballast, so that many fit on a disk."""
    done = run_tlogd("init", "--origin", origin, "--data", data, "--json", *options)
    assert done.returncode == 0, done.stderr
    limit(data, ballast_bytes=0)
    return str(json.loads(done.stdout)["vkey"])


class Forks:
    """A process that has imported `tlogd` and forks for each command."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("forking_tlogd.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def try_to_serve(self, data: Path) -> tuple[int, str]:
        """Serve a log that must refuse to start; return its exit code, and what it says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = data.parent / f"{data.name}.output"
        arguments = ["serve", "--config", str(data / "treehead.toml"), "--port", "0"]
        self._process.stdin.write(json.dumps({"arguments": arguments, "output": str(output)}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, output.read_text()

    def close(self) -> None:
        """End the process."""
        with self._process:
            pass


class Server:
    """One log's server process, one after the other on one port.

    Attributes:
        port: Where it listens; the first start takes a free one, later ones the same.
        start_s: Seconds that the newest start took, from the command to the listening line.
        code: How the newest process ended.
    """

    def __init__(self, data: Path, program: Sequence[str] = TLOGD) -> None:
        """Take the folder of a log; nothing is started yet."""
        self.port = 0
        self.start_s = 0.0
        self.code = 0
        self._data = data
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._begin = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()

    @property
    def stderr(self) -> str:
        """What all processes so far wrote to standard error."""
        return "".join(self._lines)

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the log lines of one event."""
        lines = [json.loads(line) for line in self._lines if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def start(self, program: Sequence[str] | None = None) -> None:
        """Start a process and wait until it listens."""
        assert self._process is None, "it runs already"
        config = str(self._data / "treehead.toml")
        command = [*(program or self._program), "serve", "--config", config, "--port", str(self.port)]
        began = time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._begin = before = len(self._lines)
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()
        line = self._wait_for("server.listening", before)
        self.start_s = time.monotonic() - began
        self.port = int(str(json.loads(line)["port"]))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._lines.append(_END)
            self._changed.notify_all()

    def _wait_for(self, event: str, start: int) -> str:
        def found() -> str | None:
            return next((line for line in self._lines[start:] if event in line or line is _END), None)

        with self._changed:
            line = self._changed.wait_for(found, DEADLINE_S)
        if line is None or line is _END:
            self.kill()
            raise AssertionError(f"no {event}:\n{self.stderr}")
        return line

    def wait_for(self, event: str) -> None:
        """Wait until the newest process has logged an event."""
        self._wait_for(event, self._begin)

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.terminate()
        return self.wait()

    def terminate(self) -> None:
        """Send SIGTERM, and do not wait."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        process = self._process
        assert process is not None
        try:
            self.code = code = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            self._thread.join(DEADLINE_S)
            if process.stderr is not None:
                process.stderr.close()
            self._process = None
        return code
