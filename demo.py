"""`./dev demo`: a real log is filled and verified, and then its operator tries to deceive.

Every step runs the programs that a user runs, `tlogd` and `tlog`, and checks how they end. The demo exits with 1 as
soon as one of them does not do what is said here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tlog.checkpoint import Checkpoint
from tlog.edge import Edge
from tlog.merkle import EMPTY_ROOT, leaf_hash
from tlog.note import sign_note
from tlog.server.commit import Commit
from tlog.server.key import read_key
from tlog.server.signer import LocalSigner
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments
from tlog_client import AsyncLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ORIGIN = "localhost/demo"
IN_FLIGHT = 64
START_SECONDS = 30.0
BIN = Path(sys.executable).parent

console = Console(highlight=False)


class DemoError(Exception):
    """A step did not do what the demo says."""


def main() -> None:
    """Run the demo in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(prog="./dev demo", description="Fill a log, verify it, and try to deceive.")
    parser.add_argument("--entries", type=int, default=5000, help="entries to add (default 5000)")
    entries = max(300, parser.parse_args().entries)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="treehead-demo-") as folder:
        try:
            run_demo(Path(folder), entries)
        except (DemoError, OSError) as error:
            console.print(f"\n[bold red]The demo failed:[/] {error}")
            raise SystemExit(1) from error
    console.print(f"\n[bold green]All as it should be[/], in {time.monotonic() - started:.0f} s. Go on by hand:\n")
    console.print(GO_ON, markup=False, soft_wrap=True)


GO_ON = """\
  ./dev serve                                        a log of your own, on port 8080; in a second shell:

  . .venv/bin/activate
  export TREEHEAD_LOG=http://localhost:8080 TREEHEAD_VKEY=@.treehead/log/vkey TREEHEAD_STATE_DIR=.treehead/state
  echo 'hello, log' > entry.txt
  tlog submit entry.txt -o entry.tlog-proof
  tlog verify entry.txt entry.tlog-proof             offline: no log needed
  tlog get 1
  tlog monitor --once
"""


def run_demo(folder: Path, entries: int) -> None:
    """Take the steps, in order."""
    step("An operator creates a log and starts it")
    tlogd("init", "--origin", ORIGIN, "--data", folder / "log", expect=0)
    vkey = (folder / "log" / "vkey").read_text().strip()
    user = User(folder, vkey)
    with served(folder / "log") as url:
        step(f"An application adds {entries} entries over {IN_FLIGHT} connections, and verifies each answer")
        asyncio.run(add_entries(url, vkey, user.state, entries))
        step("It keeps one proof, and checks it offline")
        user.keep_proof(url)
        step("The same proof for another entry")
        user.swap_entry()
        step("A monitor fetches every entry, re-hashes all of them to the signed root, and remembers the head")
        user.tlog("monitor", "--once", "--log", url, expect=0)
    step("The operator quietly changes one byte of an entry in the database file, and starts the log again")
    index = entries // 2
    shutil.copytree(folder / "log", folder / "edited")
    change_byte(folder / "edited" / "log.db", index)
    tlogd("serve", "--config", folder / "edited" / "treehead.toml", "--port", "0", expect=3)
    step("So the operator rebuilds the whole log around the change, and signs it with the real key")
    forge(folder / "log", folder / "forged", index)
    with served(folder / "forged") as url:
        console.print(
            "[dim]The forged log starts: in itself it is consistent. But somebody has seen the real one:[/]",
            soft_wrap=True,
        )
        user.tlog("monitor", "--once", "--log", url, expect=4)
        user.show_evidence()


class User:
    """Somebody who uses the log: has its key, keeps what was seen, and calls `tlog`."""

    def __init__(self, folder: Path, vkey: str) -> None:
        """Begin with nothing seen."""
        self.state = folder / "state"
        self._folder = folder
        self._vkey = vkey

    def tlog(self, *arguments: str | Path, expect: int, state: bool = True) -> None:
        """Run `tlog`, show it, and check how it ends."""
        options = ("--vkey", self._vkey, *(("--state-dir", self.state) if state else ()))
        run([BIN / "tlog", *arguments, *options], expect, hide=options)

    def keep_proof(self, url: str) -> None:
        """Submit an entry, keep its proof, and verify it without the log."""
        (self._folder / "entry.txt").write_text("2026-11-24 alice approved payment 4711 over 1,000.00\n")
        proof = self._folder / "entry.tlog-proof"
        self.tlog("submit", self._folder / "entry.txt", "-o", proof, "--log", url, expect=0)
        self.tlog("verify", self._folder / "entry.txt", proof, expect=0, state=False)

    def swap_entry(self) -> None:
        """Verify the proof for what was never logged."""
        (self._folder / "changed.txt").write_text("2026-11-24 alice approved payment 4711 over 9,000.00\n")
        self.tlog("verify", self._folder / "changed.txt", self._folder / "entry.tlog-proof", expect=3, state=False)

    def show_evidence(self) -> None:
        """Show the two heads that prove the fork to everybody."""
        notes = sorted(self.state.glob("evidence/**/*.checkpoint"))
        if len(notes) != 2:
            raise DemoError(f"two signed heads should be kept as evidence, not {len(notes)}")
        console.print("[dim]Two signed heads that cannot both be true, kept as evidence:[/]\n")
        for note in notes:
            console.print(note.read_text(), markup=False, soft_wrap=True)


async def add_entries(url: str, vkey: str, state: Path, count: int) -> None:
    """Add entries side by side; the library raises if any answer does not verify."""
    numbers = iter(range(count))
    started = time.monotonic()
    with progress() as bar:
        task = bar.add_task("added and verified", total=count)
        async with AsyncLog(url, vkey, state_dir=state) as log:

            async def work() -> None:
                for number in numbers:
                    added = await log.add(f"event {number}: user {number % 97} did thing {number % 13}".encode())
                    if not 0 < added.index <= count:
                        raise DemoError(f"entry {number} got the index {added.index}")
                    bar.advance(task)

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
            head = await log.checkpoint()
    if head.size != count + 1:
        raise DemoError(f"the head has size {head.size} instead of {count + 1}")
    rate = count / (time.monotonic() - started)
    console.print(f"  {count} entries durable, signed and verified, {rate:.0f} a second on this machine")


def progress() -> Progress:
    """Return a progress bar."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def change_byte(database: Path, index: int) -> None:
    """Flip one bit of an entry in the file itself, as an insider with an editor would."""
    needle = f"event {index - 1}: user".encode()
    data = bytearray(database.read_bytes())
    if data.count(needle) != 1:
        raise DemoError(f"entry {index} is not where it should be in {database}")
    at = data.index(needle)
    data[at] ^= 1
    database.write_bytes(data)
    console.print(f"  byte {at} of log.db: {needle[:1].decode()!r} is now {chr(data[at])!r}")


def forge(log: Path, forged: Path, index: int) -> None:
    """Write a log with one entry changed, of the same size, signed with the real key throughout."""
    with closing(open_segments(log / "log.db")) as connection:
        storage = SqliteStorage(connection)
        entries = storage.entries(0, storage.size())
    entries[index] = entries[index].replace(b"did thing", b"did wrong")
    forged.mkdir()
    for name in ("key", "treehead.toml"):
        shutil.copy2(log / name, forged / name)
    signer = read_key(forged / "key")
    start = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    empty = SignedHead(ORIGIN, 0, 0, EMPTY_ROOT, sign_note(start.format(), [signer]))
    with (
        closing(open_segments(forged / "log.db", create=True)) as segments,
        closing(open_checkpoints(forged / "checkpoints.db", create=True)) as checkpoints,
    ):
        store = SqliteCheckpointStore(checkpoints)
        store.create(empty)
        commit = Commit(SqliteStorage(segments), store, LocalSigner(signer, start), empty, Edge(), 0)
        commit.run(entries, [leaf_hash(entry) for entry in entries], time.time_ns() // 1_000_000)
    console.print(f"  {len(entries)} entries, entry {index} among them, in a log of the same name and key")


@contextmanager
def served(data: Path) -> Iterator[str]:
    """Run `tlogd serve` as a process of its own, on a free port; yield its URL."""
    arguments = [str(BIN / "tlogd"), "serve", "--config", str(data / "treehead.toml"), "--port", "0"]
    show(["tlogd", "serve", "--config", data / "treehead.toml", "--port", "0"])
    with (data / "serve.log").open("wb") as errors:
        process = subprocess.Popen(arguments, stderr=errors)
    try:
        yield f"http://127.0.0.1:{wait_for_port(process, data / 'serve.log')}"
    finally:
        process.terminate()
        code = process.wait(START_SECONDS)
    if code != 0:
        raise DemoError(f"tlogd ended with {code} instead of 0")


def wait_for_port(process: subprocess.Popen[bytes], events: Path) -> int:
    """Return the port that the server says it listens on."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in events.read_text().splitlines():
            event = json.loads(line) if line.endswith("}") else {}
            if event.get("event") == "server.listening":
                return int(event["port"])
        time.sleep(0.02)
    raise DemoError(f"tlogd does not listen: {events.read_text()}")


def tlogd(*arguments: str | Path, expect: int) -> None:
    """Run `tlogd`, show it, and check how it ends."""
    run([BIN / "tlogd", *arguments], expect)


def run(command: Sequence[str | Path], expect: int, hide: Sequence[str | Path] = ()) -> None:
    """Run a program, show its command and its answer, and check how it ends."""
    show([Path(command[0]).name, *(part for part in command[1:] if part not in hide)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TREEHEAD_")}
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    for line in done.stdout.strip().splitlines():
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if done.returncode != expect:
        raise DemoError(f"{Path(command[0]).name} ended with {done.returncode} instead of {expect}")
    if expect:
        console.print(f"  [green]refused[/], exit code {done.returncode}")


def step(title: str) -> None:
    """Say what comes next."""
    console.print(f"\n[bold]{title}[/]", soft_wrap=True)


def show(command: Sequence[str | Path]) -> None:
    """Show a command as it would be typed."""
    console.print(f"  [cyan]$ {shlex.join(str(part) for part in command)}[/]", soft_wrap=True)


if __name__ == "__main__":
    main()
