"""Somebody edits the files of a log by SQL: each edit is found by `tlogd fsck`, or changes no byte that is served.

Answers are compared as whole bodies of every route, with gzip undone: how a bundle is compressed, nobody signs.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from tests.support.grow import create, grow, raise_fatal, reseal, stored
from tests.support.insider import KINDS, STEPS, Insider, Row, behind, forge, leaf, put, rows
from tests.support.rfc6962 import Tree
from tests.support.static import addresses, every_width, framed, path
from tests.support.wire import connected, decoded
from tlog.checkpoint import Checkpoint
from tlog.note import sign_note
from tlog.policy import Policy
from tlog.server.api.serve import make_runner
from tlog.server.config import read_config
from tlog.server.errors import DamageFoundError, StartRefusedError
from tlog.server.key import read_log_key
from tlog.server.limit import Limits
from tlog.server.log import open_log
from tlog.server.verify import check_log, sample
from tlog_client.monitor import Monitor
from tlog_client.run import AsyncRunner
from tlog_client.state import ForkProvenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.wire import Connection
    from tlog.fetch import Response
    from tlog.server.log import ServedLog
    from tlog.server.storage import SignedHead

pytestmark = pytest.mark.invariant("I1", "I3", "I7", "I16", "I24")

COMMITS = 30
EDITS = 40
MANY_EDITS = 200
LIMITS = Limits(scrub_bytes=0, ballast_bytes=0)

Surface = dict[str, tuple[int, bytes]]
"""What each request is answered with: the status, and the body."""


@dataclass
class Template:
    """A log of about 1,400 entries, with idempotency keys in some commits.

    Attributes:
        data: Its folder.
        heads: Its signed heads, oldest first.
        keyed: Requests that were made under a key: the key, and the entry.
        surface: What it answers.
    """

    data: Path
    heads: list[SignedHead]
    keyed: list[tuple[str, bytes]]
    surface: Surface


@asynccontextmanager
async def serving(data: Path) -> AsyncIterator[tuple[ServedLog, Connection, int]]:
    """Serve a log in this process, as the program does."""
    config = msgspec.structs.replace(read_config(data / "treehead.toml"), limits=LIMITS)
    async with open_log(config, raise_fatal) as log:
        runner = make_runner({"": log}, LIMITS)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = int(runner.addresses[0][1])
            async with connected(port) as connection:
                yield log, connection, port
        finally:
            await runner.cleanup()


async def add_keyed(connection: Connection, key: str, entry: bytes) -> Response:
    return await connection.request("POST", "/v1/entries", entry, (*OCTETS, ("Idempotency-Key", f'"{key}"')))


OCTETS = (("Content-Type", "application/octet-stream"),)


async def make(data: Path) -> tuple[list[SignedHead], list[tuple[str, bytes]]]:
    """Grow a log, in commits of different sizes."""
    rng, keyed, entry = random.Random("template"), list[tuple[str, bytes]](), count()
    async with serving(data) as (log, connection, _):
        heads = [log.head]
        for number in range(COMMITS):
            if number % 5 == 3:
                keyed.append((f"key-{number}", b"keyed %d" % number))
                assert (await add_keyed(connection, *keyed[-1])).status == 201
            else:
                numbers = islice(entry, rng.randrange(1, 120))
                await log.add_many([b"entry %d " % at * (1 + at % 4) for at in numbers])
            heads.append(log.head)
    return heads, keyed


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    data = tmp_path_factory.mktemp("template") / "log"
    create(data)
    heads, keyed = asyncio.run(make(data))
    grow(read_config(data / "treehead.toml"), [])  # what was not derived yet is now
    whole = Template(data, heads, keyed, {})
    copy = shutil.copytree(data, data.with_name("copy"))
    whole.surface = asyncio.run(look(copy, whole, every=1))
    assert {status for status, _ in whole.surface.values()} == {200, 404, 422}
    return whole


async def look(data: Path, template: Template, every: int) -> Surface:
    """Return what a log answers to requests of every route; `every` thins them out."""
    found: Surface = {}
    async with serving(data) as (_, connection, _):
        for name in reads(template, every):
            response = decoded(await connection.request("GET", name))
            found[name] = response.status, response.body
        for index in range(1, template.heads[-1].size, 50 * every):
            response = await connection.request("POST", "/v1/entries", entry_of(template, index), OCTETS)
            found[f"again {index}"] = response.status, response.body
        body = json.dumps({"indexes": [*range(0, 200, 7)]}).encode()
        response = await connection.request("POST", "/v1/proofs", body, (("Content-Type", "application/json"),))
        found["proofs"] = response.status, response.body
        for key, entry in template.keyed:
            for name, content in ((f"{key} with another body", entry + b"!"), (f"{key} again", entry)):
                response = await add_keyed(connection, key, content)
                found[name] = response.status, response.body
    return found


def reads(template: Template, every: int) -> Iterator[str]:
    """Yield the paths to get."""
    size, sizes = template.heads[-1].size, [head.size for head in template.heads]
    yield from ("/checkpoint", "/openapi.json", "/readyz", f"/v1/entries/{size}", f"/tile/0/{size // 256 + 1:03}")
    full = [path(address) for address in addresses(size)]
    yield from dict.fromkeys([*full, *[path(each) for each in every_width(size)][::every]])
    for index in range(0, size, 10 * every):
        yield f"/v1/entries/{index}"
        yield f"/v1/leaves/{leaf(entry_of(template, index)).hex()}"
    for at, each in enumerate(sizes):
        yield f"/v1/proofs/consistency/{sizes[max(0, at - 1)]}/{each}"
        yield f"/v1/proofs/consistency/{each}/{size}"
        for index in range(at % 7, each, 30 * every):
            yield f"/v1/proofs/inclusion/{index}/{each}"


def entry_of(template: Template, index: int) -> bytes:
    return stored_once(template.data)[index]


_STORED: dict[Path, list[bytes]] = {}


def stored_once(data: Path) -> list[bytes]:
    if data not in _STORED:
        _STORED[data] = stored(data)
    return _STORED[data]


def is_found(data: Path, *, deep: bool) -> bool:
    config = read_config(data / "treehead.toml")
    return bool(check_log(config, lambda _done, _total: None, deep=deep).findings.total)


def judge(data: Path, template: Template, every: int) -> str:
    """Return what became of an edit that a deep check does not find; "" where it changes what is served."""
    try:
        found = asyncio.run(look(data, template, every))
    except (StartRefusedError, DamageFoundError):
        return "refused by the start"
    wrong = {name for name, answer in found.items() if template.surface[name] != answer}
    return "" if wrong else "without effect"


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a plain check take a sample of so small a log."""
    monkeypatch.setattr(sample, "NEWEST", 128)
    monkeypatch.setattr(sample, "SAMPLES", 2)


def try_edits(template: Template, folder: Path, seed: str, edits: int, every: int) -> Counter[str]:
    """Make edits, and count what became of them."""
    outcomes: Counter[str] = Counter()
    for number in range(edits):
        data = shutil.copytree(template.data, folder / f"{seed}-{number}")
        insider = Insider(data, template.heads, random.Random(f"{seed} {number}"))
        insider.edit()
        if is_found(data, deep=True):
            plain = is_found(data, deep=False)
            outcome = "found by fsck" if plain else "found by fsck --deep only"
        else:
            outcome = judge(data, template, every)
        assert outcome, f"seed {seed!r}, edit {number}: {insider.done} changes what is served, and is not found"
        outcomes[outcome] += 1
        shutil.rmtree(data)
    return outcomes


@pytest.mark.usefixtures("small_sample")
def test_forty_random_edits_are_found_or_change_no_byte_that_is_served(template: Template, tmp_path: Path) -> None:
    outcomes = try_edits(template, tmp_path, "insider", EDITS, 20)
    print(f"{EDITS} edits, seed 'insider': {dict(outcomes)}")  # noqa: T201 — to be quoted
    assert outcomes["found by fsck"] > EDITS / 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("small_sample")
def test_two_hundred_random_edits_are_found_or_change_no_byte_that_is_served(
    template: Template, tmp_path: Path
) -> None:
    outcomes = try_edits(template, tmp_path, "insider, for long", MANY_EDITS, 1)
    print(f"{MANY_EDITS} edits, seed 'insider, for long': {dict(outcomes)}")  # noqa: T201 — to be quoted
    assert sum(outcomes.values()) == MANY_EDITS


def damage(path: Path, rng: random.Random) -> str:
    """Change a file below SQLite: flip a bit, zero a part of a page, cut it, or lengthen it."""
    raw = bytearray(path.read_bytes())
    at, what = rng.randrange(len(raw)), rng.choice(["flip", "flip", "flip", "flip", "zero", "cut", "lengthen"])
    if what == "flip":
        raw[at] ^= 1 << rng.randrange(8)
    elif what == "zero":
        raw[at : at + 512] = bytes(len(raw[at : at + 512]))
    elif what == "cut":
        del raw[at:]
    else:
        raw += rng.randbytes(rng.choice([1, 4096]))
    path.write_bytes(raw)
    return f"{path.name}: {what} at {at}"


def try_damage(template: Template, folder: Path, seed: str, rounds: int, every: int) -> Counter[str]:
    """Damage each file below SQLite, and count what became of it."""
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        for name in ("log.db", "checkpoints.db", "tiles.db"):
            data = shutil.copytree(template.data, folder / f"{seed}-{number}-{name}")
            what = damage(data / name, random.Random(f"{seed} {number} {name}"))
            outcome = "found by fsck --deep" if is_found(data, deep=True) else judge(data, template, every)
            assert outcome, f"seed {seed!r}, round {number}: {what} changes what is served, and is not found"
            outcomes[f"{name} {outcome}"] += 1
            shutil.rmtree(data)
    return outcomes


def test_damage_below_sqlite_is_found_or_changes_no_byte_that_is_served(template: Template, tmp_path: Path) -> None:
    outcomes = try_damage(template, tmp_path, "below", 12, 40)
    print(f"36 times damaged below SQLite, seed 'below': {dict(outcomes)}")  # noqa: T201 — to be quoted
    assert outcomes["log.db found by fsck --deep"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_damage_below_sqlite_is_found_or_changes_no_byte_that_is_served(
    template: Template, tmp_path: Path
) -> None:
    outcomes = try_damage(template, tmp_path, "far below", 150, 20)
    print(f"450 times damaged below SQLite, seed 'far below': {dict(outcomes)}")  # noqa: T201 — to be quoted
    assert sum(outcomes.values()) == 450


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_edit_is_found_or_changes_no_byte_that_is_served(
    template: Template, tmp_path: Path, kind: str
) -> None:
    file, function = KINDS[kind]
    data = shutil.copytree(template.data, tmp_path / "log")
    with behind(data / file) as connection:
        function(connection, random.Random(kind))
    assert is_found(data, deep=True) or judge(data, template, 40)


COLUMNS = [
    *(("log.db", "segment", name) for name in ("count", "root", "leaf_digest", "time_ms", "keys", "digest", "entries")),
    *(("checkpoints.db", "head", name) for name in ("epoch", "size", "root", "note")),
    *(("tiles.db", *pair) for pair in (("tile", "hashes"), ("bundle", "gzip"), ("position", "size"))),
    *(("tiles.db", "leaf_run", name) for name in ("first", "level", "filter", "crc")),
]


def lose_value(path: Path, table: str, column: str) -> None:
    """Let a row hold NULL where its column cannot, as a flipped bit in the header of a record does."""
    change = "UPDATE sqlite_schema SET sql = ? WHERE name = ?"
    with behind(path) as connection:
        ((sql,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
        if table == "leaf_run":
            connection.execute("INSERT INTO leaf_run VALUES (1, 0, 0, x'', 0)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(change, (sql.replace("NOT NULL", "").replace(" STRICT", ""), table))
    with behind(path) as connection:
        connection.execute(f"UPDATE {table} SET {column} = NULL")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(change, (sql, table))


@pytest.mark.parametrize(("file", "table", "column"), COLUMNS)
def test_a_value_of_another_type_is_found_and_refused_or_derived_anew(
    template: Template, tmp_path: Path, file: str, table: str, column: str
) -> None:
    data = shutil.copytree(template.data, tmp_path / "log")
    lose_value(data / file, table, column)
    assert is_found(data, deep=True)
    assert is_found(data, deep=False)
    if table == "bundle":  # no start reads them all; what is damaged is an error of the server, and never an answer
        wrong = {
            name for name, answer in asyncio.run(look(data, template, 40)).items() if template.surface[name] != answer
        }
        assert wrong
        return
    assert judge(data, template, 40) == ("without effect" if file == "tiles.db" else "refused by the start")


# What takes more than the files, and what it takes no more than them for.


def sign_anew(data: Path, entries: list[bytes]) -> bytes:
    """Sign a head over other entries with the log's own key, as who has stolen it can; return the note."""
    signer = read_log_key(read_config(data / "treehead.toml"))
    root = Tree(entries).mth(0, len(entries))
    note = sign_note(Checkpoint(signer.verifier.name, len(entries), root).format(), [signer])
    with behind(data / "checkpoints.db") as connection:
        connection.execute("UPDATE head SET root = ?, note = ?", (root, note))
    return note


async def check(data: Path, state: Path, entry: bytes = b"") -> bytes:
    """Serve a log, perhaps with one entry more, and let a monitor look at it once; return the head that it has then."""
    monitor = Monitor(Policy.of_log(read_config(data / "treehead.toml").vkey), state)
    async with serving(data) as (log, _, port), AsyncRunner(f"http://127.0.0.1:{port}") as runner:
        if entry:
            await log.add(entry)
        note = log.head.note
        await runner.run(monitor.check())
    return note


@pytest.mark.parametrize("entry", [b"", b"one more"], ids=["of the same size", "that has grown"])
def test_an_insider_with_the_key_fools_the_check_and_not_who_saw_the_log_before(
    template: Template, tmp_path: Path, entry: bytes
) -> None:
    data, state = shutil.copytree(template.data, tmp_path / "log"), tmp_path / "state"
    seen = asyncio.run(check(data, state))
    note = sign_anew(data, forge(data, set(STEPS), random.Random("key")))
    assert not is_found(data, deep=True)
    with pytest.raises(ForkProvenError) as caught:
        asyncio.run(check(data, state, entry))
    assert caught.value.first == seen == template.heads[-1].note
    assert (caught.value.second == note) == (not entry)
    assert caught.value.evidence is not None
    evidence = {path.read_bytes() for path in caught.value.evidence.iterdir()}
    assert evidence == {caught.value.first, caught.value.second}


def change_resealed(data: Path, statement: str) -> None:
    """Change log.db, and then its digests, which is what it takes that `fsck` finds nothing."""
    with behind(data / "log.db") as connection:
        connection.execute(statement)
    assert is_found(data, deep=True)
    reseal(data / "log.db")
    assert not is_found(data, deep=True)


def test_times_are_in_no_answer_and_only_their_digest_says_that_they_were_changed(
    template: Template, tmp_path: Path
) -> None:
    data = shutil.copytree(template.data, tmp_path / "log")
    change_resealed(data, "UPDATE segment SET time_ms = time_ms - 60000")
    assert judge(data, template, 20) == "without effect"


def test_who_removes_keys_and_computes_digests_anew_can_have_a_request_done_again_and_nothing_else(
    template: Template, tmp_path: Path
) -> None:
    data = shutil.copytree(template.data, tmp_path / "log")
    change_resealed(data, "UPDATE segment SET keys = x''")
    found = asyncio.run(look(data, template, 20))
    wrong = {name for name, answer in found.items() if template.surface[name] != answer}
    keys = tuple(key for key, _ in template.keyed)
    assert wrong
    assert all(name.startswith(keys) for name in wrong)


def test_keys_that_were_changed_are_not_believed_by_a_start(template: Template, tmp_path: Path) -> None:
    data = shutil.copytree(template.data, tmp_path / "log")
    with behind(data / "log.db") as connection:
        row = next(row for row in rows(connection) if row.keys)
        connection.execute(
            "UPDATE segment SET keys = ? WHERE first = ?", (bytes([row.keys[0] ^ 1]) + row.keys[1:], row.first)
        )
    with pytest.raises(StartRefusedError, match=rf"what is kept of entries {row.first} to .* is not what came in"):
        asyncio.run(look(data, template, 50))


def test_who_can_write_log_db_can_submit_an_entry_and_changes_none_that_was_signed(
    template: Template, tmp_path: Path
) -> None:
    data = shutil.copytree(template.data, tmp_path / "log")
    size = template.heads[-1].size
    with behind(data / "log.db") as connection:
        last = rows(connection)[-1]
        entries = [*stored_once(template.data), b"through the back door"]
        more = Row(size, 1, Tree(entries).mth(0, size + 1), b"", last.time_ms, b"", b"", framed([entries[-1]]))
        more.seal()
        put(connection, more)
    config = read_config(data / "treehead.toml")
    report = check_log(config, lambda _done, _total: None, deep=True).findings
    assert report.notes == ["1 entries are stored and not signed yet; the next start signs them"]
    found = asyncio.run(look(data, template, 20))
    wrong = {name for name, answer in found.items() if template.surface[name] != answer}
    # what names the newest head, and nothing that names a size or is a tile
    assert not {name for name in wrong if name.startswith(("/tile/", "/v1/proofs/"))}
    assert "/checkpoint" in wrong
