"""Backups of a log that is served under load, and restoring them: the same head, or an honest refusal."""

from __future__ import annotations

import http.client
import json
import shutil
import sqlite3
import threading
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import change_entry, create, edit, grow, replace, reseal, stored
from tests.support.operating import add_batches, flip
from tests.support.rfc6962 import Tree
from tests.support.server import Server, run_tlogd
from tests.support.serving import limit
from tests.support.static import unframed
from tests.support.wire import head_of
from tlog.policy import Policy
from tlog.server.config import read_config
from tlog.server.storage.segments import open_segments

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tests.support.operating import Tlogd

pytestmark = pytest.mark.invariant("I30")

USAGE = 2
REFUSED = 3
DAMAGED = 5


class Load:
    """Adds entries to a server, one after the other on each of several connections, until it is told to stop."""

    def __init__(self, port: int, connections: int = 4, most: int = 100_000) -> None:
        self._port = port
        self._most = most
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._add, args=(number,)) for number in range(connections)]
        self.added = [0] * connections

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _add(self, number: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            while not (self.added[number] and self._stop.is_set()) and self.added[number] < self._most:
                connection.request("POST", "/add", f"{id(self)} {number} {self.added[number]}".encode())
                response = connection.getresponse()
                assert (response.status, bool(response.read())) == (200, True)
                self.added[number] += 1


def served_note(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/checkpoint", timeout=10) as response:
        return bytes(response.read())


def content(file: Path) -> tuple[bytes, list[bytes]]:
    """Return the note and the entries of a backup, read with nothing but SQLite."""
    with closing(sqlite3.connect(file)) as connection:
        ((note,),) = connection.execute("SELECT note FROM backup").fetchall()
        rows = connection.execute("SELECT first, count, entries FROM segment ORDER BY first").fetchall()
    entries: list[bytes] = []
    for first, count, blob in rows:
        assert first == len(entries)
        entries += unframed(blob)
        assert len(entries) == first + count
    return note, entries


@pytest.fixture
def backup(data: Path, tmp_path: Path, tlogd: Tlogd) -> Path:
    """Back the log up."""
    assert tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml").code == 0
    return tmp_path / "backup"


# Under load.


def test_a_backup_under_load_is_a_signed_tree_and_is_restored_only_for_the_current_head(tmp_path: Path) -> None:
    store = tmp_path / "volume" / "checkpoints.db"
    config = create(tmp_path / "log", store)
    add_batches(config, [[b"%d %d" % (batch, number) for number in range(1000)] for batch in range(20)])
    data, first, second = tmp_path / "log", tmp_path / "first", tmp_path / "second"
    with Server(data) as server:
        before, _ = head_of(served_note(server.port))
        with Load(server.port) as load:
            done = run_tlogd("backup", first, "--config", data / "treehead.toml", "--json")
            during = sum(load.added)
        assert done.returncode == 0, done.stderr
        assert during > 0, "nothing was added meanwhile"
        after, _ = head_of(served_note(server.port))
        with Load(server.port, most=1):
            pass
        assert run_tlogd("backup", second, "--config", data / "treehead.toml").returncode == 0
        newest = served_note(server.port)
        assert server.stop() == 0

    note, entries = content(first)
    assert Policy.of_log(config.vkey).open_checkpoint(note).size == len(entries)
    assert before <= len(entries) <= after
    assert head_of(note) == (len(entries), Tree(entries).mth(0, len(entries)))
    assert json.loads(done.stdout)["size"] == len(entries)
    assert entries == stored(data)[: len(entries)]

    options = ("--config", data / "treehead.toml", "--data", tmp_path / "new", "--checkpoints", store)
    refused = run_tlogd("restore", first, *options)
    assert refused.returncode == REFUSED
    assert f"the newest {head_of(newest)[0] - len(entries)} are missing" in refused.stderr
    assert "tlogd repair --from" in refused.stderr
    assert not (tmp_path / "new").exists()

    restored = run_tlogd("restore", second, *options)
    assert restored.returncode == 0, restored.stderr
    with Server(tmp_path / "new") as server:
        assert served_note(server.port) == newest
        assert server.stop() == 0
    assert stored(tmp_path / "new") == stored(data)
    assert run_tlogd("fsck", "--deep", "--config", tmp_path / "new" / "treehead.toml").returncode == 0


def test_a_start_waits_for_a_read_of_a_backup(data: Path) -> None:
    path = data / "log.db"
    with (
        closing(open_segments(path)) as server,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader,
    ):
        server.execute(
            "INSERT INTO segment (first, count, entries, root, leaf_digest, time_ms, keys, digest) "
            "SELECT 701, 1, entries, root, root, 1 << 50, keys, root FROM segment WHERE first = 0"
        )
        reader.execute("BEGIN")
        assert reader.execute("SELECT max(first) FROM segment").fetchone() == (701,)
        ending = threading.Timer(0.3, reader.execute, ["COMMIT"])
        ending.start()
        open_segments(path).close()
        ending.join()


# Backups.


def test_a_backup_holds_the_entries_and_the_head_and_neither_key_nor_store(
    data: Path, backup: Path, tmp_path: Path
) -> None:
    note, entries = content(backup)
    assert entries == stored(data)
    assert head_of(note) == (701, Tree(entries).mth(0, 701))
    secret = (data / "key").read_bytes().split(b"+", 4)[4].strip()  # base64 may hold "+" itself
    assert secret not in backup.read_bytes()
    with closing(sqlite3.connect(backup)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
        with pytest.raises(sqlite3.IntegrityError, match="insert-only"):
            connection.execute("UPDATE segment SET time_ms = 0")
    assert tables == [("backup",), ("segment",)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "log"]
    assert backup.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_backup_is_never_written_over_anything(data: Path, tmp_path: Path, tlogd: Tlogd, kind: str) -> None:
    target = tmp_path / "taken"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    done = tlogd("backup", target, "--config", data / "treehead.toml")
    assert (done.code, "a backup is never written over anything" in done.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "taken"]
    assert kind != "file" or target.read_text() == "mine"


def test_a_backup_of_a_damaged_log_ends_with_5_and_leaves_nothing(data: Path, tmp_path: Path, tlogd: Tlogd) -> None:
    change_entry(data, 650)
    done = tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml")
    assert done.code == DAMAGED
    assert "damaged: log.db: entries 601 to 700: they are not the ones that came in" in done.err
    (data / "log.db").write_bytes((data / "log.db").read_bytes()[:20_000])
    assert tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml").code == DAMAGED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
def test_a_backup_of_a_log_that_lacks_a_file_is_refused(data: Path, tmp_path: Path, tlogd: Tlogd, name: str) -> None:
    (data / name).unlink()
    done = tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml", "--json")
    assert done.code == REFUSED
    assert json.loads(done.out)["message"] == f"{data / name} is missing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_backup_stops_at_the_signed_size(data: Path, template: Path, tmp_path: Path, tlogd: Tlogd) -> None:
    grow(read_config(data / "treehead.toml"), [[b"not signed, as far as the store knows"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    assert tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml").code == 0
    assert content(tmp_path / "backup")[1] == stored(template)


def test_a_server_that_signs_with_another_key_is_not_believed(data: Path, tmp_path: Path) -> None:
    create(tmp_path / "other")
    with Server(tmp_path / "other") as server:
        lock = (data / "lock").open("w")
        lock.write(json.dumps({"pid": 1, "url": f"http://127.0.0.1:{server.port}"}))
        lock.flush()
        import fcntl  # noqa: PLC0415  # for this alone

        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml")
        lock.close()
        assert server.stop() == 0
    assert done.returncode == 1
    assert "no signature by a known key" in done.stderr


# Restoring.


def restore(tlogd: Tlogd, backup: Path, data: Path, *options: str | Path) -> tuple[int, str]:
    done = tlogd("restore", backup, "--config", data / "treehead.toml", *options)
    return done.code, done.out + done.err


def test_a_lost_log_db_is_restored_and_served_with_the_same_head(
    data: Path, template: Path, backup: Path, tlogd: Tlogd
) -> None:
    (data / "log.db").unlink()
    code, said = restore(tlogd, backup, data)
    assert code == 0, said
    assert "Restored 701 entries of localhost/x" in said
    assert stored(data) == stored(template)
    assert not (data / "tiles.db").exists()
    with Server(data) as server:
        assert head_of(served_note(server.port))[0] == 701
        assert server.stop() == 0


def test_a_damaged_log_db_is_set_aside_with_its_wal_and_replaced(data: Path, backup: Path, tlogd: Tlogd) -> None:
    change_entry(data, 650)
    damaged = (data / "log.db").read_bytes()
    (data / "log.db-wal").write_bytes(b"")
    code, said = restore(tlogd, backup, data)
    assert code == 0, said
    assert (data / "log.db.damaged-1").read_bytes() == damaged
    assert (data / "log.db.damaged-1-wal").exists()
    assert not (data / "log.db-wal").exists()
    assert tlogd("fsck", "--deep", "--config", data / "treehead.toml").code == 0
    grow(read_config(data / "treehead.toml"), [[b"and on"]])
    assert stored(data)[-1] == b"and on"


def test_every_kind_of_damage_makes_room_for_a_backup(data: Path, backup: Path, tlogd: Tlogd) -> None:
    for number, damage in enumerate((b"", b"junk" * 5000, (data / "log.db").read_bytes()[:9000]), 1):
        (data / "log.db").write_bytes(damage)
        code, said = restore(tlogd, backup, data)
        assert code == 0, said
        assert (data / f"log.db.damaged-{number}").read_bytes() == damage


def test_a_whole_log_db_is_left_alone(data: Path, backup: Path, tlogd: Tlogd) -> None:
    before = (data / "log.db").read_bytes()
    code, said = restore(tlogd, backup, data)
    assert (code, "log.db is whole: it has all 701 signed entries" in said) == (REFUSED, True), said
    assert (data / "log.db").read_bytes() == before
    assert (data / "tiles.db").exists()


def content_of(data: Path) -> dict[str, bytes]:
    """Return every file of a folder but the lock."""
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock"}


@pytest.mark.invariant("I2")
def test_commits_behind_a_store_that_was_taken_back_are_never_dropped(
    data: Path, template: Path, backup: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"signed"], [b"and signed"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    for damage in (False, True):
        if damage:
            change_entry(data, 300)
        checked = tlogd("fsck", "--config", data / "treehead.toml")
        assert checked.code == DAMAGED
        assert "damaged: checkpoints.db: log.db is ahead of the signed head 701 by more than one commit" in checked.out
        assert ("tlogd restore" in checked.out) == damage
        before = content_of(data)
        for options in ((), ("--data", tmp_path / "new")):
            code, said = restore(tlogd, backup, data, *options)
            assert (code, "by more than one commit" in said) == (REFUSED, True), said
        assert content_of(data) == before
        assert not (tmp_path / "new").exists()


@pytest.mark.invariant("I2")
def test_a_commit_behind_the_signed_head_is_kept_and_signed_by_the_next_start(
    data: Path, template: Path, backup: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    config = read_config(data / "treehead.toml")
    grow(config, [[b"one", b"two"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    change_entry(data, 300)
    code, said = restore(tlogd, backup, data, "--data", tmp_path / "new")
    assert (code, "holds a commit behind the signed head 701" in said) == (REFUSED, True), said
    code, said = restore(tlogd, backup, data)
    assert (code, "The commit behind it, 2 entries, was kept" in said) == (0, True), said
    assert stored(data) == [*stored(template), b"one", b"two"]
    grow(config, [[b"and on"]])
    assert tlogd("fsck", "--deep", "--config", data / "treehead.toml").code == 0


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("column", ["entries", "root", "digest", "sealed root"])
def test_a_commit_behind_the_signed_head_that_cannot_be_signed_refuses_a_restore(
    data: Path, template: Path, backup: Path, tlogd: Tlogd, column: str
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"one", b"two"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    flip(data / "log.db", "segment", column.removeprefix("sealed "), "first = 701", 3)
    if "sealed" in column:
        reseal(data / "log.db")
    change_entry(data, 300)
    before = content_of(data)
    code, said = restore(tlogd, backup, data)
    assert (code, f"tlogd repair --from {backup} --discard-unsigned" in said) == (REFUSED, True), said
    assert content_of(data) == before


@pytest.mark.invariant("I11")
def test_what_has_seen_more_than_the_signed_head_refuses_a_restore(
    data: Path, template: Path, backup: Path, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"signed, and both were taken back"]])
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db?mode=ro&immutable=1", uri=True)) as connection:
        (note,) = connection.execute("SELECT note FROM head").fetchone()
    (data / "anchor").write_bytes(note)
    replace(template / "checkpoints.db", data / "checkpoints.db")
    text = (data / "treehead.toml").read_text()
    (data / "treehead.toml").write_text(f'anchors = ["anchor"]\n{text}')
    refuses(tlogd, backup, data, "the anchor anchor has seen a head of size 702")


def refuses(tlogd: Tlogd, backup: Path, data: Path, message: str, code: int = REFUSED) -> None:
    """Assert that a backup is refused in the place of a lost log.db, and that nothing is put there."""
    (data / "log.db").unlink(missing_ok=True)
    before = sorted(path.name for path in data.iterdir())
    found, said = restore(tlogd, backup, data)
    assert (found, message in said) == (code, True), said
    assert sorted(path.name for path in data.iterdir()) == sorted({*before, "lock"})


def test_a_backup_that_is_older_than_the_head_is_refused_and_says_what_is_missing(
    data: Path, backup: Path, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"one", b"two", b"three"]])
    refuses(tlogd, backup, data, "the backup holds 701 entries, and 704 are signed: the newest 3 are missing")


def test_a_checkpoint_store_that_is_older_than_the_backup_is_refused(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"one"]])
    assert tlogd("backup", tmp_path / "backup", "--config", data / "treehead.toml").code == 0
    replace(template / "checkpoints.db", data / "checkpoints.db")
    refuses(tlogd, tmp_path / "backup", data, "the checkpoint store is at 701: it is an older copy")


def test_a_backup_of_another_tree_of_the_same_key_is_refused(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    fork = shutil.copytree(template, tmp_path / "fork")
    grow(read_config(data / "treehead.toml"), [[b"one"]])
    grow(read_config(fork / "treehead.toml"), [[b"another"]])
    assert tlogd("backup", tmp_path / "backup", "--config", fork / "treehead.toml").code == 0
    refuses(tlogd, tmp_path / "backup", data, "the backup is of another tree")


def test_a_backup_of_another_log_is_refused(data: Path, tmp_path: Path, tlogd: Tlogd) -> None:
    create(tmp_path / "other")
    assert tlogd("backup", tmp_path / "backup", "--config", tmp_path / "other" / "treehead.toml").code == 0
    refuses(tlogd, tmp_path / "backup", data, "is a backup of another log")


@pytest.mark.parametrize(
    ("table", "column", "at", "code"),
    [
        ("segment", "entries", 5, DAMAGED),
        ("segment", "root", 5, DAMAGED),
        ("segment", "leaf_digest", 5, DAMAGED),
        ("segment", "digest", 5, DAMAGED),
        ("backup", "note", -4, REFUSED),
        ("backup", "note", 13, REFUSED),
    ],
)
def test_a_damaged_backup_is_refused(
    data: Path, backup: Path, tlogd: Tlogd, table: str, column: str, at: int, code: int
) -> None:
    flip(backup, table, column, "1", at)
    refuses(tlogd, backup, data, "", code)


def test_what_is_no_backup_is_refused(data: Path, backup: Path, tlogd: Tlogd, tmp_path: Path) -> None:
    cut, junk, bare = tmp_path / "cut", tmp_path / "junk", shutil.copy(data / "log.db", tmp_path / "bare")
    cut.write_bytes(backup.read_bytes()[:8192])
    junk.write_bytes(bytes(range(256)) * 100)
    edit(backup, "DELETE FROM backup")
    for file in (tmp_path / "nowhere", tmp_path, cut, junk, Path(bare), backup, Path(__file__)):
        (data / "log.db").unlink(missing_ok=True)
        code, said = restore(tlogd, file, data)
        assert code in ((REFUSED, DAMAGED) if file.is_file() else (USAGE,)), (file, said)
        assert not (data / "log.db").exists()


def test_a_log_in_use_is_not_restored(data: Path, backup: Path) -> None:
    with Server(data) as server:
        done = run_tlogd("restore", backup, "--config", data / "treehead.toml")
        assert (done.returncode, "in use by process" in done.stderr) == (REFUSED, True)
        done = run_tlogd("restore", backup, "--config", data / "treehead.toml", "--data", data.parent / "new")
        assert (done.returncode, "in use by another process" in done.stderr) == (REFUSED, True)
        assert server.stop() == 0
    assert not (data.parent / "new").exists()


def test_elsewhere_needs_a_new_folder_and_takes_over_all_settings(
    data: Path, backup: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    limit(data, rate=77)
    assert restore(tlogd, backup, data, "--data", data)[0] == 2
    assert restore(tlogd, backup, data, "--checkpoints", data / "checkpoints.db")[0] == 2
    code, said = restore(tlogd, backup, data, "--data", tmp_path / "deep" / "new")
    assert code == 0, said
    old, new = read_config(data / "treehead.toml"), read_config(tmp_path / "deep" / "new" / "treehead.toml")
    assert new.limits == old.limits
    assert (new.path(new.key), new.path(new.checkpoints)) == (data / "key", data / "checkpoints.db")
    grow(new, [[b"and on"]])
    assert len(stored(tmp_path / "deep" / "new")) == 702


@pytest.mark.invariant("I11")
def test_elsewhere_signer_and_anchors_are_the_same_as_before(
    data: Path, backup: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    text = (data / "treehead.toml").read_text()
    lines = 'signer = "unix:socket"', 'anchors = ["one", "https://a.example/b"]', 'anchor_file = "two"'
    (data / "treehead.toml").write_text("\n".join((*lines, text)))
    assert restore(tlogd, backup, data, "--data", tmp_path / "new")[0] == 0
    new = read_config(tmp_path / "new" / "treehead.toml")
    assert (new.signer, new.anchor_file) == (f"unix:{data}/socket", f"{data}/two")
    assert new.anchors == (f"{data}/one", "https://a.example/b")


@pytest.mark.invariant("I11")
def test_elsewhere_a_log_that_was_taken_back_is_refused_by_the_head_that_it_wrote(
    data: Path, template: Path, backup: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    (data / "treehead.toml").write_text(f'anchor_file = "head"\n{(data / "treehead.toml").read_text()}')
    grow(read_config(data / "treehead.toml"), [[b"signed"]])
    for name in ("log.db", "checkpoints.db"):
        replace(template / name, data / name)
    (data / "tiles.db").unlink()
    assert restore(tlogd, backup, data, "--data", tmp_path / "new")[0] == 0
    done = run_tlogd("serve", "--config", tmp_path / "new" / "treehead.toml", "--port", "0")
    assert (done.returncode, "has seen it at size 702" in done.stderr) == (REFUSED, True), done.stderr
