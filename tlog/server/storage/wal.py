"""Write-ahead logs that a crash left: whether one is of the database beside it.

SQLite takes a WAL for that of the database beside it by its name alone, and nothing in either ties them together. If
one of the two was restored, pages of two moments are mixed, and the mixture can look whole: it has the newest segment,
and lacks some in the middle. So a start compares them, before SQLite writes anything of the WAL into the database.

Let A be the size of the database without its WAL. Segments are only ever added, so a page of moment A has every one
that it should have up to A; what a WAL of another moment spoils is above. The two belong together if

1  the database has no page behind the end that the WAL knows, and every page up to it is in one of them
2  seen through the WAL, segments go on from A without a gap, each as it was sealed, with the entries of its digest
3  those among them that have idempotency keys are found through their index

The newest segment is only looked for: it may be unsigned, and whoever signs or serves it hashes its entries.

Pages of tiles.db are used again, so nothing can be told from its content. Its writers number their transactions, in
page 1, and the file has a number of its own. The two belong together if that number is in both, the WAL begins at the
latest with the transaction behind the newest one of the database, and goes as far at least.
"""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from hashlib import sha256
from secrets import randbits
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.merkle import leaf_hash
from tlog.server.errors import DamagedFileError, DamageError, StartRefusedError
from tlog.server.storage.reading import open_reading, read_segments
from tlog.server.storage.segments import SCHEMA
from tlog.tile import parse_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from tlog.server.storage import Segment

_SIZE = "SELECT coalesce((SELECT first + count FROM segment ORDER BY first DESC LIMIT 1), 0)"
_WITH_KEYS = (
    "SELECT first FROM segment INDEXED BY segment_with_keys WHERE keys != x'' AND first >= ?1 "
    "AND time_ms >= (SELECT time_ms FROM segment WHERE first = ?1) ORDER BY time_ms, first"
)

_WAL_HEADER = struct.Struct(">8xI4x8s8x")  # page size, salts
_FRAME_HEADER = struct.Struct(">II8s8x")  # page number, pages of the database behind a commit, salts
_NUMBERS = struct.Struct(">60xI4xI28x")  # the header of a database in page 1: of the newest transaction, of the file


def check_segments(path: Path) -> None:
    """Compare log.db with the WAL beside it, if there is one. Neither is changed.

    Args:
        path: log.db.

    Raises:
        StartRefusedError: They are of different moments, or the file is damaged.
    """
    if not (path.exists() and _has_wal(path)):
        return
    try:
        _check_pages(path)
        start = _size_without_wal(path)
        with closing(open_reading(path, SCHEMA, alone=True)) as connection:
            _check_segments(connection, start)
    except (DamagedFileError, DamageError, struct.error, sqlite3.Error) as error:
        raise StartRefusedError(
            f"{path.name} and {path.name}-wal do not belong together: {error}. Was one of them restored without the "
            f"other? Nothing was changed. Bring both of one moment, or move {path}-wal away and start again"
        ) from error


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _has_wal(path: Path) -> bool:
    return _wal(path).exists() and _wal(path).stat().st_size > 0


def _size_without_wal(path: Path) -> int:
    """Return the size of the log in the database alone; 0 where a crash cut off the writing of the WAL into it."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            (size,) = connection.execute(_SIZE).fetchone()
    except sqlite3.Error:
        return 0
    return int(size)


def _check_pages(path: Path) -> None:
    """Take step 1."""
    read = list(_frames(_wal(path)))
    page_size, frames = read[0][0] if read else 1, [(page, pages) for _, page, pages, _ in read]
    end = next((pages for _, pages in reversed(frames) if pages), None)
    if end is None:
        return
    in_file = path.stat().st_size // page_size
    if in_file > end:
        raise DamageError("the WAL is older than the database")
    if not {page for page, _ in frames}.issuperset(range(in_file + 1, end + 1)):
        raise DamageError("the WAL is of a larger database")


def _check_segments(connection: sqlite3.Connection, start: int) -> None:
    """Take steps 2 and 3 from a size on."""
    end, with_keys = start, list[int]()
    (size,) = connection.execute(_SIZE).fetchone()
    for segment in read_segments(connection, start):
        if segment.first != end:
            raise DamageError(f"entry {end} is in neither")
        if segment.end < size and not (segment.is_whole and _has_its_entries(segment)):
            raise DamageError(f"entries {segment.first} to {segment.end - 1} are not the ones that came in")
        if segment.keys:
            with_keys.append(segment.first)
        end = segment.end
    if size != end:
        raise DamageError("the WAL is older than the database")
    if [first for (first,) in connection.execute(_WITH_KEYS, (start,))] != with_keys:
        raise DamageError("the index of idempotency keys is not of these entries")


def _has_its_entries(segment: Segment) -> bool:
    try:
        entries = parse_bundle(segment.entries, segment.count)
    except FormatError:
        return False
    return sha256(b"".join(map(leaf_hash, entries))).digest() == segment.leaf_digest


def number_file(connection: sqlite3.Connection) -> None:
    """Draw the number of a new tiles.db."""
    connection.execute(f"PRAGMA application_id = {randbits(31)}")


def number_transaction(connection: sqlite3.Connection) -> None:
    """Give the transaction that is open the next number; every transaction that writes to tiles.db has one."""
    (newest,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {newest + 1}")


def check_tiles(path: Path) -> None:
    """Compare tiles.db with the WAL beside it, if there is one. Neither is changed.

    Raises:
        DamageError: They are of different moments or files; what is derived is built anew.
    """
    if not _has_wal(path):
        return
    try:
        with path.open("rb") as file:
            in_file, file_number = _NUMBERS.unpack(file.read(_NUMBERS.size))
        begun = _begun(_wal(path))
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (ended,) = connection.execute("PRAGMA user_version").fetchone()
    except (OSError, struct.error, sqlite3.DatabaseError) as error:
        raise DamageError(f"{path.name} and its WAL cannot be read: {error}") from error
    if begun is not None and (begun[1] != file_number or not begun[0] - 1 <= in_file <= ended):
        raise DamageError(f"{path.name} and its WAL are of different moments")


def _begun(wal: Path) -> tuple[int, int] | None:
    """Return the numbers of the first transaction in a WAL and of its file; None where SQLite reads none in it."""
    for page_size, page, _, file in _frames(wal):
        if page == 1 and len(content := file.read(page_size)) == page_size:
            transaction, file_number = _NUMBERS.unpack(content[: _NUMBERS.size])
            return transaction, file_number
    return None


def _frames(wal: Path) -> Iterator[tuple[int, int, int, BinaryIO]]:
    """Yield page size, page number, pages of the database behind a commit (else 0), and the file, at the page."""
    with wal.open("rb") as file:
        page_size, salts = _WAL_HEADER.unpack(file.read(_WAL_HEADER.size))
        at = _WAL_HEADER.size
        while file.seek(at) and len(header := file.read(_FRAME_HEADER.size)) == _FRAME_HEADER.size:
            page, pages, salts_of_frame = _FRAME_HEADER.unpack(header)
            if salts_of_frame != salts:  # from here on it is what an older WAL left
                return
            yield page_size, page, pages, file
            at += _FRAME_HEADER.size + page_size
