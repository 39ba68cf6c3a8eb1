"""What somebody does who can write every file of a log but has not its key: random edits by SQL, careless and careful.

A careful edit computes anew what depends on it: digests, roots, tiles, bundles, in any combination, but never the
signature. Everything random comes from one generator, so that a seed says all.
"""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.support.grow import digest
from tests.support.rfc6962 import Tree
from tests.support.static import framed, unframed

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from tlog.server.storage import SignedHead

    Kind = Callable[[sqlite3.Connection, Random], None]

COLUMNS = "first, count, root, leaf_digest, time_ms, keys, digest, entries"
_PUT = f"INSERT INTO segment ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
STEPS = ("leaf_digest", "roots", "digest", "tiles", "bundles")


@dataclass
class Row:
    """A segment."""

    first: int
    count: int
    root: bytes
    leaf_digest: bytes
    time_ms: int
    keys: bytes
    digest: bytes
    entries: bytes

    @property
    def values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in COLUMNS.split(", "))

    def seal(self, steps: Container[str] = STEPS) -> None:
        """Compute the digests anew, or one of them."""
        if "leaf_digest" in steps:
            self.leaf_digest = sha256(b"".join(leaf(entry) for entry in unframed(self.entries))).digest()
        if "digest" in steps:
            self.digest = digest(self.first, self.count, self.time_ms, self.root, self.leaf_digest, self.keys)


def leaf(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


@contextmanager
def behind(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database without its triggers, and put them back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        try:
            yield connection
        finally:
            for _, sql in triggers:
                connection.execute(sql)


def rows(connection: sqlite3.Connection) -> list[Row]:
    """Return every segment."""
    return [Row(*row) for row in connection.execute(f"SELECT {COLUMNS} FROM segment ORDER BY first")]


def put(connection: sqlite3.Connection, *segments: Row) -> None:
    connection.executemany(_PUT, [row.values for row in segments])


def remove(connection: sqlite3.Connection, *segments: Row) -> None:
    connection.executemany("DELETE FROM segment WHERE first = ?", [(row.first,) for row in segments])


def flip(data: bytes, rng: Random) -> bytes:
    """Flip one bit, or append a byte where there is none."""
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def pick(connection: sqlite3.Connection, rng: Random, *, least: int = 1) -> Row:
    return rng.choice([row for row in rows(connection) if row.count >= least])


# log.db, careless.


def flip_column(connection: sqlite3.Connection, rng: Random) -> None:
    row, name = pick(connection, rng), rng.choice(["entries", "root", "leaf_digest", "digest", "keys"])
    changed = flip(getattr(row, name), rng)
    connection.execute(f"UPDATE segment SET {name} = ? WHERE first = ?", (changed, row.first))


def change_number(connection: sqlite3.Connection, rng: Random) -> None:
    row, name = pick(connection, rng), rng.choice(["first", "count", "time_ms"])
    changed = max(0, getattr(row, name) + rng.choice([-100, -1, 1, 2, 1 << 20]))
    connection.execute(f"UPDATE OR IGNORE segment SET {name} = ? WHERE first = ?", (changed, row.first))


def delete_segment(connection: sqlite3.Connection, rng: Random) -> None:
    remove(connection, pick(connection, rng))


def delete_many(connection: sqlite3.Connection, rng: Random) -> None:
    connection.execute("DELETE FROM segment WHERE first > ?", (pick(connection, rng).first,))


def insert_segment(connection: sqlite3.Connection, rng: Random) -> None:
    row, taken = pick(connection, rng), {row.first for row in rows(connection)}
    row.first = rng.choice([at for at in range(max(taken) + 200) if at not in taken])
    put(connection, row)


def swap_entries(connection: sqlite3.Connection, rng: Random) -> None:
    one, other = rng.sample(rows(connection), 2)
    names = rng.choice([["entries"], ["entries", "leaf_digest"], ["keys"], ["time_ms"], ["root"], ["digest"]])
    remove(connection, one, other)
    for name in names:
        mine, theirs = getattr(one, name), getattr(other, name)
        setattr(one, name, theirs)
        setattr(other, name, mine)
    put(connection, one, other)


def swap_segments(connection: sqlite3.Connection, rng: Random) -> None:
    one, other = rng.sample(rows(connection), 2)
    remove(connection, one, other)
    one.first, other.first = other.first, one.first
    put(connection, one, other)


def reorder(connection: sqlite3.Connection, rng: Random) -> None:
    row = pick(connection, rng, least=3)
    entries = unframed(row.entries)
    remove(connection, row)
    at = rng.randrange(len(entries) - 1)
    entries[at : at + 2] = reversed(entries[at : at + 2])
    row.entries = framed(entries)
    if rng.random() < 0.5:
        row.seal()
    put(connection, row)


def change_keys(connection: sqlite3.Connection, rng: Random) -> None:
    row = rng.choice([row for row in rows(connection) if row.keys])
    other = pick(connection, rng)
    changed = rng.choice([b"", flip(row.keys, rng), row.keys[:-8], row.keys * 2, other.keys])
    connection.execute("UPDATE segment SET keys = ? WHERE first = ?", (changed, row.first))


# log.db, careful: what is stored of the tree stays right.


def split(connection: sqlite3.Connection, rng: Random) -> None:
    row = pick(connection, rng, least=2)
    tree = Tree([entry for each in rows(connection) for entry in unframed(each.entries)])
    entries, cut = unframed(row.entries), rng.randrange(1, row.count)
    root = tree.mth(0, row.first + cut)
    low = Row(row.first, cut, root, b"", row.time_ms, b"", b"", framed(entries[:cut]))
    high = Row(row.first + cut, row.count - cut, row.root, b"", row.time_ms, row.keys, b"", framed(entries[cut:]))
    low.seal()
    high.seal()
    remove(connection, row)
    put(connection, low, high)


def merge(connection: sqlite3.Connection, rng: Random) -> None:
    every = rows(connection)
    at = rng.randrange(len(every) - 1)
    low, high = every[at : at + 2]
    count, keys = low.count + high.count, low.keys + high.keys
    both = Row(low.first, count, high.root, b"", high.time_ms, keys, b"", low.entries + high.entries)
    both.seal()
    remove(connection, low, high)
    put(connection, both)


# What holds the rows.


def change_schema(connection: sqlite3.Connection, rng: Random) -> None:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    table = rng.choice(tables)
    connection.execute(
        rng.choice(
            [
                "CREATE TABLE more (id INTEGER)",
                f"ALTER TABLE {table} ADD COLUMN more INTEGER",
                f"CREATE TRIGGER more BEFORE INSERT ON {table} BEGIN SELECT 1; END",
                f"CREATE VIEW more AS SELECT * FROM {table}",
                "ANALYZE",
            ]
        )
    )


def touch(connection: sqlite3.Connection, rng: Random) -> None:
    """Change what means nothing."""
    connection.execute(rng.choice(["VACUUM", "REINDEX", "PRAGMA user_version = 7", "PRAGMA application_id = 7"]))


# checkpoints.db.


def change_head(connection: sqlite3.Connection, rng: Random) -> None:
    ((origin, epoch, size, root, note),) = connection.execute("SELECT * FROM head").fetchall()
    name, value = rng.choice(
        [
            ("origin", f"{origin}x"),
            ("epoch", epoch + rng.choice([-1, 1, 1000]) if epoch else 1),
            ("size", max(0, size + rng.choice([-100, -1, 1, 100]))),
            ("root", flip(root, rng)),
            ("note", flip(note, rng)),
            ("note", note[: rng.randrange(len(note))]),
            ("note", note + rng.choice([b"\n", "— other AAAAAAA=\n".encode()])),
        ]
    )
    connection.execute(f"UPDATE head SET {name} = ?", (value,))


def delete_head(connection: sqlite3.Connection, _: Random) -> None:
    connection.execute("DELETE FROM head")


def add_head(connection: sqlite3.Connection, rng: Random) -> None:
    connection.execute("INSERT INTO head VALUES ('other', ?, 1, zeroblob(32), x'')", (rng.randrange(9),))


# tiles.db.


def change_tile(connection: sqlite3.Connection, rng: Random) -> None:
    key, hashes = rng.choice(connection.execute("SELECT id, hashes FROM tile").fetchall())
    connection.execute("UPDATE tile SET hashes = ? WHERE id = ?", (flip(hashes, rng), key))


def change_bundle(connection: sqlite3.Connection, rng: Random) -> None:
    key, packed = rng.choice(connection.execute("SELECT id, gzip FROM bundle").fetchall())
    entries = unframed(gzip.decompress(packed))
    at = rng.randrange(len(entries))
    entries[at] = rng.choice([flip(entries[at], rng), b"", entries[at - 1]])
    changed = rng.choice([flip(packed, rng), gzip.compress(framed(entries), mtime=0), packed[:-1], packed + b"\x00"])
    connection.execute("UPDATE bundle SET gzip = ? WHERE id = ?", (changed, key))


def repack_bundle(connection: sqlite3.Connection, rng: Random) -> None:
    """Encode the same entries otherwise."""
    key, packed = rng.choice(connection.execute("SELECT id, gzip FROM bundle").fetchall())
    connection.execute("UPDATE bundle SET gzip = ? WHERE id = ?", (gzip.compress(gzip.decompress(packed), 9), key))


def delete_derived(connection: sqlite3.Connection, rng: Random) -> None:
    table = rng.choice(["tile", "bundle"])
    key = rng.choice(connection.execute(f"SELECT id FROM {table}").fetchall())
    connection.execute(f"DELETE FROM {table} WHERE id = ?", key)


def swap_derived(connection: sqlite3.Connection, rng: Random) -> None:
    table = rng.choice(["tile", "bundle"])
    (one,), (other,) = rng.sample(connection.execute(f"SELECT id FROM {table}").fetchall(), 2)
    for before, after in ((one, -1), (other, one), (-1, other)):
        connection.execute(f"UPDATE {table} SET id = ? WHERE id = ?", (after, before))


def add_derived(connection: sqlite3.Connection, rng: Random) -> None:
    table, column = rng.choice([("tile", "hashes"), ("bundle", "gzip")])
    (value,) = rng.choice(connection.execute(f"SELECT {column} FROM {table}").fetchall())
    key = rng.choice([77, 1 << 20, (1 << 40) + 1])
    connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (key, value))


def change_position(connection: sqlite3.Connection, rng: Random) -> None:
    ((size,),) = connection.execute("SELECT size FROM position").fetchall()
    statement = "DELETE FROM position" if rng.random() < 0.2 else "UPDATE position SET size = ?"
    value = rng.choice([0, 1, size - 256, size + 256, 1 << 40])
    connection.execute(statement, (value,) if "?" in statement else ())


def add_leaves(connection: sqlite3.Connection, rng: Random) -> None:
    """Add a bucket of no run, or a run of entries that are not there."""
    if rng.random() < 0.5:
        connection.execute("INSERT INTO leaf_bucket VALUES (?, x'', 0)", (rng.randrange(1, 9) << 32,))
    else:
        connection.execute("INSERT INTO leaf_run VALUES (1, ?, 0, zeroblob(131072), 1)", (rng.choice([0, 1, 256]),))


_LOG: list[Kind] = [
    flip_column,
    change_number,
    delete_segment,
    delete_many,
    insert_segment,
    swap_entries,
    swap_segments,
    reorder,
    change_keys,
    split,
    merge,
]
_TILES: list[Kind] = [
    change_tile,
    change_bundle,
    repack_bundle,
    delete_derived,
    swap_derived,
    add_derived,
    change_position,
    add_leaves,
]
_CHECKPOINTS: list[Kind] = [change_head, delete_head, add_head]

KINDS: dict[str, tuple[str, Kind]] = {
    function.__name__: (file, function)
    for file, functions in (("log.db", _LOG), ("checkpoints.db", _CHECKPOINTS), ("tiles.db", _TILES))
    for function in functions
}
"""What is edited once, by its name: the file, and what does it."""


@dataclass
class Insider:
    """Edits a log at random.

    Attributes:
        data: Its folder.
        heads: Every signed head that it had, oldest first.
        rng: Where chance comes from.
        done: What was done.
    """

    data: Path
    heads: Sequence[SignedHead]
    rng: Random
    done: list[str] = field(default_factory=list)

    def edit(self) -> None:
        """Do one thing, or two or three."""
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            chance = self.rng.random()
            if chance < 0.25:
                self._forge()
            elif chance < 0.30:
                self._take_back()
            elif chance < 0.40:
                self._in_any(self.rng.choice([change_schema, touch]))
            else:
                name = self.rng.choice([*KINDS])
                self._try(name, *KINDS[name])

    def _in_any(self, kind: Kind) -> None:
        self._try(kind.__name__, self.rng.choice(["log.db", "checkpoints.db", "tiles.db"]), kind)

    def _try(self, name: str, file: str, kind: Kind) -> None:
        """Do it, where an edit before has left something to do it to."""
        try:
            with behind(self.data / file) as connection:
                kind(connection, self.rng)
        except (sqlite3.Error, IndexError, ValueError, TypeError, AssertionError, OSError, EOFError) as error:
            name = f"{name} failed ({type(error).__name__})"
        self.done.append(f"{file}: {name}")

    def _take_back(self) -> None:
        """Put an older signed head into the checkpoint store."""
        back = self.rng.choice([1, 2, 3, len(self.heads)])
        head = self.heads[-1 - back] if back < len(self.heads) else self.heads[0]
        with behind(self.data / "checkpoints.db") as connection:
            connection.execute("UPDATE head SET size = ?, root = ?, note = ?", (head.size, head.root, head.note))
        self.done.append(f"checkpoints.db: the head of {back} commits ago")

    def _forge(self) -> None:
        """Change an entry, and compute anew some of what depends on it, or all."""
        steps = set(STEPS) if self.rng.random() < 0.5 else {step for step in STEPS if self.rng.random() < 0.5}
        try:
            forge(self.data, steps, self.rng)
        except (sqlite3.Error, IndexError, ValueError, AssertionError) as error:
            self.done.append(f"forge failed ({type(error).__name__})")
            return
        self.done.append(f"forge with {', '.join(sorted(steps)) or 'nothing'}")


def forge(data: Path, steps: set[str], rng: Random) -> list[bytes]:
    """Change an entry at random, and compute anew what is asked for; return the entries that the log then has."""
    with behind(data / "log.db") as connection:
        every = rows(connection)
        entries = [unframed(row.entries) for row in every]
        at = rng.randrange(len(entries))
        index = rng.randrange(len(entries[at]))
        entries[at][index] = rng.choice([flip(entries[at][index], rng), b"forged", entries[at][index] + b"."])
        tree = Tree([entry for part in entries for entry in part])
        for row, part in zip(every, entries, strict=True):
            row.entries = framed(part)
            if "roots" in steps:
                row.root = tree.mth(0, row.first + row.count)
            row.seal(steps)
        connection.execute("DELETE FROM segment")
        put(connection, *every)
    with behind(data / "tiles.db") as connection:
        ((position,),) = connection.execute("SELECT size FROM position")
        for number in range(position // 256 if "tiles" in steps else 0):
            hashes = b"".join(leaf(entry) for entry in tree.entries[256 * number : 256 * number + 256])
            connection.execute("UPDATE tile SET hashes = ? WHERE id = ?", (hashes, number << 6))
        for number in range(position // 256 if "bundles" in steps else 0):
            packed = gzip.compress(framed(list(tree.entries[256 * number : 256 * number + 256])), mtime=0)
            connection.execute("UPDATE bundle SET gzip = ? WHERE id = ?", (packed, number))
    return list(tree.entries)
