"""What `tlogd serve` refuses to open, each with its own reason, and what it repairs by itself: derived tiles."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.grow import change_entry, change_segment, create, edit, grow, raise_fatal, replace, reseal, stored
from tests.support.rfc6962 import Tree
from tests.support.server import Forks, Server, run_tlogd
from tests.support.static import addresses, content, every_width, path
from tests.support.wire import pool
from tlog.server.config import read_config
from tlog.server.follower import gunzip
from tlog.server.log import open_log
from tlog.tile import Bundle, Tile

if TYPE_CHECKING:
    from tests.support.static import Address
    from tlog.server.config import Config
    from tlog.server.log import ServedLog

pytestmark = pytest.mark.invariant("I10", "I13", "I14")

REFUSED = 3
SIZES = [501, 601, 701]  # of the template, commit by commit at its end


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log of 701 entries in commits of 100, with copies of its files at each of SIZES, as `log.db.601`."""
    data = tmp_path_factory.mktemp("template") / "log"
    config = create(data)
    for end in range(101, 702, 100):
        grow(config, [[b"entry %d" % number for number in range(end - 100, end)]])
        if end in SIZES:
            for name in ("log.db", "checkpoints.db", "tiles.db"):
                shutil.copyfile(data / name, data / f"{name}.{end}")
    return data


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log that has the same name, number of entries and commits, and another key and other entries."""
    data = tmp_path_factory.mktemp("other") / "log"
    grow(create(data), [[b"other %d" % number for number in range(end - 100, end)] for end in range(101, 702, 100)])
    return data


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    """Copy the template."""
    return shutil.copytree(template, tmp_path / "log")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Import the program once."""
    forks = Forks()
    yield forks
    forks.close()


Refusal = Callable[[Path], str]


@pytest.fixture
def refusal(forks: Forks) -> Refusal:
    """Return a function that starts a log, and returns the one line with which it refuses."""

    def refusal(data: Path) -> str:
        code, said = forks.try_to_serve(data)
        lines = [line for line in said.splitlines() if not line.startswith("{")]
        assert code == REFUSED, said
        assert "Traceback" not in said
        assert len(lines) == 1, said
        assert lines[0].startswith("tlogd: ")
        return lines[0]

    return refusal


def set_setting(data: Path, old: str, new: str) -> None:
    file = data / "treehead.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# The data does not fit the signed head.


@pytest.mark.parametrize("end", SIZES[:2])
def test_a_restored_older_log_db_is_refused(data: Path, end: int, refusal: Refusal) -> None:
    replace(data / f"log.db.{end}", data / "log.db")
    message = refusal(data)
    assert f"log.db holds {end} entries, but 701 are signed" in message
    assert "tlogd repair" in message


def test_other_entries_of_the_same_number_are_refused(data: Path, other: Path, refusal: Refusal) -> None:
    replace(other / "log.db", data / "log.db")
    assert "log.db has another root at size 701 than the signed head" in refusal(data)


@pytest.mark.parametrize("tiles", ["kept", "removed", "of the other log"])
def test_other_entries_under_the_right_root_column_are_refused(
    data: Path, other: Path, tiles: str, refusal: Refusal
) -> None:
    with closing(sqlite3.connect(data / "log.db")) as connection:
        (root,) = connection.execute("SELECT root FROM segment ORDER BY first DESC").fetchone()
    replace(other / "log.db", data / "log.db")
    edit(data / "log.db", ("UPDATE segment SET root = ? WHERE first = 601", (root,)))
    reseal(data / "log.db")
    if tiles == "removed":
        (data / "tiles.db").unlink()
    if tiles == "of the other log":
        replace(other / "tiles.db", data / "tiles.db")
    assert "the entries of log.db do not have the root of the signed head 701" in refusal(data)


def test_other_entries_below_full_tiles_are_refused_where_nothing_is_above_them(
    tmp_path: Path, refusal: Refusal
) -> None:
    logs = [tmp_path / "a", tmp_path / "b"]
    for data in logs:
        grow(create(data), [[f"{data.name} {number}".encode() for number in range(511)]])
    with closing(sqlite3.connect(logs[0] / "log.db")) as connection:
        (root,) = connection.execute("SELECT root FROM segment ORDER BY first DESC").fetchone()
    replace(logs[1] / "log.db", logs[0] / "log.db")
    edit(logs[0] / "log.db", ("UPDATE segment SET root = ? WHERE first = 1", (root,)))
    reseal(logs[0] / "log.db")
    assert "entry 0 in log.db is not the one in the signed tree" in refusal(logs[0])


@pytest.mark.parametrize("index", [600, 700])
def test_a_changed_entry_above_the_tiles_is_refused(data: Path, index: int, refusal: Refusal) -> None:
    change_entry(data, index)
    assert "do not have the root of the signed head 701: an entry was changed" in refusal(data)


@pytest.mark.parametrize("index", [0, 255, 256, 511])
def test_a_changed_entry_below_the_tiles_is_refused_by_its_index(data: Path, index: int, refusal: Refusal) -> None:
    change_entry(data, index)
    assert f"entry {index} in log.db is not the one in the signed tree: it was changed" in refusal(data)


def test_a_changed_entry_without_tiles_is_refused(data: Path, refusal: Refusal) -> None:
    change_entry(data, 3)
    (data / "tiles.db").unlink()
    assert "do not have the root of the signed head 701: an entry was changed" in refusal(data)


@pytest.mark.parametrize("index", [3, 650])
def test_broken_framing_is_refused(data: Path, index: int, refusal: Refusal) -> None:
    change_segment(data, index, lambda blob: b"\xff" + blob[1:])
    assert "log.db is damaged: not 100 framed entries; see: tlogd repair" in refusal(data).replace(
        "not 1 framed", "not 100 framed"
    )


def test_a_log_db_that_is_ahead_by_two_commits_is_refused(data: Path, refusal: Refusal) -> None:
    replace(data / "checkpoints.db.501", data / "checkpoints.db")
    message = refusal(data)
    assert "log.db is ahead of the signed head 501 by more than one commit" in message
    assert "checkpoints.db restored?" in message


def test_a_log_db_ahead_by_two_commits_is_refused_also_with_the_tiles_of_the_signed_head(
    data: Path, refusal: Refusal
) -> None:
    replace(data / "checkpoints.db.501", data / "checkpoints.db")
    replace(data / "tiles.db.501", data / "tiles.db")
    assert "log.db is ahead of the signed head 501 by more than one commit" in refusal(data)


def test_a_signed_size_within_a_commit_is_refused(data: Path, tmp_path: Path, refusal: Refusal) -> None:
    longer = tmp_path / "longer"
    grow(create(longer), [[b"all at once %d" % number for number in range(800)]])
    replace(longer / "log.db", data / "log.db")
    assert "the signed size 701 is within a commit of log.db" in refusal(data)


def test_a_gap_in_the_segments_is_refused(data: Path, refusal: Refusal) -> None:
    edit(data / "log.db", "DELETE FROM segment WHERE first = 201")
    assert "log.db has no entry 201" in refusal(data)


# The commit that was stored and not signed.


def test_one_commit_ahead_is_signed_as_it_is_stored(data: Path) -> None:
    replace(data / "checkpoints.db.601", data / "checkpoints.db")
    with closing(sqlite3.connect(f"file:{data}/checkpoints.db.701?mode=ro", uri=True)) as connection:
        (note,) = connection.execute("SELECT note FROM head").fetchone()
    with Server(data) as server:
        assert server.events("log.resumed")[0]["entries"] == 100
        assert uvloop.run(get(server, "/checkpoint")) == note
        assert server.stop() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]),
        lambda blob: b"\x00\x01" + blob[2:],
        lambda blob: b"\xff" + blob[1:],
        lambda blob: blob[:-1],
        lambda blob: blob + b"\x00\x00",
        lambda _: b"",
    ],
    ids=["one bit", "shorter entry", "longer entry", "cut off", "one entry more", "empty"],
)
def test_an_unsigned_commit_with_other_bytes_is_refused_and_named(
    data: Path, change: Callable[[bytes], bytes], refusal: Refusal
) -> None:
    replace(data / "checkpoints.db.601", data / "checkpoints.db")
    change_segment(data, 700, change)
    message = refusal(data)
    assert "the newest commit was not signed, and cannot be" in message
    assert "tlogd repair --discard-unsigned" in message


@pytest.mark.parametrize("column", ["root", "leaf_digest", "digest"])
def test_an_unsigned_commit_with_another_root_or_digest_is_refused(data: Path, column: str, refusal: Refusal) -> None:
    replace(data / "checkpoints.db.601", data / "checkpoints.db")
    edit(data / "log.db", f"UPDATE segment SET {column} = zeroblob(32) WHERE first = 601")
    message = refusal(data)
    assert "the newest commit was not signed, and cannot be" in message
    with closing(sqlite3.connect(data / "checkpoints.db")) as connection:
        assert connection.execute("SELECT size FROM head").fetchone() == (601,)


@pytest.mark.parametrize("change", ["time_ms = time_ms + 1", "keys = x'00'", "leaf_digest = zeroblob(32)"])
def test_what_is_kept_of_the_newest_signed_commit_is_refused_where_it_was_changed(
    data: Path, change: str, refusal: Refusal
) -> None:
    edit(data / "log.db", f"UPDATE segment SET {change} WHERE first = 601")
    assert "what log.db keeps of entries 601 to 700 is not what came in" in refusal(data)


# The key and the configuration.


def test_the_key_of_another_log_is_refused(data: Path, other: Path, refusal: Refusal) -> None:
    replace(other / "key", data / "key")
    (data / "key").chmod(0o400)
    assert "and not that of the origin and vkey in the configuration" in refusal(data)


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o600 | 0o001, 0o644])
def test_a_key_that_others_can_use_is_refused(data: Path, mode: int, refusal: Refusal) -> None:
    (data / "key").chmod(mode)
    message = refusal(data)
    assert "can be read by others than its owner" in message
    assert f"chmod 400 {data / 'key'}" in message


def test_a_missing_key_is_refused(data: Path, refusal: Refusal) -> None:
    (data / "key").unlink()
    assert f"the key {data / 'key'} is missing" in refusal(data)


def test_a_broken_key_is_refused_without_being_shown(data: Path, refusal: Refusal) -> None:
    text = (data / "key").read_text()
    (data / "key").unlink()
    (data / "key").write_text(text[:-8] + "secrets\n")
    (data / "key").chmod(0o400)
    message = refusal(data)
    assert f"{data / 'key'}: " in message
    assert not any(part in message for part in ("secrets", text[-40:-10]))


def test_another_origin_in_the_configuration_is_refused(data: Path, refusal: Refusal) -> None:
    set_setting(data, 'origin = "localhost/x"', 'origin = "localhost/y"')
    assert "the checkpoint store checkpoints.db knows no log named 'localhost/y'" in refusal(data)


def test_another_vkey_in_the_configuration_is_refused(data: Path, other: Path, refusal: Refusal) -> None:
    set_setting(data, (data / "vkey").read_text().strip(), (other / "vkey").read_text().strip())
    assert "that does not verify under the vkey of the configuration" in refusal(data)


def test_a_checkpoint_store_of_another_log_is_refused(data: Path, tmp_path: Path, refusal: Refusal) -> None:
    stranger = create(tmp_path / "stranger", origin="localhost/stranger")
    replace(stranger.path("checkpoints.db"), data / "checkpoints.db")
    assert "knows no log named 'localhost/x'" in refusal(data)


@pytest.mark.parametrize(
    ("before", "after"),
    [("version = 1", "version = 2"), ("version = 1", ""), ("[http]", "[htpt]"), ("key = ", "keys = "), ("[http]", "[")],
)
def test_an_unreadable_configuration_is_a_matter_of_usage(data: Path, forks: Forks, before: str, after: str) -> None:
    set_setting(data, before, after)
    code, said = forks.try_to_serve(data)
    assert code == 2
    assert str(data / "treehead.toml") in said
    assert len(said.splitlines()) == 1


def test_no_configuration_names_the_command_that_makes_one(tmp_path: Path, forks: Forks) -> None:
    code, said = forks.try_to_serve(tmp_path / "log")
    assert code == 2
    assert "create a log with: tlogd init" in said
    assert [path.name for path in tmp_path.iterdir()] == ["log.output"]


# The checkpoint store.


def test_a_head_under_another_key_is_refused(data: Path, other: Path, refusal: Refusal) -> None:
    replace(other / "checkpoints.db", data / "checkpoints.db")
    assert "the checkpoint store holds a head that does not verify under the vkey" in refusal(data)


def test_a_head_whose_signature_does_not_hold_is_refused(data: Path, refusal: Refusal) -> None:
    edit(data / "checkpoints.db", "UPDATE head SET note = CAST(replace(note, '701', '702') AS BLOB), size = 702")
    assert "the checkpoint store holds a head that does not verify under the vkey" in refusal(data)


@pytest.mark.parametrize("change", ["size = 601", "root = zeroblob(32)"])
def test_a_head_that_says_something_else_than_its_note_is_refused(data: Path, change: str, refusal: Refusal) -> None:
    edit(data / "checkpoints.db", f"UPDATE head SET {change}")
    assert "the checkpoint store contradicts itself" in refusal(data)


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
def test_a_missing_database_is_refused_and_not_made(data: Path, name: str, refusal: Refusal) -> None:
    (data / name).unlink()
    assert f"{data / name} is missing" in refusal(data)
    assert not (data / name).exists()


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
@pytest.mark.parametrize("content", [b"", b"no database, and long enough to be read as a header" * 100])
def test_a_database_that_is_none_is_refused(data: Path, name: str, content: bytes, refusal: Refusal) -> None:
    (data / name).write_bytes(content)
    message = refusal(data)
    assert f"{data / name} has another schema" in message or f"{data / name} is damaged" in message


@pytest.mark.parametrize("name", ["log.db", "checkpoints.db"])
def test_an_edited_schema_is_refused(data: Path, name: str, refusal: Refusal) -> None:
    edit(data / name, "CREATE TABLE more (id INTEGER)")
    assert f"{data / name} has another schema than this version writes; was it edited" in refusal(data)


def test_a_log_db_without_its_triggers_is_refused(data: Path, refusal: Refusal) -> None:
    with closing(sqlite3.connect(data / "log.db")) as connection:
        connection.execute("DROP TRIGGER segment_stays")
    assert f"{data / 'log.db'} has another schema" in refusal(data)


# One server at a time.


def test_a_second_process_on_the_same_data_is_refused_and_the_first_goes_on(data: Path, refusal: Refusal) -> None:
    with Server(data) as server:
        message = refusal(data)
        assert "the log is in use by process " in message
        assert f", which serves it at http://127.0.0.1:{server.port}: it holds {data / 'lock'}" in message
        assert uvloop.run(get(server, "/readyz")) == b"ready\n"
        assert server.stop() == 0


def test_a_second_process_on_a_copy_of_the_data_is_refused_by_the_checkpoint_store(
    tmp_path: Path, refusal: Refusal
) -> None:
    config = create(tmp_path / "log", checkpoints=tmp_path / "elsewhere" / "x.db")
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    with Server(tmp_path / "log") as server:
        message = refusal(tmp_path / "copy")
        assert f"{config.path(config.checkpoints)} is in use by another process: database is locked" in message
        assert server.stop() == 0


def test_a_taken_port_is_an_ordinary_failure(data: Path) -> None:
    with Server(data) as server:
        create(data.parent / "second")
        file = data.parent / "second" / "treehead.toml"
        done = run_tlogd("serve", "--config", file, "--port", str(server.port))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


# Derived tiles are rebuilt, and serve what they served.


async def get(server: Server, route: str) -> bytes:
    async with pool(server.port, 1) as readers:
        (response,) = await readers.get_all([route])
        assert response.status == 200
        return response.body


async def everything(server: Server, size: int) -> dict[Address, bytes]:
    wanted = addresses(size)
    async with pool(server.port) as readers:
        responses = await readers.get_all(map(path, wanted))
    assert {response.status for response in responses} == {200}
    return {address: response.body for address, response in zip(wanted, responses, strict=True)}


def damage(data: Path, other: Path, how: str) -> None:
    """Do something to tiles.db."""
    file = data / "tiles.db"
    match how:
        case "removed":
            file.unlink()
        case "truncated":
            os.truncate(file, file.stat().st_size // 2)
        case "truncated to a page":
            os.truncate(file, 4096)
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(os.urandom(1 << 16))
        case "of another log":
            replace(other / "tiles.db", file)
        case "older":
            replace(data / "tiles.db.501", file)
        case "another schema":
            edit(file, "CREATE TABLE more (id INTEGER)")
        case _:
            edit(file, how)


@pytest.mark.parametrize(
    "how",
    [
        "removed",
        "truncated",
        "truncated to a page",
        "empty",
        "garbage",
        "of another log",
        "older",
        "another schema",
        "UPDATE tile SET hashes = zeroblob(8192) WHERE id = 64",
        "DELETE FROM tile WHERE id = 0",
        "DELETE FROM position",
        "UPDATE position SET size = 0",
        "UPDATE position SET size = 256",
        "UPDATE position SET size = 100",
        "UPDATE position SET size = 1024",
        "UPDATE position SET size = -256",
        "UPDATE position SET size = 9223372036854775807",
    ],
)
def test_lost_or_damaged_tiles_are_rebuilt_and_serve_the_same_bytes(data: Path, other: Path, how: str) -> None:
    damage(data, other, how)
    tree = Tree(stored(data))
    wanted = list(every_width(701))
    assert answers(read_config(data / "treehead.toml"), wanted) == [content(tree, address) for address in wanted]
    with closing(sqlite3.connect(data / "tiles.db")) as connection:
        assert connection.execute("SELECT size FROM position").fetchall() == [(512,)]


@pytest.mark.parametrize("how", ["removed", "garbage"])
def test_the_program_serves_what_it_served_before_its_tiles_were_lost(data: Path, other: Path, how: str) -> None:
    with Server(data) as server:
        before = uvloop.run(everything(server, 701))
        assert server.stop() == 0
        damage(data, other, how)
        server.start()
        assert uvloop.run(everything(server, 701)) == before
        assert server.stop() == 0


def test_tiles_that_another_program_holds_are_refused_and_not_thrown_away(data: Path, refusal: Refusal) -> None:
    replace(data / "tiles.db.501", data / "tiles.db")
    before = (data / "tiles.db").read_bytes()
    with closing(sqlite3.connect(data / "tiles.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "tiles.db" in refusal(data)
    assert (data / "tiles.db").read_bytes() == before


# A restart changes nothing that is served.


async def snapshot(log: ServedLog, wanted: list[Address]) -> list[bytes]:
    tree = log.tree
    return [
        gunzip(await tree.bundle(Bundle(index, width))) if level is None else await tree.tile(Tile(level, index, width))
        for level, index, width in wanted
    ]


def answers(config: Config, wanted: list[Address], batch: list[bytes] | None = None) -> list[bytes]:
    """Open a log, add to it, and return what it serves."""

    async def run() -> list[bytes]:
        async with open_log(config, raise_fatal) as log:
            await asyncio.gather(*map(log.add, batch or ()))
            return await snapshot(log, wanted)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513])
def test_a_restart_serves_every_width_of_every_tile_as_before_and_as_defined(tmp_path: Path, size: int) -> None:
    config = create(tmp_path / "log")
    wanted = list(every_width(size))
    before = answers(config, wanted, [b"%d " % number * (number % 7 + 1) for number in range(1, size)])
    tree = Tree(stored(tmp_path / "log"))
    assert len(tree.entries) == size
    assert before == [content(tree, address) for address in wanted]
    assert answers(config, wanted) == before
    (tmp_path / "log" / "tiles.db").unlink()
    assert answers(config, wanted) == before


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 66_049, 131_073])
def test_a_restart_serves_the_tiles_of_a_large_log_as_before_and_as_defined(tmp_path: Path, size: int) -> None:
    config = create(tmp_path / "log")
    for start in range(1, size, 10_000):
        grow(config, [[b"%d" % number for number in range(start, min(size, start + 10_000))]])
    wanted = addresses(size)
    before = answers(config, wanted)
    tree = Tree(stored(tmp_path / "log"))
    assert before == [content(tree, address) for address in wanted]
    assert answers(config, wanted) == before
    (tmp_path / "log" / "tiles.db").unlink()
    assert answers(config, wanted) == before
