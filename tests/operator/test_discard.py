"""`tlogd repair --discard-unsigned`: the one commit that can never be signed goes, and nothing else ever does."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.dying_tlogd import SWAP, kill
from tests.support.grow import change_entry, create, edit, grow, replace, reseal, stored
from tests.support.operating import flip
from tests.support.server import Server, run_tlogd
from tests.support.signing import SignerProcess
from tlog.server.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.operating import Done, Tlogd

pytestmark = pytest.mark.invariant("I2", "I7", "I30")

FAILED, REFUSED, DAMAGED = 1, 3, 5
SIZE = 701


def files(data: Path) -> dict[str, bytes]:
    """Return every file of a folder but the lock."""
    return {path.name: path.read_bytes() for path in data.iterdir() if path.is_file() and path.name != "lock"}


@pytest.fixture
def ahead(data: Path, template: Path) -> Path:
    """Make a log whose newest commit, of 10 large entries, is stored and not signed."""
    grow(read_config(data / "treehead.toml"), [[b"not signed %d " % number * 2000 for number in range(10)]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    return data


def discard(tlogd: Tlogd, data: Path, *options: str) -> Done:
    return tlogd("repair", "--discard-unsigned", "--config", data / "treehead.toml", *options)


def refuses(tlogd: Tlogd, data: Path, code: int, message: str) -> None:
    before = files(data)
    done = discard(tlogd, data)
    assert (done.code, message in done.err) == (code, True), done
    assert files(data) == before


def unreadable(data: Path) -> None:
    """Spoil a page of the unsigned segment, which is at the end of the file."""
    with (data / "log.db").open("r+b") as file:
        file.seek(-4096 * 3, 2)
        file.write(b"\xff" * 4096)


BAD: dict[str, Callable[[Path], None]] = {
    "entries": lambda data: flip(data / "log.db", "segment", "entries", "first = 701", -3),
    "framing": lambda data: flip(data / "log.db", "segment", "entries", "first = 701", 0),
    "root": lambda data: flip(data / "log.db", "segment", "root", "first = 701", 5),
    "leaf digest": lambda data: flip(data / "log.db", "segment", "leaf_digest", "first = 701", 5),
    "digest": lambda data: flip(data / "log.db", "segment", "digest", "first = 701", 5),
    "count": lambda data: edit(data / "log.db", "UPDATE segment SET count = 11 WHERE first = 701"),
    "keys": lambda data: edit(data / "log.db", "UPDATE segment SET keys = x'00' WHERE first = 701"),
    "time": lambda data: edit(data / "log.db", "UPDATE segment SET time_ms = 1 << 50 WHERE first = 701"),
    "page": unreadable,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_commit_that_cannot_be_signed_is_refused_by_a_start_and_discarded(
    ahead: Path, template: Path, tlogd: Tlogd, kind: str
) -> None:
    BAD[kind](ahead)
    broken = (ahead / "log.db").read_bytes()
    served = run_tlogd("serve", "--config", ahead / "treehead.toml", "--port", "0")
    assert served.returncode == REFUSED, served.stderr
    broken = (ahead / "log.db").read_bytes()
    done = discard(tlogd, ahead, "--json")
    assert done.code == 0, done
    said = json.loads(done.out)
    assert (said["size"], said["aside"]) == (SIZE, str(ahead / "log.db.damaged-1"))
    assert Path(said["aside"]).read_bytes() == broken
    assert stored(ahead) == stored(template)
    assert tlogd("fsck", "--deep", "--config", ahead / "treehead.toml").code == 0
    grow(read_config(ahead / "treehead.toml"), [[b"and on"]])
    assert stored(ahead) == [*stored(template), b"and on"]


def test_what_is_said_names_what_was_discarded_and_where_it_is(ahead: Path, tlogd: Tlogd) -> None:
    BAD["entries"](ahead)
    done = discard(tlogd, ahead)
    assert "Discarded 10 entries behind the signed head of localhost/x: its entries" in done.out
    assert f"The old log.db, with what was discarded, is now {ahead / 'log.db.damaged-1'}." in done.out


def test_a_root_that_was_sealed_wrong_is_discarded_too(ahead: Path, tlogd: Tlogd) -> None:
    flip(ahead / "log.db", "segment", "root", "first = 701", 5)
    reseal(ahead / "log.db")
    done = discard(tlogd, ahead)
    assert (done.code, "its root is not that of its entries" in done.out) == (0, True), done


# What is never discarded.


def test_a_log_that_has_nothing_unsigned_is_left_alone(data: Path, tlogd: Tlogd) -> None:
    refuses(tlogd, data, REFUSED, "holds nothing behind the signed head 701")


def test_a_commit_that_can_be_signed_is_left_alone(ahead: Path, tlogd: Tlogd) -> None:
    refuses(tlogd, ahead, REFUSED, "the next start signs it")
    grow(read_config(ahead / "treehead.toml"), [])
    assert len(stored(ahead)) == SIZE + 10


def test_two_commits_are_left_alone_because_the_first_was_signed(data: Path, template: Path, tlogd: Tlogd) -> None:
    grow(read_config(data / "treehead.toml"), [[b"one"], [b"two"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    flip(data / "log.db", "segment", "entries", "first = 701", -1)
    refuses(tlogd, data, REFUSED, "by more than one commit")


LATER: dict[str, Callable[[Path], object]] = {
    "entries": lambda data: flip(data / "log.db", "segment", "entries", "first = 702", -1),
    "digest": lambda data: flip(data / "log.db", "segment", "digest", "first = 702", 5),
    "another place": lambda data: edit(data / "log.db", "UPDATE segment SET first = 709 WHERE first = 702"),
    "both": lambda data: edit(data / "log.db", "UPDATE segment SET entries = x'ff' WHERE first > 700"),
}


@pytest.mark.parametrize("kind", LATER)
def test_the_first_of_two_commits_is_never_discarded_whatever_became_of_the_second(
    data: Path, template: Path, tlogd: Tlogd, kind: str
) -> None:
    grow(read_config(data / "treehead.toml"), [[b"signed"], [b"and signed"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    LATER[kind](data)
    refuses(tlogd, data, REFUSED, "by more than one commit")
    change_entry(data, 300)
    before = files(data)
    done = tlogd("repair", "--from", template, "--discard-unsigned", "--config", data / "treehead.toml")
    assert (done.code, "by more than one commit" in done.err) == (REFUSED, True), done
    assert files(data) == before


@pytest.mark.invariant("I11")
def test_a_commit_whose_tiles_were_derived_is_never_discarded(data: Path, template: Path, tlogd: Tlogd) -> None:
    config = read_config(data / "treehead.toml")
    grow(config, [[b"signed, and a tile is full %d" % number for number in range(67)]])
    grow(config, [])  # the tile is derived at the latest now
    replace(template / "checkpoints.db", data / "checkpoints.db")
    flip(data / "log.db", "segment", "entries", "first = 701", -1)
    refuses(tlogd, data, REFUSED, "tiles.db was derived from a signed head of at least 768 entries")
    (data / "log.db").unlink()
    before = files(data)
    done = tlogd("repair", "--from", template, "--config", data / "treehead.toml")
    assert (done.code, "tiles.db was derived" in done.err) == (REFUSED, True), done
    assert files(data) == before


def test_what_is_said_claims_nothing_that_the_machine_cannot_know(ahead: Path, tlogd: Tlogd) -> None:
    BAD["entries"](ahead)
    done = discard(tlogd, ahead)
    assert done.code == 0, done
    assert "never acknowledged" not in done.out
    assert "If a client or a mirror has one, do" in done.out


def test_a_commit_behind_damaged_entries_is_left_to_a_repair(ahead: Path, tlogd: Tlogd) -> None:
    BAD["entries"](ahead)
    change_entry(ahead, 300)
    refuses(tlogd, ahead, DAMAGED, "repair --from URL|DIR --discard-unsigned")


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM segment WHERE first = 601", "DELETE FROM segment WHERE first = 301", "DELETE FROM segment"],
)
def test_a_log_that_lacks_entries_is_left_to_a_repair(ahead: Path, tlogd: Tlogd, statement: str) -> None:
    BAD["entries"](ahead)
    edit(ahead / "log.db", statement)
    refuses(tlogd, ahead, REFUSED if statement.endswith("segment") else DAMAGED, "")


def test_another_log_db_is_left_alone(ahead: Path, tmp_path: Path, tlogd: Tlogd) -> None:
    grow(create(tmp_path / "other"), [[b"all at once %d" % number for number in range(800)]])
    replace(tmp_path / "other" / "log.db", ahead / "log.db")
    refuses(tlogd, ahead, REFUSED, "holds nothing behind the signed head")
    grow(read_config(tmp_path / "other" / "treehead.toml"), [[b"more"]])
    edit(tmp_path / "other" / "log.db", "DELETE FROM segment WHERE first > 0 AND first < 701")
    replace(tmp_path / "other" / "log.db", ahead / "log.db")
    refuses(tlogd, ahead, REFUSED, "by more than one commit")


def test_a_lost_file_or_junk_is_left_to_a_repair(ahead: Path, tlogd: Tlogd) -> None:
    (ahead / "log.db").write_bytes(b"junk" * 5000)
    refuses(tlogd, ahead, DAMAGED, "repair --from URL|DIR")
    (ahead / "log.db").unlink()
    refuses(tlogd, ahead, REFUSED, "is missing")


def set_line(data: Path, line: str) -> None:
    """Put a setting at the top of a configuration."""
    text = (data / "treehead.toml").read_text()
    (data / "treehead.toml").write_text(f"{line}\n{text}")


@pytest.mark.invariant("I11")
def test_a_commit_that_an_anchor_has_seen_signed_is_never_discarded(data: Path, template: Path, tlogd: Tlogd) -> None:
    grow(read_config(data / "treehead.toml"), [[b"signed, and the store was taken back"]])
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db?mode=ro&immutable=1", uri=True)) as connection:
        (note,) = connection.execute("SELECT note FROM head").fetchone()
    (data / "anchor").write_bytes(note)
    replace(template / "checkpoints.db", data / "checkpoints.db")
    flip(data / "log.db", "segment", "entries", "first = 701", -1)
    set_line(data, 'anchors = ["anchor"]')
    refuses(tlogd, data, REFUSED, "the anchor anchor has seen a head of size 702")
    (data / "anchor").unlink()
    refuses(tlogd, data, REFUSED, "anchor is missing")


@pytest.fixture
def signer(data: Path, tlogd: Tlogd) -> Iterator[SignerProcess]:
    """Have the log signed by a process."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket is short
        done = tlogd("signer", "init", "--config", data / "treehead.toml", "--state", Path(folder) / "state.db")
        assert done.code == 0, done
        shutil.copy(data / "key", Path(folder) / "key")
        shutil.copy(data / "key.state", Path(folder) / "key.state")
        with SignerProcess(Path(folder)) as signer:
            set_line(data, f'signer = "unix:{signer.path}"')
            yield signer


def test_a_commit_that_the_signer_process_has_signed_is_never_discarded(
    data: Path, template: Path, signer: SignerProcess, tlogd: Tlogd
) -> None:
    assert signer.pid
    grow(read_config(data / "treehead.toml"), [[b"signed by the process"]])
    replace(template / "checkpoints.db", data / "checkpoints.db")
    flip(data / "log.db", "segment", "entries", "first = 701", -1)
    refuses(tlogd, data, REFUSED, "the signer process has seen a head of size 702")


def test_a_signer_process_that_does_not_answer_refuses(ahead: Path, signer: SignerProcess, tlogd: Tlogd) -> None:
    BAD["entries"](ahead)
    signer.kill()
    before = files(ahead)
    done = discard(tlogd, ahead)
    assert (done.code in (FAILED, REFUSED), "no signer answers" in done.err) == (True, True), done
    assert files(ahead) == before
    signer.start()
    assert discard(tlogd, ahead).code == 0


def test_a_log_in_use_is_refused(data: Path, tlogd: Tlogd) -> None:
    with Server(data) as server:
        done = discard(tlogd, data)
        assert (done.code, "in use by process" in done.err) == (REFUSED, True), done
        assert server.stop() == 0


# Killed at any moment.

PLACES = {
    "draft": ("tlog.server.discard", "copy_entries"),
    "check": ("tlog.server.discard", "check_copy"),
    **SWAP,
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", PLACES)
def test_a_discard_that_is_killed_leaves_the_log_as_before_or_as_after(
    ahead: Path, template: Path, tlogd: Tlogd, step: str, moment: str
) -> None:
    BAD["entries"](ahead)
    before = (ahead / "log.db").read_bytes()
    kill(PLACES[step], moment, "repair", "--discard-unsigned", "--config", ahead / "treehead.toml")
    is_after = (step, moment) == ("swap", "after")
    assert ((ahead / "log.db").read_bytes() == before) != is_after
    assert discard(tlogd, ahead).code == (REFUSED if is_after else 0)
    assert stored(ahead) == stored(template)
    assert not list(ahead.glob(".*.part*"))
