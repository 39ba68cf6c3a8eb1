"""`tlogd recover-checkpoints`: a lost store begins at a head from outside, and signs again only what was signed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.operator.test_discard import files, set_line, signer
from tests.support.dying_tlogd import SWAP, kill
from tests.support.grow import change_entry, create, edit, grow, replace, stored
from tests.support.mirror import Mirror
from tests.support.operating import flip
from tests.support.rfc6962 import Tree
from tests.support.server import TLOGD, Server, run_tlogd
from tests.support.wire import head_of
from tlog.checkpoint import Checkpoint
from tlog.note import sign_note
from tlog.server.config import read_config
from tlog.server.errors import CommitError
from tlog.server.key import read_log_key
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.operating import Done, Tlogd
    from tests.support.signing import SignerProcess

pytestmark = pytest.mark.invariant("I2", "I12", "I30")

__all__ = ["signer"]  # a fixture

REFUSED, DAMAGED, USAGE = 3, 5, 2
SIZE = 701


def head_row(data: Path) -> SignedHead:
    """Return what the checkpoint store holds."""
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db?mode=ro&immutable=1", uri=True)) as connection:
        return SignedHead(*connection.execute("SELECT origin, epoch, size, root, note FROM head").fetchone())


@pytest.fixture(scope="session")
def tree(template: Path) -> Tree:
    return Tree(stored(template))


def signed(data: Path, size: int, root: bytes) -> bytes:
    """Sign a head with the key of the log, and nothing else."""
    signer = read_log_key(read_config(data / "treehead.toml"))
    return sign_note(Checkpoint("localhost/x", size, root).format(), [signer])


def write_note(data: Path, tree: Tree, size: int = SIZE) -> Path:
    """Write the head of a size, as somebody outside has kept it."""
    note = data.parent / "note"
    note.write_bytes(signed(data, size, tree.mth(0, size)))
    return note


def recover(tlogd: Tlogd, data: Path, note: Path, *options: str) -> Done:
    config = data / "treehead.toml"
    return tlogd("recover-checkpoints", "--from", note, "--yes", "localhost/x", "--config", config, *options)


def refuses(tlogd: Tlogd, data: Path, note: Path, code: int, message: str) -> None:
    before = files(data)
    done = recover(tlogd, data, note)
    assert (done.code, message in done.err) == (code, True), done
    assert files(data) == before


@pytest.fixture
def lost(data: Path) -> Path:
    """Lose the checkpoint store."""
    (data / "checkpoints.db").unlink()
    return data


@pytest.mark.invariant("I11")
def test_a_store_that_can_be_read_and_is_old_says_so_and_the_advice_leads_on(
    data: Path, template: Path, tmp_path: Path, tlogd: Tlogd
) -> None:
    config = read_config(data / "treehead.toml")
    grow(config, [[b"one"], [b"two"]])
    note = tmp_path / "newest"
    note.write_bytes(head_row(data).note)
    replace(template / "checkpoints.db", data / "checkpoints.db")
    refuses(tlogd, data, note, REFUSED, "its head of size 701 is older than that of the note, of size 703")
    old = tmp_path / "old"
    old.write_bytes(head_row(template).note)
    set_line(data, f'anchors = ["{note}"]')
    refuses(tlogd, data, old, REFUSED, f"is older than that of the anchor {note}, of size 703")
    replace(template / "log.db", data / "log.db")
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert (done.returncode, "move the old checkpoints.db away" in done.stderr) == (REFUSED, True), done.stderr
    replace(template / "checkpoints.db", data / "checkpoints.db")
    (data / "checkpoints.db").unlink()
    assert recover(tlogd, data, note).code == 0


# What is recovered.


@pytest.mark.parametrize("size", [1, 101, 601, 701])
def test_a_lost_store_has_the_same_newest_head_again_from_any_head_that_was_signed(
    lost: Path, template: Path, tree: Tree, tlogd: Tlogd, size: int
) -> None:
    done = recover(tlogd, lost, write_note(lost, tree, size), "--json")
    assert done.code == 0, done
    said = json.loads(done.out)
    assert (said["start"], said["size"], said["stored"], said["aside"]) == (size, SIZE, SIZE, None)
    old, new = head_row(template), head_row(lost)
    assert (new.size, new.root, new.note) == (old.size, old.root, old.note)
    assert tlogd("fsck", "--deep", "--config", lost / "treehead.toml").code == 0
    grow(read_config(lost / "treehead.toml"), [[b"and on"]])
    assert stored(lost) == [*tree.entries, b"and on"]


def test_no_process_of_before_can_move_the_new_store(lost: Path, template: Path, tree: Tree, tlogd: Tlogd) -> None:
    assert recover(tlogd, lost, write_note(lost, tree)).code == 0
    old = head_row(template)
    with closing(open_checkpoints(lost / "checkpoints.db")) as connection:
        store = SqliteCheckpointStore(connection)
        for epoch in (*range(old.epoch + 10), head_row(template).epoch + 1000):
            held = SignedHead(old.origin, epoch, old.size, old.root, old.note)
            with pytest.raises(CommitError, match="lost the checkpoint store"):
                store.swap(held, held)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "junk": lambda store: store.write_bytes(b"junk" * 3000),
    "an empty file": lambda store: store.write_bytes(b""),
    "half a file": lambda store: os.truncate(store, 4096),
    "the note": lambda store: flip(store, "head", "note", "1", -5),
    "the root": lambda store: flip(store, "head", "root", "1", 5),
    "the size": lambda store: edit(store, "UPDATE head SET size = 702"),
    "the schema": lambda store: edit(store, "CREATE TABLE other (x)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_kept_under_another_name(data: Path, tree: Tree, tlogd: Tlogd, damage: str) -> None:
    DAMAGES[damage](data / "checkpoints.db")
    broken = (data / "checkpoints.db").read_bytes()
    done = recover(tlogd, data, write_note(data, tree, 601))
    assert done.code == 0, done
    assert (data / "checkpoints.db.damaged-1").read_bytes() == broken
    assert head_row(data).size == SIZE


def test_a_commit_that_was_never_signed_is_signed_like_a_start_does(
    data: Path, template: Path, tree: Tree, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"stored, perhaps signed"]])
    newest = head_row(data)
    (data / "checkpoints.db").unlink()
    assert recover(tlogd, data, write_note(data, tree)).code == 0
    assert head_row(data).note == newest.note
    assert head_row(template).size == SIZE


@pytest.mark.parametrize("way", ["repair", "restore"])
@pytest.mark.parametrize("kept", [0, 501])
def test_a_log_that_lost_both_is_recovered_store_first(
    lost: Path, template: Path, tree: Tree, tmp_path: Path, tlogd: Tlogd, kept: int, way: str
) -> None:
    source = shutil.copytree(template, tmp_path / "source")
    assert tlogd("backup", tmp_path / "backup", "--config", source / "treehead.toml").code == 0
    if kept:
        edit(lost / "log.db", f"DELETE FROM segment WHERE first >= {kept}")
    else:
        (lost / "log.db").unlink()
    done = recover(tlogd, lost, write_note(lost, tree))
    assert (done.code, f"log.db holds {kept} entries of them" in done.out) == (0, True), done
    assert (head_row(lost).size, head_row(lost).note) == (SIZE, head_row(template).note)
    if way == "repair":
        with Mirror(tree, SIZE, head_row(template).note) as mirror:
            assert tlogd("repair", "--from", mirror.url, "--config", lost / "treehead.toml").code == 0
    else:
        assert tlogd("restore", tmp_path / "backup", "--config", lost / "treehead.toml").code == 0
    assert stored(lost) == tree.entries
    with Server(lost) as server:
        assert server.stop() == 0


# What is refused.


def test_a_store_that_can_be_read_is_never_replaced(data: Path, tree: Tree, tlogd: Tlogd) -> None:
    for size in (101, SIZE):
        refuses(
            tlogd, data, write_note(data, tree, size), REFUSED, "can be read, and its head of size 701 is the newest"
        )


def test_a_log_in_use_is_refused(data: Path, tree: Tree, tlogd: Tlogd) -> None:
    with Server(data) as server:
        done = recover(tlogd, data, write_note(data, tree))
        assert (done.code, "in use by process" in done.err) == (REFUSED, True), done
        assert server.stop() == 0


def test_the_origin_must_be_given_or_typed(lost: Path, tree: Tree, tlogd: Tlogd) -> None:
    note = write_note(lost, tree)
    before = files(lost)
    for options in ((), ("--yes", "localhost/y"), ("--yes", "")):
        done = tlogd("recover-checkpoints", "--from", note, *options, "--config", lost / "treehead.toml")
        assert done.code == USAGE, done
    assert files(lost) == before


def test_what_is_no_head_of_this_log_is_refused(lost: Path, tree: Tree, tmp_path: Path, tlogd: Tlogd) -> None:
    note = write_note(lost, tree)
    good = note.read_bytes()
    other = create(tmp_path / "other")
    notes = {
        b"": "is no signed head",
        good[:-1]: "is no signed head",
        good.replace(b"701", b"702"): "is no signed head",
        head_row(tmp_path / "other").note: "is no signed head",
        good * 100_000: "is no signed head",
        signed(lost, 0, Tree([]).mth(0, 0)): "the head of the empty log",
    }
    assert other.origin == "localhost/x"
    for text, message in notes.items():
        note.write_bytes(text)
        refuses(tlogd, lost, note, REFUSED, message)
    refuses(tlogd, lost, tmp_path / "nowhere", USAGE, "nowhere")


def test_a_head_that_log_db_does_not_have_is_refused(lost: Path, tree: Tree, tlogd: Tlogd) -> None:
    note = write_note(lost, tree, 650)
    refuses(tlogd, lost, note, REFUSED, "log.db has no commit that ends there")
    note.write_bytes(signed(lost, 601, Tree([b"fork"]).mth(0, 1)))
    refuses(tlogd, lost, note, REFUSED, "log.db has no commit that ends there")


@pytest.mark.parametrize("index", [3, 650])
def test_a_damaged_log_db_is_refused_below_and_behind_the_head(
    lost: Path, tree: Tree, tlogd: Tlogd, index: int
) -> None:
    change_entry(lost, index)
    refuses(tlogd, lost, write_note(lost, tree, 601), DAMAGED, "log.db is damaged")
    (lost / "log.db").write_bytes(b"junk" * 3000)
    refuses(tlogd, lost, write_note(lost, tree, 601), DAMAGED, "log.db is damaged")


@pytest.mark.invariant("I11")
def test_an_anchor_that_has_seen_more_than_log_db_holds_refuses(lost: Path, tree: Tree, tlogd: Tlogd) -> None:
    (lost / "anchor").write_bytes(signed(lost, 702, b"x" * 32))
    set_line(lost, 'anchors = ["anchor"]')
    refuses(tlogd, lost, write_note(lost, tree), REFUSED, "the anchor anchor has seen the log at size 702")
    (lost / "anchor").write_bytes(signed(lost, 601, b"x" * 32))
    refuses(tlogd, lost, write_note(lost, tree), REFUSED, "log.db has no commit that ends there")
    (lost / "log.db").rename(lost / "elsewhere")
    (lost / "anchor").write_bytes(signed(lost, 701, tree.mth(0, 701)))
    refuses(tlogd, lost, write_note(lost, tree, 601), REFUSED, "here it ends at 601")
    (lost / "elsewhere").rename(lost / "log.db")
    assert recover(tlogd, lost, write_note(lost, tree, 601)).code == 0


def test_what_is_left_of_the_store_is_believed_where_it_verifies(
    data: Path, template: Path, tree: Tree, tlogd: Tlogd
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"newer"]])
    replace(template / "log.db", data / "log.db")
    edit(data / "checkpoints.db", "UPDATE head SET size = 5")
    refuses(tlogd, data, write_note(data, tree), REFUSED, "has seen the log at size 702, and here it ends at 701")


def test_a_signer_process_that_knows_a_newer_head_begins_there(
    data: Path, template: Path, tree: Tree, signer: SignerProcess, tlogd: Tlogd
) -> None:
    assert signer.pid
    grow(read_config(data / "treehead.toml"), [[b"one"], [b"two"]])
    newest = head_row(data)
    (data / "checkpoints.db").unlink()
    done = recover(tlogd, data, write_note(data, tree, 601), "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["start"] == 703
    assert head_row(data).note == newest.note
    (data / "checkpoints.db").unlink()
    replace(template / "log.db", data / "log.db")
    done = recover(tlogd, data, write_note(data, tree, 601))
    assert (done.code, "log.db holds 701 entries of them" in done.out) == (0, True), done
    assert head_row(data).note == newest.note


def test_a_signer_process_that_was_taken_back_is_refused(
    data: Path, tree: Tree, signer: SignerProcess, tlogd: Tlogd
) -> None:
    assert signer.pid
    (data / "checkpoints.db").unlink()
    note = write_note(data, tree)
    note.write_bytes(signed(data, 702, b"x" * 32))
    refuses(tlogd, data, note, REFUSED, "its state was taken back")


def test_a_note_is_read_from_standard_input(lost: Path, tree: Tree) -> None:
    note = write_note(lost, tree).read_bytes()
    command = [*TLOGD, "recover-checkpoints", "--from", "-", "--config", str(lost / "treehead.toml")]
    done = subprocess.run(command, input=note, capture_output=True, timeout=30, check=False)
    assert (done.returncode, b"--yes localhost/x" in done.stderr) == (USAGE, True)
    done = subprocess.run([*command, "--yes", "localhost/x"], input=note, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert head_of(head_row(lost).note) == (SIZE, tree.mth(0, SIZE))


# Killed at any moment.

PLACES = {
    "create": ("tlog.server.storage.checkpoints:SqliteCheckpointStore", "create"),
    "sign": ("tlog.server.commit:Commit", "finish"),
    **SWAP,
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", PLACES)
def test_a_recovery_that_is_killed_leaves_the_log_as_before_or_as_after(
    data: Path, template: Path, tree: Tree, tlogd: Tlogd, step: str, moment: str
) -> None:
    flip(data / "checkpoints.db", "head", "note", "1", -5)
    before, note = (data / "checkpoints.db").read_bytes(), write_note(data, tree, 601)
    options = ("--from", note, "--yes", "localhost/x", "--config", data / "treehead.toml")
    kill(PLACES[step], moment, "recover-checkpoints", *options)
    is_after = (step, moment) == ("swap", "after")
    assert ((data / "checkpoints.db").read_bytes() == before) != is_after
    assert recover(tlogd, data, note).code == (REFUSED if is_after else 0)
    assert head_row(data).note == head_row(template).note
    assert not list(data.glob(".*.part*"))
