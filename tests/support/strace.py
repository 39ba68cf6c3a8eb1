"""System calls that fail: strace counts those of a process on some files, and makes one of them fail.

strace counts each system call by thread. The files of a log's truth are all written by one thread.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CALLS = ("pwrite64", "write", "fdatasync", "fsync", "ftruncate", "unlink", "rename")
"""What changes files, or makes the change durable."""

HOW = ("error=EIO", "error=ENOSPC", "signal=KILL")
"""The disk reports an error, or is full; or the process ends before the call."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One call that fails.

    Attributes:
        call: The system call.
        number: Which one of its thread, from 1.
        how: One of HOW.
    """

    call: str
    number: int
    how: str

    @property
    def is_crash(self) -> bool:
        """Whether the process ends."""
        return self.how.startswith("signal")


def command(files: Sequence[Path], fault: Fault | None, output: Path) -> list[str]:
    """Return the command line before the program, or before `-p PID`."""
    inject = [] if fault is None else ["-e", f"inject={fault.call}:{fault.how}:when={fault.number}"]
    only = [part for file in files for part in ("-P", str(file))]
    # a traced process says its own name to nobody: -o keeps strace off its standard error
    return ["strace", "-f", "-e", f"trace={','.join(CALLS)}", *only, *inject, "-o", str(output)]


@contextmanager
def attached(process: int, files: Sequence[Path], fault: Fault | None, output: Path) -> Iterator[None]:
    """Trace a process that runs already; at the end it is let go, if it is still there."""
    line = [*command(files, fault, output), "-p", str(process)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        assert f"Process {process} attached" in said, said
        try:
            yield
        finally:
            tracer.terminate()
            tracer.stderr.read()


def counts(output: Path) -> Counter[str]:
    """Return how often each call was made by the thread that made most of them."""
    threads: dict[str, Counter[str]] = {}
    for line in output.read_text().splitlines():
        thread, _, call = line.partition(" ")
        name = call.strip().partition("(")[0]
        if name in CALLS:
            threads.setdefault(thread, Counter())[name] += 1
    return max(threads.values(), key=lambda made: made.total(), default=Counter())


def faults(made: Counter[str]) -> list[Fault]:
    """Return every way in which one of these calls can fail."""
    return [
        Fault(call, number, how)
        for call, times in sorted(made.items())
        for number in range(1, times + 1)
        for how in HOW
        if not (how == "error=ENOSPC" and call in ("unlink", "rename"))
    ]
