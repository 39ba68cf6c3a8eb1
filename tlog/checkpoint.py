r"""Checkpoints: what a log claims about one tree (c2sp.org/tlog-checkpoint).

    <origin>LF
    <tree size, decimal>LF
    <root hash, base64>LF
    [extension lines]           opaque and not empty

The text of a signed note. Extension lines cannot be audited, so a reader that does not ask for them refuses them.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from tlog.errors import FormatError
from tlog.strict import MAX_NAME_SIZE, check_text, parse_decimal, parse_hash, split_lines


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log claims about one tree (c2sp.org/tlog-checkpoint).

    Attributes:
        origin: The log's unique name; 1 to 255 bytes, no newline.
        size: Number of leaves, ≥ 0.
        root: Root hash, 32 bytes.
        extensions: Extension lines without their LF; normally none.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def format(self) -> bytes:
        """Write the text of the note."""
        lines = [self.origin, str(self.size), b64encode(self.root).decode(), *self.extensions]
        return "".join(f"{line}\n" for line in lines).encode()


def parse_checkpoint(text: bytes, *, extensions: bool = False) -> Checkpoint:
    """Parse the text of a checkpoint's note, with its last LF.

    Args:
        text: The text, as `open_note` returns it.
        extensions: Whether the reader can make something of extension lines.

    Raises:
        FormatError: The text breaks the format, or has extension lines that the reader did not ask for.
    """
    check_text(text)
    lines = split_lines(text)
    if len(lines) < 3 or b"" in lines:
        raise FormatError("a checkpoint has an origin, a size and a root, each on a line")
    if len(lines) > 3 and not extensions:
        raise FormatError("the checkpoint has extension lines, which nobody asked for")
    return Checkpoint(
        parse_origin(lines[0]),
        parse_decimal(lines[1]),
        parse_hash(lines[2]),
        tuple(line.decode() for line in lines[3:]),
    )


def parse_origin(line: bytes) -> str:
    """Parse the first line of a checkpoint, without its LF.

    Raises:
        FormatError: It is not UTF-8, holds a control character, is empty, or has more than 255 bytes.
    """
    check_text(line)
    if not 1 <= len(line) <= MAX_NAME_SIZE or b"\n" in line:
        raise FormatError(f"an origin has 1 to {MAX_NAME_SIZE} bytes, and stands on one line")
    return line.decode()
