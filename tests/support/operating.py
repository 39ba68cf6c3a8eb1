"""The operator's commands, run in this process, and logs to run them on."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import edit, raise_fatal
from tlog.server.cli import run
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tlog.server.config import Config


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended.

    Attributes:
        code: Its exit code.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
    """

    code: int
    out: str
    err: str


class Tlogd:
    """Runs `tlogd` in this process: its whole command line, but for what a process is needed for."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Done:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        assert "Traceback" not in said.err
        assert isinstance(ended.value.code, int)
        return Done(int(ended.value.code), said.out, said.err)


def add_batches(config: Config, batches: Iterable[Sequence[bytes]]) -> None:
    """Open a log, add each batch in one commit, and close it."""

    async def add() -> None:
        async with open_log(config, raise_fatal) as log:
            for batch in batches:
                await log.add_many(batch)

    asyncio.run(add())


def flip(path: Path, table: str, column: str, where: str, at: int) -> None:
    """Flip the lowest bit of a byte in a BLOB, behind the back of its triggers."""
    with closing(sqlite3.connect(path)) as connection:
        rowid, blob = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {where}").fetchone()
    at %= len(blob)
    changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    edit(path, (f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, rowid)))
