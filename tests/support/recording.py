"""A log with copies of its files as they were after each commit: what a backup, a snapshot or a crash would leave."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.grow import create
from tests.support.scrape import scrape
from tests.support.server import Server
from tests.support.wire import connected, head_of
from tlog.cbor import encode
from tlog.fetch import CBOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DATABASES = ("log.db", "checkpoints.db", "tiles.db")

_TRIES = 400
_PAUSE_S = 0.025


@dataclass(frozen=True, slots=True)
class Moment:
    """A log between two commits.

    Attributes:
        size: Its size.
        note: Its signed head.
        folder: Its databases, each with the WAL that SQLite had beside it: as a crash leaves them.
    """

    size: int
    note: bytes
    folder: Path


@dataclass(slots=True)
class Recording:
    """A log that was served, and every moment of it.

    Attributes:
        data: Its folder, as a crash left it at the last moment.
        entries: All its entries.
        moments: One after each commit.
    """

    data: Path
    entries: list[bytes]
    moments: list[Moment] = field(default_factory=list)

    def at(self, size: int) -> Moment:
        """Return the moment of a size."""
        return next(moment for moment in self.moments if moment.size == size)

    def copy(self, target: Path, moment: Moment | None = None) -> Path:
        """Copy the folder of the log, with the databases of a moment; by default of the last one."""
        shutil.copytree(self.data, target)
        for name in DATABASES:
            put(moment or self.moments[-1], name, target)
        return target


def batches(ends: Sequence[int], dice: random.Random) -> Iterator[list[bytes]]:
    """Yield entries that are all different, so many that the log has each size of `ends` in turn."""
    size = 1
    for end in ends:
        length = dice.choice([4, 40, 400, 4000] if end - size < 1000 else [4, 40, 400])
        yield [b"%d " % number + dice.randbytes(length) for number in range(size, end)]
        size = end


def record(folder: Path, ends: Sequence[int], seed: int = 1) -> Recording:
    """Serve a new log, grow it to each size in one commit, and copy its files each time.

    The server is killed before every tenth commit, and stopped before every fifteenth: each time SQLite begins a new
    WAL, as it does after every megabyte or so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = create(folder / "log")
    with closing(sqlite3.connect(folder / "log" / "log.db")) as connection:
        (blob,) = connection.execute("SELECT entries FROM segment").fetchone()
    recording = Recording(folder / "log", [blob[2:]])
    with Server(folder / "log") as server:
        for number, batch in enumerate(([], *batches(ends, random.Random(seed)))):
            if number % 10 == 6:
                server.kill()
                server.start()
            if number % 15 == 11:
                server.stop()
                server.start()
            asyncio.run(_record(server, recording, batch))
    assert config.path("log.db").exists()
    return recording


async def _record(server: Server, recording: Recording, batch: Sequence[bytes]) -> None:
    """Take one more commit, and keep the moment behind it."""
    async with connected(server.port) as connection:
        if batch:
            body = encode(list(batch))
            answer = await connection.request("POST", "/v1/entries/batch", body, (("Content-Type", CBOR),))
            assert answer.status == 201, answer.body
            recording.entries += batch
        note = (await connection.request("GET", "/checkpoint")).body
    size, _ = head_of(note)
    assert size == len(recording.entries)
    folder = recording.data.parent / f"{len(recording.moments):03}-{size}"
    await _settled(server, recording.data, folder)
    recording.moments.append(Moment(size, note, folder))


async def _settled(server: Server, data: Path, folder: Path) -> None:
    """Copy the databases when the tiles are up to date and nothing is written any more."""
    for _ in range(_TRIES):
        samples = await scrape(server.port)
        if samples["treehead_follower_lag_entries", ("log", "localhost/x")] < 256:
            one, other = _copy(data, folder / "a"), _copy(data, folder)
            shutil.rmtree(folder / "a")
            if one == other:
                return
        await asyncio.sleep(_PAUSE_S)
    raise AssertionError("the log does not come to rest")


def _copy(data: Path, folder: Path) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in DATABASES:
        for ending in ("", "-wal"):
            if (data / f"{name}{ending}").exists():
                shutil.copyfile(data / f"{name}{ending}", folder / f"{name}{ending}")
                found.append((folder / f"{name}{ending}").read_bytes())
    return found


def put(moment: Moment, name: str, data: Path, wal: Moment | None = None) -> None:
    """Put a database of a moment in the place of the one that is there, with its WAL or that of another moment."""
    for ending in ("", "-wal", "-shm"):
        (data / f"{name}{ending}").unlink(missing_ok=True)
    shutil.copyfile(moment.folder / name, data / name)
    beside = (wal or moment).folder / f"{name}-wal"
    if beside.exists():
        shutil.copyfile(beside, data / f"{name}-wal")


def put_closed(moment: Moment, name: str, data: Path) -> None:
    """Put a database of a moment in the place of the one that is there, as it is when its log was closed."""
    put(moment, name, data)
    with closing(sqlite3.connect(data / name)) as connection:
        connection.execute("SELECT * FROM sqlite_schema").fetchall()
    assert not (data / f"{name}-wal").exists()


def put_beside(wal: Moment, name: str, data: Path) -> None:
    """Put the WAL of a moment beside the database that is there."""
    shutil.copyfile(wal.folder / f"{name}-wal", data / f"{name}-wal")
