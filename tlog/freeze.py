"""The freeze entry: the last entry of a log, by which its key ends it for ever.

    treehead/freeze/v1LF
    <origin>LF
    <index, decimal>LF          the index that the entry itself has
    <reason>LF                  one line, may be empty

The text of a note that the log's key signs; the entry is the whole note. A log that has such an entry at the index that
it names takes no more. Anybody may submit bytes that look like one, so it counts only with the signature, and only at
its own index.

It is never a checkpoint, nor the other way round: the third line of a checkpoint is a hash of 44 characters, and an
index has 19 at most; the second line of a checkpoint is a size, and of a log that is named like the first line of a
freeze entry, the second line of such an entry is that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.checkpoint import parse_origin
from tlog.errors import FormatError, TreeheadError, VerificationError
from tlog.note import open_note, sign_note
from tlog.strict import check_text, parse_decimal, split_lines

if TYPE_CHECKING:
    from tlog.note import Signer, Verifier

MAX_REASON_SIZE = 1000
"""Largest reason in bytes: a sentence or two, for people."""

_FORMAT = "treehead/freeze/v1"


@dataclass(frozen=True, slots=True)
class Freeze:
    """What a freeze entry says.

    Attributes:
        origin: The log that ends; 1 to 255 bytes, no newline.
        index: Index of the entry, ≥ 0: the log has index + 1 entries for ever.
        reason: Why, for people: at most 1,000 bytes, one line, may be empty.
    """

    origin: str
    index: int
    reason: str

    def format(self) -> bytes:
        """Write the text of the note."""
        return f"{_FORMAT}\n{self.origin}\n{self.index}\n{self.reason}\n".encode()


def parse_freeze(text: bytes) -> Freeze:
    """Parse the text of a freeze entry, with its last LF.

    Raises:
        FormatError: It is something else.
    """
    check_text(text)
    lines = split_lines(text)
    if len(lines) != 4 or lines[0] != _FORMAT.encode():
        raise FormatError(f"not a freeze entry: {_FORMAT}, origin, index and reason, each on a line")
    check_reason(lines[3].decode())
    return Freeze(parse_origin(lines[1]), parse_decimal(lines[2]), lines[3].decode())


def check_reason(reason: str) -> None:
    """Refuse a reason that a freeze entry cannot hold.

    Raises:
        FormatError: It has more than 1,000 bytes, holds a control character, or is not Unicode.
    """
    try:
        text = reason.encode()
    except UnicodeEncodeError as error:
        raise FormatError("the reason of a freeze is not Unicode") from error
    if len(text) > MAX_REASON_SIZE or any(byte < 0x20 for byte in text):
        raise FormatError(f"the reason of a freeze has at most {MAX_REASON_SIZE} bytes, on one line")


def freeze_entry(signer: Signer, size: int, reason: str = "") -> bytes:
    """Return the entry that ends the log of a key.

    Args:
        signer: The log's key, whose name is its origin.
        size: Number of entries that the log has, which is the index of this one.
        reason: Why, for people: at most 1,000 bytes in UTF-8, one line.

    Raises:
        FormatError: The reason is longer, or holds a control character or what is not Unicode.
    """
    check_reason(reason)
    return sign_note(Freeze(signer.verifier.name, size, reason).format(), [signer])


def open_freeze(entry: bytes, index: int, verifier: Verifier) -> Freeze:
    """Return what a freeze entry says, after every check.

    Args:
        entry: The entry.
        index: The index that it has in the log.
        verifier: The log's key, whose name is its origin.

    Raises:
        FormatError: It is no freeze entry.
        VerificationError: It is of another log or index, or not signed by the key.
    """
    text, _ = open_note(entry, [verifier])
    freeze = parse_freeze(text)
    if (freeze.origin, freeze.index) != (verifier.name, index):
        raise VerificationError("a freeze entry of another log, or of another index")
    return freeze


def is_freeze(entry: bytes, index: int, verifier: Verifier) -> bool:
    """Return whether an entry ends the log at its index; see `open_freeze`."""
    if not entry.startswith(_FORMAT.encode() + b"\n"):
        return False
    try:
        open_freeze(entry, index, verifier)
    except TreeheadError:
        return False
    return True
