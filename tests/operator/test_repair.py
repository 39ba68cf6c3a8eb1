"""`tlogd repair --from`: every damage to log.db is undone from any honest source, and no source can do any harm."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.dying_tlogd import SWAP, kill
from tests.support.grow import change_entry, change_segment, create, edit, grow, replace, reseal, stored
from tests.support.mirror import Mirror, write_mirror
from tests.support.operating import flip
from tests.support.rfc6962 import Tree
from tests.support.server import Server, run_tlogd
from tlog.server import source
from tlog.server.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.mirror import Reply
    from tests.support.operating import Done, Tlogd

pytestmark = pytest.mark.invariant("I2", "I7", "I30")

REFUSED, DAMAGED, FAILED, USAGE = 3, 5, 1, 2
SIZE = 701
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the port of "discard"


def note_of(data: Path) -> bytes:
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db?mode=ro&immutable=1", uri=True)) as connection:
        return bytes(connection.execute("SELECT note FROM head").fetchone()[0])


def rows(data: Path) -> dict[int, tuple[object, ...]]:
    """Return every segment of log.db by its first index, up to what cannot be read."""
    names = "first, count, entries, root, leaf_digest, time_ms, keys, digest"
    found: dict[int, tuple[object, ...]] = {}
    with closing(sqlite3.connect(data / "log.db")) as connection, suppress(sqlite3.DatabaseError):
        for row in connection.execute(f"SELECT {names} FROM segment"):
            found[row[0]] = row
    return found


def files(data: Path) -> dict[str, bytes]:
    """Return every file of a folder but the lock."""
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock"}


@pytest.fixture(scope="session")
def tree(template: Path) -> Tree:
    return Tree(stored(template))


@pytest.fixture
def mirror(tree: Tree, template: Path) -> Iterator[Mirror]:
    """Serve an honest mirror, which has the signed head, too."""
    with Mirror(tree, SIZE, note_of(template)) as mirror:
        yield mirror


def repair(tlogd: Tlogd, data: Path, name: str | Path, *options: str) -> Done:
    return tlogd("repair", "--from", name, "--config", data / "treehead.toml", *options)


def check_repaired(tlogd: Tlogd, data: Path, template: Path) -> None:
    """Assert that a log has every entry, and nothing is wrong with it."""
    assert stored(data) == stored(template)
    done = tlogd("fsck", "--deep", "--config", data / "treehead.toml")
    assert done.code == 0, done
    assert not list(data.glob(".*.part*"))


def set_page(data: Path, number: int, content: bytes) -> None:
    """Overwrite a page of log.db, from 1."""
    with (data / "log.db").open("r+b") as file:
        file.seek((number - 1) * 4096)
        file.write(content)


def drop_trigger(data: Path) -> None:
    with closing(sqlite3.connect(data / "log.db")) as connection, connection:
        connection.execute("DROP TRIGGER segment_stays")


def change_entries(data: Path, *indexes: int) -> None:
    for index in indexes:
        change_entry(data, index)


def seal_time(data: Path, time_ms: int) -> None:
    """Take the time of a segment back, as whoever knows how it is sealed would."""
    edit(data / "log.db", f"UPDATE segment SET time_ms = {time_ms} WHERE first = 301")
    reseal(data / "log.db")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "an entry": lambda data: change_entry(data, 650),
    "the genesis entry": lambda data: change_entry(data, 0),
    "entries of every block": lambda data: change_entries(data, 3, 300, 513, 700),
    "the framing": lambda data: change_segment(data, 350, lambda blob: b"\xff" + blob[1:]),
    "a cut segment": lambda data: change_segment(data, 350, lambda blob: blob[:-1]),
    "an empty segment": lambda data: change_segment(data, 350, lambda _: b""),
    "a lost segment": lambda data: edit(data / "log.db", "DELETE FROM segment WHERE first = 301"),
    "the first segments": lambda data: edit(data / "log.db", "DELETE FROM segment WHERE first < 201"),
    "the last segments": lambda data: edit(data / "log.db", "DELETE FROM segment WHERE first > 400"),
    "all segments": lambda data: edit(data / "log.db", "DELETE FROM segment"),
    "a root": lambda data: flip(data / "log.db", "segment", "root", "first = 301", 3),
    "the signed root": lambda data: flip(data / "log.db", "segment", "root", "first = 601", 3),
    "a leaf digest": lambda data: flip(data / "log.db", "segment", "leaf_digest", "first = 301", 3),
    "a digest": lambda data: flip(data / "log.db", "segment", "digest", "first = 301", 3),
    "a time": lambda data: edit(data / "log.db", "UPDATE segment SET time_ms = 1 << 61 WHERE first = 301"),
    "a time that was sealed": lambda data: seal_time(data, 5),
    "keys": lambda data: edit(data / "log.db", "UPDATE segment SET keys = x'00' WHERE first = 301"),
    "a larger count": lambda data: edit(data / "log.db", "UPDATE segment SET count = 228 WHERE first = 301"),
    "the last count": lambda data: edit(data / "log.db", "UPDATE segment SET count = 1 << 40 WHERE first = 601"),
    "a smaller count": lambda data: edit(data / "log.db", "UPDATE segment SET count = 36 WHERE first = 301"),
    "a moved segment": lambda data: edit(data / "log.db", "UPDATE segment SET first = 317 WHERE first = 301"),
    "two swapped segments": lambda data: edit(
        data / "log.db",
        "UPDATE segment SET first = 9999 WHERE first = 301",
        "UPDATE segment SET first = 301 WHERE first = 401",
        "UPDATE segment SET first = 401 WHERE first = 9999",
        "UPDATE segment SET first = 401 WHERE first = 9999",
    ),
    "a segment in a segment": lambda data: edit(
        data / "log.db",
        "INSERT INTO segment SELECT 333, count, root, leaf_digest, time_ms, keys, digest, entries FROM segment "
        "WHERE first = 301",
    ),
    "no file": lambda data: (data / "log.db").unlink(),
    "an empty file": lambda data: (data / "log.db").write_bytes(b""),
    "junk": lambda data: (data / "log.db").write_bytes(random.Random(1).randbytes(30_000)),
    "half a file": lambda data: os.truncate(data / "log.db", 4096 * 3),
    "the schema": lambda data: edit(data / "log.db", "CREATE TABLE other (x)"),
    "no trigger": drop_trigger,
    "a page of junk": lambda data: set_page(data, 4, random.Random(2).randbytes(4096)),
    "a page of zeros": lambda data: set_page(data, 5, bytes(4096)),
    "the page of the schema": lambda data: set_page(data, 1, bytes(4096)),
    "the root page of the table": lambda data: set_page(data, 2, bytes(4096)),
    "the page of an index": lambda data: set_page(data, 3, bytes(4096)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_undone_from_a_mirror_and_what_is_whole_is_kept_row_for_row(
    data: Path, template: Path, mirror: Mirror, tlogd: Tlogd, damage: str
) -> None:
    DAMAGES[damage](data)
    broken, before, whole = None, {}, rows(template)
    if (data / "log.db").exists():
        broken, before = (data / "log.db").read_bytes(), rows(data)
    done = repair(tlogd, data, mirror.url, "--json", *(["--discard-unsigned"] if "root page" in damage else []))
    assert done.code == 0, done
    said = json.loads(done.out)
    check_repaired(tlogd, data, template)
    found = rows(data)
    intact = {first: row for first, row in before.items() if row == whole.get(first)}
    assert all(found[first] == row for first, row in intact.items())
    assert len(intact) <= said["kept"] == len(found) - said["rebuilt"]
    assert broken is None or Path(said["aside"]).read_bytes() == broken
    assert not (data / "tiles.db").exists()


EXPECTED = {  # segments kept, and entries fetched: blocks are 0-255, 256-511, 512-700
    "an entry": (7, 189),
    "the genesis entry": (7, 256),
    "the framing": (7, 256),
    "a lost segment": (7, 256),
    "a root": (7, 0),
    "a digest": (7, 0),
    "a time": (7, 0),
    "keys": (7, 0),
    "no trigger": (8, 0),
    "the schema": (8, 0),
    "no file": (0, SIZE),
}


@pytest.mark.parametrize("damage", EXPECTED)
def test_only_what_is_damaged_is_fetched(data: Path, mirror: Mirror, tlogd: Tlogd, damage: str) -> None:
    DAMAGES[damage](data)
    kept, fetched = EXPECTED[damage]
    done = repair(tlogd, data, mirror.url if fetched else NOWHERE, "--json")
    assert done.code == 0, done
    said = json.loads(done.out)
    assert (said["kept"], said["fetched"]) == (kept, fetched)
    bundles = [path for path in mirror.asked if "entries" in path]
    assert len(bundles) == len(set(bundles)) == -(-fetched // 256)


@pytest.mark.parametrize(
    "kind", ["a server", "a folder", "an encoded folder", "a data directory", "a log.db", "a backup"]
)
@pytest.mark.parametrize("damage", ["entries of every block", "no file"])
def test_every_kind_of_source_brings_everything_back(
    data: Path, template: Path, tmp_path: Path, tree: Tree, tlogd: Tlogd, kind: str, damage: str
) -> None:
    DAMAGES[damage](data)
    name: str | Path = tmp_path / "source"
    if "folder" in kind:
        write_mirror(tmp_path / "source", tree, SIZE, encoded="encoded" in kind)
    elif kind == "a backup":
        copy = shutil.copytree(template, tmp_path / "copy")
        assert tlogd("backup", name, "--config", copy / "treehead.toml").code == 0
    else:
        shutil.copytree(template, tmp_path / "source")
        name = tmp_path / "source" / ("log.db" if kind == "a log.db" else "")
    if kind != "a server":
        done = repair(tlogd, data, name)
    else:
        with Server(tmp_path / "source") as server:
            done = repair(tlogd, data, f"http://127.0.0.1:{server.port}/")
            assert server.stop() == 0
    assert done.code == 0, done
    check_repaired(tlogd, data, template)


def test_a_source_may_be_larger_and_lack_partial_tiles(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    larger = shutil.copytree(template, tmp_path / "larger")
    config = read_config(larger / "treehead.toml")
    grow(config, [[b"more %d" % number for number in range(900)]])
    with Mirror(Tree(stored(larger)), 1601, every_width=True) as mirror:  # it does not say what it has signed
        change_entry(data, 690)
        done = repair(tlogd, data, mirror.url)
        assert done.code == 0, done
    check_repaired(tlogd, data, template)


def test_a_data_directory_that_is_served_is_no_source_by_its_files(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    other = shutil.copytree(template, tmp_path / "other")
    change_entry(data, 690)
    with Server(other) as server:
        for name in (other, other / "log.db"):
            refuses(tlogd, data, name, REFUSED, "is held by a server, and may be ahead", "name its URL")
        assert server.stop() == 0
    assert repair(tlogd, data, other).code == 0
    check_repaired(tlogd, data, template)


def test_a_repaired_log_serves_the_signed_head_and_goes_on(data: Path, template: Path, mirror: Mirror) -> None:
    (data / "log.db").unlink()
    done = run_tlogd("repair", "--from", mirror.url, "--config", data / "treehead.toml")
    assert done.returncode == 0, done.stderr
    assert "Repaired localhost/x: it has all that is signed, 701 entries" in done.stdout
    with Server(data) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/checkpoint", timeout=10) as response:
            assert response.read() == note_of(template)
        assert server.stop() == 0
    grow(read_config(data / "treehead.toml"), [[b"and on"]])
    assert stored(data) == [*stored(template), b"and on"]


def test_a_whole_log_is_left_alone_and_its_source_is_not_even_asked(data: Path, tlogd: Tlogd) -> None:
    before = files(data)
    done = repair(tlogd, data, NOWHERE)
    assert (done.code, "log.db is whole" in done.out) == (0, True), done
    assert files(data) == before


def test_200_damaged_files_are_each_repaired_or_whole(
    data: Path, template: Path, tmp_path: Path, tree: Tree, tlogd: Tlogd
) -> None:
    write_mirror(tmp_path / "mirror", tree, SIZE, encoded=False)
    clean, dice = (template / "log.db").read_bytes(), random.Random(20)
    repaired = 0
    for _ in range(200):
        broken = bytearray(clean)
        for _ in range(dice.choice((1, 1, 3, 30))):
            broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
        (data / "log.db").write_bytes(broken)
        done = repair(tlogd, data, tmp_path / "mirror", "--discard-unsigned", "--json")
        assert done.code == 0, done
        assert stored(data) == tree.entries
        repaired += not json.loads(done.out)["whole"]
        for old in data.glob("log.db.damaged-*"):
            old.unlink()
    assert repaired > 100


def test_the_wal_of_a_killed_server_is_read_and_not_left_beside_the_new_file(
    data: Path, mirror: Mirror, template: Path, tlogd: Tlogd
) -> None:
    (data / "log.db").unlink()
    shutil.copyfile(template / "log.db", data / "log.db")
    script = "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    script += "c.execute('PRAGMA wal_autocheckpoint = 0')\nc.execute('DROP TRIGGER segment_is_final')\n"
    script += 'c.execute("UPDATE segment SET leaf_digest = root WHERE first = 101")\n'
    script += 'c.execute("CREATE TRIGGER segment_is_final BEFORE UPDATE ON segment BEGIN SELECT raise(ABORT, '
    script += "'segments are insert-only'); END\")\nos._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(data / "log.db")], check=True, timeout=30)
    assert (data / "log.db-wal").stat().st_size > 0
    done = repair(tlogd, data, mirror.url)
    assert done.code == 0, done
    assert not (data / "log.db-wal").exists()
    check_repaired(tlogd, data, template)


# What is behind the signed head.


@pytest.fixture
def ahead(data: Path, template: Path) -> Path:
    """Make a log whose newest commit is stored and not signed."""
    grow(read_config(data / "treehead.toml"), [[b"not signed %d" % number for number in range(10)]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    return data


def test_a_good_unsigned_commit_is_kept_and_signed_by_the_next_start(
    ahead: Path, template: Path, mirror: Mirror, tlogd: Tlogd
) -> None:
    tail = rows(ahead)[SIZE]
    change_entry(ahead, 100)
    done = repair(tlogd, ahead, mirror.url)
    assert done.code == 0, done
    assert rows(ahead)[SIZE] == tail
    grow(read_config(ahead / "treehead.toml"), [])
    assert stored(ahead) == [*stored(template), *(b"not signed %d" % number for number in range(10))]


@pytest.mark.parametrize("column", ["entries", "root", "leaf_digest", "digest"])
def test_a_bad_unsigned_commit_goes_only_when_that_is_asked_for(
    ahead: Path, template: Path, mirror: Mirror, tlogd: Tlogd, column: str
) -> None:
    change_entry(ahead, 100)
    flip(ahead / "log.db", "segment", column, f"first = {SIZE}", 5)
    before = files(ahead)
    done = repair(tlogd, ahead, mirror.url)
    assert (done.code, "--discard-unsigned" in done.err) == (REFUSED, True), done
    assert files(ahead) == before
    done = repair(tlogd, ahead, mirror.url, "--discard-unsigned")
    assert (done.code, "was discarded" in done.out) == (0, True), done
    check_repaired(tlogd, ahead, template)


def test_an_unsigned_commit_whose_root_alone_is_wrong_is_told_when_all_is_counted(
    ahead: Path, mirror: Mirror, tlogd: Tlogd
) -> None:
    change_entry(ahead, 100)
    flip(ahead / "log.db", "segment", "root", f"first = {SIZE}", 5)
    reseal(ahead / "log.db")
    before = files(ahead)
    done = repair(tlogd, ahead, mirror.url)
    assert (done.code, "its root is not that of its entries" in done.err) == (REFUSED, True), done
    assert files(ahead) == before


def test_more_than_one_commit_behind_the_signed_head_is_refused(
    data: Path, template: Path, mirror: Mirror, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"one"], [b"two"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    change_entry(data, 100)
    before = files(data)
    done = repair(tlogd, data, mirror.url, "--discard-unsigned")
    assert (done.code, "by more than one commit" in done.err) == (REFUSED, True), done
    assert files(data) == before


def test_a_log_db_with_other_commits_is_refused(data: Path, mirror: Mirror, tmp_path: Path, tlogd: Tlogd) -> None:
    grow(create(tmp_path / "other"), [[b"all at once %d" % number for number in range(800)]])
    replace(tmp_path / "other" / "log.db", data / "log.db")
    before = files(data)
    done = repair(tlogd, data, mirror.url)
    assert (done.code, "within a commit of log.db" in done.err) == (REFUSED, True), done
    assert files(data) == before


# Sources that lie.


def refuses(tlogd: Tlogd, data: Path, name: str | Path, code: int, *messages: str) -> None:
    before = files(data)
    done = repair(tlogd, data, name)
    assert done.code == code, done
    for message in messages:
        assert message in done.err, done
    assert files(data) == before


def flipped(reply: Reply) -> Reply:
    status, headers, body = reply
    return status, headers, body[:-1] + bytes([body[-1] ^ 1])


BOMB = gzip.compress(bytes(1 << 26), 1)

LIES: dict[str, tuple[Callable[[str, Reply], Reply | None], int, str]] = {
    "nothing": (lambda _path, _reply: (404, {}, b""), REFUSED, "does not lead to the signed head"),
    "errors": (lambda _path, _reply: (500, {}, b""), REFUSED, "does not lead to the signed head"),
    "redirects": (lambda path, _reply: (302, {"Location": path}, b""), REFUSED, "answered 302"),
    "garbage": (lambda _path, reply: (reply[0], {}, b"\xff" * len(reply[2])), REFUSED, "does not lead to"),
    "too much": (lambda _path, reply: (reply[0], {}, reply[2] + bytes(1 << 26)), REFUSED, "does not lead to"),
    "broken gzip": (lambda _path, reply: (200, {"Content-Encoding": "gzip"}, reply[2]), REFUSED, "does not lead to"),
    "a bomb": (
        lambda _path, _reply: (200, {"Content-Encoding": "gzip"}, BOMB),
        REFUSED,
        "does not lead to",
    ),
    "a tile": (lambda path, reply: flipped(reply) if "tile/0" in path else reply, REFUSED, "does not lead to"),
    "a level": (lambda path, reply: flipped(reply) if "tile/1" in path else reply, REFUSED, "does not lead to"),
    "a bundle": (
        lambda path, reply: flipped(reply) if "tile/entries/001" in path else reply,
        DAMAGED,
        "damaged: entries 256 to 511: entry 511 is not the one",
    ),
    "no bundle": (
        lambda path, reply: (404, {}, b"") if "tile/entries/001" in path else reply,
        DAMAGED,
        "damaged: entries 256 to 511: the log answered 404",
    ),
    "a failing bundle": (
        lambda path, reply: (500, {}, b"") if "tile/entries/002" in path else reply,
        DAMAGED,
        "damaged: entries 512 to 700: the log answered 500",
    ),
    "a short bundle": (
        lambda path, reply: (200, {}, reply[2][:-1]) if "tile/entries/002" in path else reply,
        DAMAGED,
        "damaged: entries 512 to 700: not 189 framed entries",
    ),
    "half an answer": (
        lambda _path, reply: (200, {"Content-Length": str(len(reply[2]))}, reply[2][:-9]),
        FAILED,
        "does not answer",
    ),
    "silence": (lambda _path, _reply: None, FAILED, "it takes too long"),
    "silence in the middle": (lambda path, reply: None if "entries" in path else reply, FAILED, "it takes too long"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_mirror_that_lies_or_fails_changes_nothing(
    data: Path, mirror: Mirror, tlogd: Tlogd, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "ANSWER_S", 1.0)
    for index in (3, 300, 513):
        change_entry(data, index)
    mirror.lie, code, message = LIES[lie]
    refuses(tlogd, data, mirror.url, code, message)


def test_a_mirror_that_pushes_back_is_asked_again(data: Path, template: Path, mirror: Mirror, tlogd: Tlogd) -> None:
    change_entry(data, 300)
    mirror.lie = lambda path, reply: reply if mirror.asked.count(path) > 1 else (429, {"Retry-After": "0"}, b"")
    assert repair(tlogd, data, mirror.url).code == 0
    check_repaired(tlogd, data, template)


def test_all_that_is_missing_is_named(data: Path, mirror: Mirror, tlogd: Tlogd) -> None:
    (data / "log.db").unlink()
    mirror.lie = lambda path, reply: (404, {}, b"") if "tile/entries" in path else reply
    refuses(
        tlogd, data, mirror.url, DAMAGED, "entries 0 to 255", "entries 256 to 511", "entries 512 to 700", "lacks 3 of"
    )


def test_another_tree_of_the_same_key_is_refused(data: Path, tree: Tree, tlogd: Tlogd) -> None:
    change_entry(data, 300)
    with Mirror(Tree([*tree.entries[:-1], b"another"]), SIZE) as mirror:
        refuses(tlogd, data, mirror.url, REFUSED, "does not lead to the signed head 701")


def test_a_smaller_mirror_is_refused(data: Path, tree: Tree, tlogd: Tlogd) -> None:
    change_entry(data, 300)
    with Mirror(tree, SIZE - 1) as mirror:
        refuses(tlogd, data, mirror.url, REFUSED, "does not lead to the signed head 701", "answered 404")


def test_a_source_that_has_seen_a_newer_signed_head_shows_that_the_store_was_taken_back(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    larger = shutil.copytree(template, tmp_path / "larger")
    grow(read_config(larger / "treehead.toml"), [[b"newer"]])
    assert tlogd("backup", tmp_path / "backup", "--config", larger / "treehead.toml").code == 0
    change_entry(data, 300)
    with Mirror(Tree(stored(larger)), SIZE + 1, note_of(larger)) as mirror:
        refuses(tlogd, data, mirror.url, REFUSED, "has a signed head of size 702", "the log would fork")
    refuses(tlogd, data, tmp_path / "backup", REFUSED, "has a signed head of size 702")


@pytest.mark.parametrize("commits", [1, 2])
def test_a_data_directory_that_is_ahead_of_the_signed_head_is_refused(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd, commits: int
) -> None:
    larger = shutil.copytree(template, tmp_path / "larger")
    grow(read_config(larger / "treehead.toml"), [[b"newer %d" % number] for number in range(commits)])
    (data / "log.db").unlink()
    message = "has a signed head of size 702" if commits == 1 else "by more than one commit"
    for name in (larger, larger / "log.db"):
        refuses(tlogd, data, name, REFUSED, message, "would fork")
    (larger / "checkpoints.db").write_bytes(b"junk" * 3000)
    if commits == 2:
        refuses(tlogd, data, larger, REFUSED, message)
        edit(larger / "log.db", "UPDATE segment SET entries = x'ff' WHERE first > 700")
        refuses(tlogd, data, larger, REFUSED, message)
    else:  # it may as well never have been signed: a copy that a crash left
        assert repair(tlogd, data, larger).code == 0
        check_repaired(tlogd, data, template)


def test_a_source_with_another_head_of_the_same_size_is_a_fork(
    data: Path, template: Path, tmp_path: Path, tree: Tree, tlogd: Tlogd
) -> None:
    fork = shutil.copytree(template, tmp_path / "fork")
    grow(read_config(fork / "treehead.toml"), [[b"one side"]])
    grow(read_config(data / "treehead.toml"), [[b"the other"]])
    change_entry(data, 300)
    with Mirror(tree, SIZE, note_of(fork)) as mirror:
        refuses(tlogd, data, mirror.url, REFUSED, "has forked")


def test_a_copy_that_is_damaged_elsewhere_is_refused_and_what_is_no_source_is_wrong_usage(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    copy = shutil.copytree(template, tmp_path / "copy")
    change_entry(copy, 5)
    change_entry(data, 300)
    refuses(tlogd, data, copy, REFUSED, "does not lead to the signed head")
    for name in (tmp_path / "nowhere", tmp_path, "", "ftp://localhost/", "http://", "http://a b/", "https://u@h/"):
        refuses(tlogd, data, name, USAGE, "choose another name")
    refuses(tlogd, data, data, USAGE, "is the log itself")
    refuses(tlogd, data, Path(__file__), REFUSED, "is damaged")
    refuses(tlogd, data, NOWHERE, FAILED, "does not answer")


def test_a_log_in_use_or_without_its_store_is_refused(data: Path, mirror: Mirror, tlogd: Tlogd) -> None:
    change_entry(data, 300)
    (data / "checkpoints.db").rename(data / "gone")
    refuses(tlogd, data, mirror.url, REFUSED, "checkpoints.db is missing")
    (data / "gone").rename(data / "checkpoints.db")
    assert repair(tlogd, data, mirror.url).code == 0
    with Server(data) as server:
        for options in (("--from", mirror.url), ("--discard-unsigned",)):
            done = tlogd("repair", *options, "--config", data / "treehead.toml")
            assert (done.code, "in use by process" in done.err) == (REFUSED, True), done
        assert server.stop() == 0


# Killed at any moment.

PLACES = {
    "draft": ("tlog.server.repair", "write_segments"),
    "check": ("tlog.server.repair", "check_copy"),
    **SWAP,
    "tiles": ("tlog.server.repair", "remove_database"),
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", PLACES)
def test_a_repair_that_is_killed_leaves_the_log_as_before_or_as_after_and_can_be_repeated(
    data: Path, template: Path, tmp_path: Path, tree: Tree, tlogd: Tlogd, step: str, moment: str
) -> None:
    write_mirror(tmp_path / "mirror", tree, SIZE, encoded=False)
    change_entry(data, 300)
    before = (data / "log.db").read_bytes()
    kill(PLACES[step], moment, "repair", "--from", tmp_path / "mirror", "--config", data / "treehead.toml")
    is_after = (step, moment) in (("swap", "after"), ("tiles", "before"), ("tiles", "after"))
    assert ((data / "log.db").read_bytes() == before) != is_after
    if is_after:
        assert stored(data) == tree.entries
        assert (data / "log.db.damaged-1").read_bytes() == before
    done = repair(tlogd, data, tmp_path / "mirror")
    assert (done.code, "is whole" in done.out) == (0, is_after), done
    check_repaired(tlogd, data, template)
