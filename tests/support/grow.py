"""Logs made in this process, and databases edited behind the back of the program."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

import msgspec

from tests.support.serving import limit
from tests.support.static import unframed
from tlog.server.create import create_log
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tlog.server.config import Config

CREATED_MS = 1_700_000_000_000


def create(data: Path, checkpoints: Path | None = None, origin: str = "localhost/x") -> Config:
    """Create a log, and return its configuration as `serve` reads it; it has no ballast."""
    from tlog.server.config import read_config  # noqa: PLC0415  # not by those who only edit

    create_log(origin, data, CREATED_MS, checkpoints)
    limit(data, ballast_bytes=0)
    return read_config(data / "treehead.toml")


def raise_fatal(error: BaseException) -> NoReturn:
    """Stand for the end of the process."""
    raise AssertionError("the log stopped") from error


def grow(config: Config, batches: Iterable[Sequence[bytes]]) -> None:
    """Open a log, add entries, one commit a batch, equal ones too, and close it."""

    async def run() -> None:
        async with open_log(msgspec.structs.replace(config, dedup=False), raise_fatal) as log:
            for batch in batches:
                first = log.head.size
                placed = await asyncio.gather(*map(log.add, batch))
                assert [each.index for each in placed] == list(range(first, first + len(batch)))

    asyncio.run(run())


def stored(data: Path) -> list[bytes]:
    """Return all entries of log.db, read with nothing but SQLite."""
    with closing(sqlite3.connect(data / "log.db")) as connection:
        rows = connection.execute("SELECT first, count, entries FROM segment ORDER BY first").fetchall()
    entries: list[bytes] = []
    for first, count, blob in rows:
        assert first == len(entries)
        entries += unframed(blob)
        assert len(entries) == first + count
    return entries


def edit(path: Path, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Change a database; its triggers do not see it and are there afterwards, as they were."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
        for _, sql in triggers:
            connection.execute(sql)


def reseal(path: Path) -> None:
    """Compute the digest of every segment anew, as whoever edits them on purpose would."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT first, count, time_ms, root, leaf_digest, keys FROM segment").fetchall()
    edit(path, *(("UPDATE segment SET digest = ? WHERE first = ?", (digest(*row), row[0])) for row in rows))


def digest(first: int, count: int, time_ms: int, *rest: bytes) -> bytes:
    """Return the digest of a segment, as the storage says: rest is its root, its leaf digest and its keys."""
    numbers = b"".join(number.to_bytes(8, signed=True) for number in (first, count, time_ms))
    return sha256(b"treehead/segment/v1\n" + numbers + b"".join(rest)).digest()


def change_segment(data: Path, index: int, change: Callable[[bytes], bytes]) -> None:
    """Change the stored bytes of the segment that holds an entry."""
    with closing(sqlite3.connect(data / "log.db")) as connection:
        first, blob = connection.execute(
            "SELECT first, entries FROM segment WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,)
        ).fetchone()
    edit(data / "log.db", ("UPDATE segment SET entries = ? WHERE first = ?", (change(blob), first)))


def change_entry(data: Path, index: int) -> None:
    """Flip the last bit of a stored entry."""
    with closing(sqlite3.connect(data / "log.db")) as connection:
        first, blob = connection.execute(
            "SELECT first, entries FROM segment WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,)
        ).fetchone()
    end = sum(2 + len(entry) for entry in unframed(blob)[: index - first + 1])
    change_segment(data, index, lambda data: data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])


def replace(source: Path, target: Path) -> None:
    """Put a closed database in the place of another."""
    for suffix in ("-wal", "-shm"):
        assert not source.with_name(source.name + suffix).exists(), "it is open"
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(source, target)
