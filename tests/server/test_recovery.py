"""What a start trusts: nothing that is not durable, and nothing derived before the truth was checked."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import change_entry, create, edit, grow, raise_fatal, stored
from tlog.server.create import create_log
from tlog.server.errors import CreateError, StartRefusedError
from tlog.server.log import open_log
from tlog.server.storage.checkpoints import open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.invariant("I9", "I10")


def leave_wal(source: Path, target: Path) -> int:
    """Copy a database as a crash leaves it, with its WAL; return the size of that."""
    shutil.copy(source, target)
    wal = source.with_name(source.name + "-wal")
    shutil.copy(wal, target.with_name(target.name + "-wal"))
    return wal.stat().st_size


def test_what_a_wal_holds_is_in_the_database_before_it_is_trusted(tmp_path: Path) -> None:
    config = create(tmp_path / "log")
    grow(config, [[b"one", b"two"]])
    with closing(open_segments(tmp_path / "log" / "log.db")) as connection:
        last = SqliteStorage(connection).segment_at(2)
        assert last is not None
        copied = connection.execute("CREATE TEMP TABLE kept AS SELECT * FROM segment").fetchall()
        assert copied == []
        connection.execute(
            "INSERT INTO segment SELECT 3, count, root, leaf_digest, time_ms, keys, digest, entries FROM kept "
            "WHERE first = 1"
        )
        assert leave_wal(tmp_path / "log" / "log.db", tmp_path / "log.db") > 0
    with closing(sqlite3.connect(f"file:{tmp_path}/log.db?immutable=1", uri=True)) as without_wal:
        assert without_wal.execute("SELECT count(*) FROM segment").fetchone() == (2,)
    with closing(open_segments(tmp_path / "log.db")):
        assert (tmp_path / "log.db-wal").stat().st_size == 0
        with closing(sqlite3.connect(f"file:{tmp_path}/log.db?immutable=1", uri=True)) as without_wal:
            assert without_wal.execute("SELECT count(*) FROM segment").fetchone() == (3,)


def test_a_log_that_another_program_reads_is_refused_rather_than_half_trusted(tmp_path: Path) -> None:
    create(tmp_path / "log")
    with closing(sqlite3.connect(tmp_path / "log" / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM segment").fetchall()
        with closing(sqlite3.connect(tmp_path / "log" / "log.db", isolation_level=None)) as writer:
            writer.execute("CREATE TEMP TABLE t (x)")
            writer.execute("PRAGMA user_version = 7")
            with pytest.raises(StartRefusedError, match="in use by another program"):
                open_segments(tmp_path / "log" / "log.db")


def test_a_damaged_tile_is_rebuilt_and_no_entry_is_blamed(tmp_path: Path) -> None:
    config = create(tmp_path / "log")
    batch = [b"%d" % number for number in range(16_000)]
    grow(config, [*([batch] * 4), batch[:2001]])  # 66,002 entries: tile (1,0) is full, and above the newest tiles
    edit(tmp_path / "log" / "tiles.db", "UPDATE tile SET hashes = zeroblob(8192) WHERE id = 255 << 6")

    async def prove() -> list[bytes]:
        async with open_log(config, raise_fatal) as log:
            return (await log.prove_inclusion(65_281, 66_002))[1]

    assert len(asyncio.run(prove())) >= 9


def test_a_changed_truth_leaves_the_derived_tiles_alone(tmp_path: Path) -> None:
    """They may hold the only good copy of the entry."""
    data = tmp_path / "log"
    config = create(data)
    grow(config, [[b"entry %d" % number for number in range(700)]])
    edit(data / "tiles.db", "UPDATE position SET size = 1")  # reason enough to build them anew
    change_entry(data, 300)
    before = (data / "tiles.db").read_bytes()
    with pytest.raises(StartRefusedError, match="an entry was changed"):
        grow(config, [])
    assert (data / "tiles.db").read_bytes() == before


@pytest.mark.parametrize("origin", ["lög.example", "log😀.example", 'quote"back\\slash', "del\x7fete"])
def test_a_log_of_any_allowed_name_starts(tmp_path: Path, origin: str) -> None:
    config = create(tmp_path / "log", tmp_path / "wö😀rt" / "checkpoints.db", origin)
    assert config.origin == origin
    grow(config, [[b"entry"]])
    assert stored(tmp_path / "log")[1:] == [b"entry"]


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_init_refuses_whatever_sqlite_would_take_for_its_checkpoint_store(tmp_path: Path, ending: str) -> None:
    left = tmp_path / f"checkpoints.db{ending}"
    left.write_bytes(b"left over")
    with pytest.raises(CreateError, match="exists"):
        create_log("localhost/x", tmp_path / "log", 0, tmp_path / "checkpoints.db")
    assert left.read_bytes() == b"left over"
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_store_belongs_to_one_process(tmp_path: Path) -> None:
    create(tmp_path / "log")
    with closing(open_checkpoints(tmp_path / "log" / "checkpoints.db")) as first:
        first.execute("UPDATE head SET epoch = epoch + 1")
        with pytest.raises(StartRefusedError):
            open_checkpoints(tmp_path / "log" / "checkpoints.db")
