"""`tlogd fsck` finds every damage, one at a time, tells it in a line with what to do, and writes nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import change_entry, create, edit, grow, replace, stored
from tests.support.operating import add_batches, flip
from tests.support.server import Server, run_tlogd
from tlog.server.config import read_config
from tlog.server.idempotency import KeyRecord, RequestKey
from tlog.server.verify import check_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.operating import Tlogd
    from tlog.server.verify import Report

DAMAGED = 5
REFUSED = 3


def check(data: Path, *, deep: bool = True) -> Report:
    return check_log(read_config(data / "treehead.toml"), lambda _done, _total: None, deep=deep)


def content(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(data.iterdir()) if path.name != "lock"}


def sql(name: str, *statements: str) -> Callable[[Path], None]:
    return lambda data: edit(data / name, *statements)


def flipped(name: str, table: str, column: str, where: str, at: int = 0) -> Callable[[Path], None]:
    return lambda data: flip(data / name, table, column, where, at)


def forge(data: Path) -> None:
    """Change an entry, and everything in log.db that depends on it but the tree."""
    change_entry(data, 650)
    with closing(sqlite3.connect(data / "log.db")) as connection:
        (blob,) = connection.execute("SELECT entries FROM segment WHERE first = 601").fetchone()
    leaves = [sha256(b"\0" + entry).digest() for entry in stored(data)[601:]]
    assert len(blob) > 100
    statement = "UPDATE segment SET leaf_digest = ? WHERE first = 601"
    edit(data / "log.db", (statement, (sha256(b"".join(leaves)).digest(),)))


def swap(data: Path) -> None:
    """Exchange the entries of two commits."""
    with closing(sqlite3.connect(data / "log.db")) as connection:
        rows = connection.execute(
            "SELECT first, entries, leaf_digest FROM segment WHERE first IN (101, 201)"
        ).fetchall()
    (one, *values), (other, *others) = rows
    statement = "UPDATE segment SET entries = ?, leaf_digest = ? WHERE first = ?"
    edit(data / "log.db", (statement, (*others, one)), (statement, (*values, other)))


def keep_key(data: Path, record: bytes) -> None:
    edit(data / "log.db", ("UPDATE segment SET keys = ? WHERE first = 101", (record,)))


KEY = KeyRecord(RequestKey(bytes(32), bytes(32)), (101, 150)).format()
LATE_KEY = KeyRecord(RequestKey(bytes(32), bytes(32)), (101, 201)).format()


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)


def forget_key(data: Path) -> None:
    """Store a key without its entry in the index of keys, as a lost page would."""
    keep_key(data, KEY)
    with closing(sqlite3.connect(data / "log.db", isolation_level=None)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'segment_with_keys'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = bytearray((data / "log.db").read_bytes())
    raw[(page - 1) * size + 3 : (page - 1) * size + 5] = bytes(2)  # number of cells
    (data / "log.db").write_bytes(raw)


LOG = {
    "an entry": (
        flipped("log.db", "segment", "entries", "first = 301", 7),
        "entries 301 to 400: they are not the ones",
    ),
    "the length of an entry": (flipped("log.db", "segment", "entries", "first = 301", 0), "framing is broken"),
    "the newest entry": (flipped("log.db", "segment", "entries", "first = 601", -1), "entries 601 to 700"),
    "the genesis entry": (flipped("log.db", "segment", "entries", "first = 0", 20), "entries 0 to 0: they are not"),
    "entries with their digest": (forge, "the first 701 entries do not have the signed root"),
    "the order of commits": (swap, "the first 701 entries do not have the signed root"),
    "a root": (flipped("log.db", "segment", "root", "first = 301"), "the root stored at size 401 is not that"),
    "a digest": (flipped("log.db", "segment", "leaf_digest", "first = 301"), "their digest differs"),
    "a time": (sql("log.db", "UPDATE segment SET time_ms = 1 WHERE first = 301"), "the time of entry 301 is before"),
    "a late time": (
        sql("log.db", "UPDATE segment SET time_ms = 1 << 60 WHERE first = 301"),
        "the time of entry 401 is",
    ),
    "a first index": (
        sql("log.db", "UPDATE segment SET first = 302 WHERE first = 301"),
        "entries 301 to 301 are missing",
    ),
    "a large count": (
        sql("log.db", "UPDATE segment SET count = 101 WHERE first = 301"),
        "entries 401 to 401 are there",
    ),
    "a small count": (
        sql("log.db", "UPDATE segment SET count = 99 WHERE first = 301"),
        "entries 400 to 400 are missing",
    ),
    "a commit": (sql("log.db", "DELETE FROM segment WHERE first = 301"), "entries 301 to 400 are missing"),
    "the newest commit": (
        sql("log.db", "DELETE FROM segment WHERE first = 601"),
        "it holds 601 entries, and 701 are signed: 100 are missing",
    ),
    "a key record": (lambda data: keep_key(data, KEY[:-1]), "the record of an idempotency key is cut off"),
    "the index of a key": (lambda data: keep_key(data, LATE_KEY), "names an entry that was not there yet"),
    "the schema": (sql("log.db", "CREATE TABLE more (id INTEGER)"), "has another schema"),
    "a trigger": (
        lambda data: execute(data / "log.db", "DROP TRIGGER segment_stays"),
        "has another schema",
    ),
    "the index of keys": (forget_key, "SQLite says: "),
    "the file": (lambda data: (data / "log.db").write_bytes(b"junk" * 5000), "log.db is damaged"),
    "all of the file": (lambda data: (data / "log.db").write_bytes(b""), "has another schema"),
    "the name of the file": (lambda data: (data / "log.db").unlink(), "log.db is missing"),
}

CHECKPOINTS = {
    "the size": (sql("checkpoints.db", "UPDATE head SET size = 601"), "contradicts itself"),
    "the root": (flipped("checkpoints.db", "head", "root", "1"), "contradicts itself"),
    "the note": (flipped("checkpoints.db", "head", "note", "1", -3), "does not verify"),
    "the text of the note": (flipped("checkpoints.db", "head", "note", "1", 14), "does not verify"),
    "the origin": (sql("checkpoints.db", "UPDATE head SET origin = 'other'"), "knows no log named 'localhost/x'"),
    "the row": (sql("checkpoints.db", "DELETE FROM head"), "knows no log named 'localhost/x'"),
    "the file": (lambda data: (data / "checkpoints.db").write_bytes(b"junk" * 5000), "checkpoints.db is damaged"),
    "the name of the file": (lambda data: (data / "checkpoints.db").unlink(), "checkpoints.db is missing"),
}

TILES = {
    "a hash": (flipped("tiles.db", "tile", "hashes", "id = 64", 4000), "tile/0/001 is not what the entries make it"),
    "a tile's place": (sql("tiles.db", "UPDATE tile SET id = 128 WHERE id = 64"), "tile/0/001 is missing"),
    "a tile": (sql("tiles.db", "DELETE FROM tile WHERE id = 64"), "tile/0/001 is missing"),
    "a tile too much": (sql("tiles.db", "INSERT INTO tile VALUES (77, zeroblob(8192))"), "1 tiles that no tree has"),
    "a bundle": (flipped("tiles.db", "bundle", "gzip", "id = 1", -10), "tile/entries/001 is "),
    "an end of a bundle": (
        flipped("tiles.db", "bundle", "gzip", "id = 1", -1),
        "tile/entries/001 is missing, or cannot",
    ),
    "a bundle that is missing": (sql("tiles.db", "DELETE FROM bundle WHERE id = 0"), "tile/entries/000 is missing"),
    "bundles that are exchanged": (
        sql("tiles.db", "UPDATE bundle SET id = id + 10", "UPDATE bundle SET id = 11 - id"),
        "tile/entries/000 is not what the entries make it",
    ),
    "a bundle too much": (sql("tiles.db", "INSERT INTO bundle VALUES (9, x'00')"), "1 bundles that no tree has"),
    "a small position": (sql("tiles.db", "UPDATE position SET size = 256"), "1 tiles that no tree has"),
    "a large position": (sql("tiles.db", "UPDATE position SET size = 768"), "it goes up to 768 of 701 entries"),
    "an odd position": (sql("tiles.db", "UPDATE position SET size = 500"), "does not say how far it goes"),
    "the position": (sql("tiles.db", "DELETE FROM position"), "does not say how far it goes"),
    "the schema": (sql("tiles.db", "DROP TABLE bundle"), "has another schema"),
    "the file": (lambda data: (data / "tiles.db").write_bytes(b"junk" * 5000), "tiles.db is damaged"),
}


@pytest.mark.parametrize("case", LOG)
def test_damage_in_log_db_is_found(data: Path, case: str) -> None:
    damage, message = LOG[case]
    damage(data)
    found = check(data).findings
    assert any(one.file == "log.db" and message in one.what for one in found.damages), found.damages


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_damage_in_checkpoints_db_is_found(data: Path, case: str) -> None:
    damage, message = CHECKPOINTS[case]
    damage(data)
    found = check(data).findings
    assert [one.file for one in found.damages] == ["checkpoints.db"]
    assert message in found.damages[0].what
    assert found.checked["entries"] == 701


@pytest.mark.parametrize("case", TILES)
def test_damage_in_tiles_db_is_found_and_blamed_on_it_alone(data: Path, case: str) -> None:
    damage, message = TILES[case]
    damage(data)
    found = check(data).findings
    assert {one.file for one in found.damages} == {"tiles.db"}, found.damages
    assert any(message in one.what for one in found.damages), found.damages


def test_a_whole_log_has_no_damage_and_everything_of_it_is_looked_at(data: Path) -> None:
    before = content(data)
    report = check(data)
    assert report.findings.damages == []
    assert report.findings.checked == {"segments": 8, "entries": 701, "tiles": 2, "bundles": 2}
    assert report.head is not None
    assert report.head.size == 701
    assert content(data) == before


def test_a_changed_entry_below_tiles_that_are_signed_is_named(data: Path) -> None:
    change_entry(data, 300)
    damages = [one.what for one in check(data).findings.damages if one.file == "log.db"]
    assert "entry 300 is not the one in the signed tree: it was changed" in damages
    assert "the root stored at sizes 301 to 701 is not that of the entries" in damages


def test_lost_tiles_are_worth_a_note_and_no_damage(data: Path) -> None:
    (data / "tiles.db").unlink()
    found = check(data).findings
    assert found.damages == []
    assert found.notes == ["tiles.db is missing; it is derived, and the next start builds it"]


def test_a_commit_that_was_not_signed_yet_is_worth_a_note(data: Path, template: Path) -> None:
    config = read_config(data / "treehead.toml")
    grow(config, [[b"one more"]])
    for name in ("checkpoints.db", "tiles.db"):
        replace(template / name, data / name)
    found = check(data).findings
    assert found.damages == []
    assert found.notes == ["1 entries are stored and not signed yet; the next start signs them"]
    grow(config, [[b"another"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    assert "ahead of the signed head 701 by more than one commit" in check(data).findings.damages[0].what


def test_another_log_of_that_name_is_found(data: Path, tmp_path: Path) -> None:
    grow(create(tmp_path / "other"), [[b"x", b"y"]])
    replace(tmp_path / "other" / "log.db", data / "log.db")
    damages = [one.what for one in check(data).findings.damages]
    assert "entry 0 is the genesis entry of another log" in damages


def test_any_byte_of_log_db_may_flip_and_the_check_says_so_or_the_entries_are_the_same(data: Path) -> None:
    path = data / "log.db"
    whole, entries = path.read_bytes(), stored(data)
    found = 0
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        if check(data).findings.total:
            found += 1
        else:
            assert stored(data) == entries, at
    assert found > len(whole) / 97 / 4


def test_a_truncated_file_is_damage(data: Path) -> None:
    path = data / "log.db"
    whole = path.read_bytes()
    for length in range(0, len(whole), 5000):
        path.write_bytes(whole[:length])
        assert check(data).findings.total, length


# The command.


def test_the_command_tells_each_damage_in_a_line_with_what_to_do_and_ends_with_5(data: Path, tlogd: Tlogd) -> None:
    change_entry(data, 650)
    edit(data / "tiles.db", "DELETE FROM tile WHERE id = 64")
    before = content(data)
    done = tlogd("fsck", "--config", data / "treehead.toml")
    assert done.code == DAMAGED
    lines = done.out.splitlines()
    assert "damaged: tiles.db: tile/0/001 is missing, or cannot be read" in lines
    assert any(line.startswith("damaged: log.db: entries 601 to 700") for line in lines)
    assert any(line.startswith("log.db: restore it with: tlogd restore FILE") for line in lines)
    assert any(line.startswith("tiles.db: it is derived") for line in lines)
    assert content(data) == before


def test_the_report_in_json_says_the_same(data: Path, tlogd: Tlogd) -> None:
    config = data / "treehead.toml"
    report = json.loads(tlogd("fsck", "--deep", "--json", "--config", config).out)
    assert report["ok"] is True
    assert (report["origin"], report["size"], report["deep"], report["damages"]) == ("localhost/x", 701, True, [])
    edit(data / "tiles.db", "DELETE FROM tile WHERE id = 64")
    done = tlogd("fsck", "--json", "--config", config)
    report = json.loads(done.out)
    assert done.code == DAMAGED
    assert report["ok"] is False
    assert report["found"] == 1
    assert report["damages"][0]["file"] == "tiles.db"
    assert "remove tiles.db" in report["damages"][0]["remedy"]


def test_many_damages_are_counted_beyond_a_hundred(data: Path, tlogd: Tlogd) -> None:
    rows = "WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < 700) "
    insert = "INSERT INTO segment (first, count, root, leaf_digest, time_ms, keys, digest, entries) "
    edit(
        data / "log.db",
        rows + insert + "SELECT 701 + i, 1, zeroblob(32), zeroblob(32), 1 << 60, x'', zeroblob(32), x'0000' FROM n",
    )
    done = tlogd("fsck", "--config", data / "treehead.toml")
    assert done.code == DAMAGED
    assert len(done.out.splitlines()) < 120
    assert "more" in done.out


def test_a_log_that_is_served_is_refused_with_what_to_do_instead(data: Path) -> None:
    with Server(data) as server:
        done = run_tlogd("fsck", "--config", data / "treehead.toml")
        assert done.returncode == REFUSED
        assert f"which serves it at http://127.0.0.1:{server.port}" in done.stderr
        assert "is checked with: tlog fsck URL" in done.stderr
        assert server.stop() == 0


# The leaf index, and what is not deep.

ENTRIES = 1 << 16


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log whose leaf index has a run, with a duplicate in it, and a tile of level 1."""
    data = tmp_path_factory.mktemp("large") / "log"
    config = create(data)
    file = data / "treehead.toml"
    file.write_text(file.read_text().replace("\n[http]", "dedup = false\n\n[http]"))
    numbers = range(ENTRIES + 1000)
    add_batches(
        read_config(file),
        [
            [b"entry %d" % (number % 60_000) for number in numbers[at : at + 4096]]
            for at in range(0, len(numbers), 4096)
        ],
    )
    assert config.dedup
    return data


@pytest.fixture
def big(large: Path, tmp_path: Path) -> Path:
    return shutil.copytree(large, tmp_path / "log")


def test_a_large_log_is_whole_and_its_leaf_index_is_looked_at(big: Path) -> None:
    deep = check(big).findings
    assert deep.damages == []
    assert deep.checked["leaves"] == ENTRIES
    with closing(sqlite3.connect(big / "tiles.db")) as connection:
        ((position,),) = connection.execute("SELECT size FROM position")
    assert position >= ENTRIES
    assert deep.checked["tiles"] == position // 256 + 1
    plain = check(big, deep=False)
    assert plain.findings.damages == []
    assert not plain.is_deep
    assert plain.findings.checked["bundles"] < 256


LEAVES = {
    "the number of a run": sql("tiles.db", "UPDATE leaf_run SET id = id + 1"),
    "the first index of a run": sql("tiles.db", "UPDATE leaf_run SET first = 1"),
    "the level of a run": sql("tiles.db", "UPDATE leaf_run SET level = 1"),
    "a filter": flipped("tiles.db", "leaf_run", "filter", "1", 1000),
    "the length of a filter": sql("tiles.db", "UPDATE leaf_run SET filter = zeroblob(100)"),
    "the prefix of an item": flipped("tiles.db", "leaf_bucket", "items", "1", 3),
    "the index of an item": flipped("tiles.db", "leaf_bucket", "items", "1", 15),
    "an item": sql("tiles.db", "UPDATE leaf_bucket SET items = substr(items, 17) WHERE rowid % 256 = 7"),
    "a half item": sql("tiles.db", "UPDATE leaf_bucket SET items = substr(items, 9) WHERE rowid % 256 = 7"),
    "a bucket": sql("tiles.db", "DELETE FROM leaf_bucket WHERE rowid % 256 = 7"),
    "the number of a bucket": sql("tiles.db", "UPDATE leaf_bucket SET id = id + 1000 WHERE rowid % 256 = 7"),
    "a hash of level 1": flipped("tiles.db", "tile", "hashes", "id = 1", 77),
}


@pytest.mark.parametrize("case", LEAVES)
def test_damage_in_the_leaf_index_is_found(big: Path, case: str) -> None:
    LEAVES[case](big)
    found = check(big).findings
    assert {one.file for one in found.damages} == {"tiles.db"}, found.damages


def test_a_plain_check_finds_damage_among_the_newest_entries(big: Path) -> None:
    change_entry(big, ENTRIES - 1)
    report = check(big, deep=False)
    assert not report.is_deep
    assert any("entry 65535 is not the one in the signed tree" in one.what for one in report.findings.damages)


def test_a_plain_check_of_entries_that_tiles_do_not_tie_to_the_head_hashes_everything(big: Path) -> None:
    change_entry(big, ENTRIES + 990)
    report = check(big, deep=False)
    assert report.is_deep
    assert any("do not have the signed root" in one.what for one in report.findings.damages)


def test_a_plain_check_finds_a_damaged_tile_above_those_it_samples(big: Path) -> None:
    flip(big / "tiles.db", "tile", "hashes", "id = 1", 8191)
    report = check(big, deep=False)
    assert report.is_deep
    assert {one.file for one in report.findings.damages} == {"tiles.db"}
