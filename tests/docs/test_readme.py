"""The README as a user meets it: its commands and its Python run, and what it shows is what comes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Session:
    """A log as `./dev serve` starts it, on a free port, with a folder to work in."""

    folder: Path
    port: int

    def localised(self, text: str) -> str:
        return text.replace("localhost:8080", f"127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("readme")
    data = folder / ".treehead" / "log"
    subprocess.run([BIN / "tlogd", "init", "--origin", "localhost/first-log", "--data", data], check=True)
    (folder / ".venv").symlink_to(BIN.parent)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command: list[str | Path] = [BIN / "tlogd", "serve", "--config", data / "treehead.toml", "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            _wait(port)
            yield Session(folder, port)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0


def _wait(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("tlogd does not listen")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _steps(block: str) -> list[tuple[str, str]]:
    """Split a console block into commands and what they print."""
    steps: list[tuple[str, str]] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            steps.append((line[2:].strip(), ""))
        else:
            steps[-1] = (steps[-1][0], steps[-1][1] + line)
    return steps


def _pattern(shown: str) -> str:
    """`…` stands for what differs from log to log: at the end of a line for its rest, alone for one line or more."""
    lines = [
        re.escape(line).replace("…", r"[^\n]+(?:\n[^\n]+)*" if line.strip() == "…" else r"[^\n]+")
        for line in shown.splitlines()
    ]
    return "".join(f"{line}\n" for line in lines)


def test_console_sessions_print_what_the_readme_shows(session: Session) -> None:
    blocks = _blocks("console")
    assert len(blocks) >= 4
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TREEHEAD_")}
    environment["XDG_STATE_HOME"] = str(session.folder / "state")
    script, shown = "set -eu\n", []
    for command, output in [step for block in blocks for step in _steps(block)]:
        script += f"{session.localised(command)}\necho; echo '=== end'\n"
        shown.append((command, output))
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=session.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    for (command, output), printed in zip(shown, done.stdout.split("\n=== end\n"), strict=False):
        text = printed if printed.endswith("\n") or not printed else f"{printed}\n"
        if output:
            assert re.fullmatch(_pattern(output), text), f"$ {command}\n{text}"


def test_the_python_example_runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(session.folder / "python-state"))
    monkeypatch.chdir(session.folder)
    (example,) = _blocks("python")
    names: dict[str, object] = {}
    exec(compile(session.localised(example), "README.md", "exec"), names)
    proof = names["proof"]
    assert isinstance(proof, bytes)
    assert proof.startswith(b"c2sp.org/tlog-proof@v1\n")
    assert not (session.folder / "python-state").exists(), "what .treehead does not hold is not removed with it"


def test_every_indented_command_is_one_of_dev() -> None:
    commands = re.findall(r"^    (\./dev \w+)$", README, re.MULTILINE)
    assert set(commands) == {"./dev demo", "./dev test", "./dev serve"}
    text = subprocess.run([CHECKOUT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^  {command.split()[1]} ", text, re.MULTILINE) for command in commands)


@pytest.mark.timeout(180)
def test_the_demo_succeeds_and_shows_every_refusal() -> None:
    done = subprocess.run(
        [sys.executable, CHECKOUT / "demo.py", "--entries", "600"],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused, exit code 3") == 2
    assert done.stdout.count("refused, exit code 4") == 1
    assert "All as it should be" in done.stdout
