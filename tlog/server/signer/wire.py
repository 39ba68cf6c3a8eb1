"""What a log and its signer process say to each other: messages on a Unix socket, one answer for each request.

    message    length in bytes, 32 bits ‖ one array in deterministic CBOR

    request    ["treehead/signer/v1", "newest"]
               ["treehead/signer/v1", "sign", old size, old root, new size, new root, [proof hash, …]]
               ["treehead/signer/v1", "freeze", size, reason]
    answer     ["newest", vkey, size, root]
               ["signed", note]                     a head, or the entry that ends the log
               ["refused", why]

No request carries a text to sign: a signer makes what it signs from numbers and hashes, under its own origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TypeAlias

from tlog.cbor import Value, decode, encode
from tlog.errors import FormatError
from tlog.merkle import HASH_SIZE, MAX_SIZE

FORMAT = "treehead/signer/v1"

MAX_MESSAGE_SIZE = 1 << 14
"""Most bytes of a message: a proof of 126 hashes, or a note, three times over."""

MAX_PROOF = 126
"""Most hashes of a consistency proof: two for each level of the largest tree."""

HEADER = Struct(">I")


@dataclass(frozen=True, slots=True)
class AskNewest:
    """Asks for the newest head that was signed."""

    def format(self) -> list[Value]:
        """Return it as a message."""
        return [FORMAT, "newest"]


@dataclass(frozen=True, slots=True)
class AskSign:
    """Asks for the signed note of a head.

    Attributes:
        old: Size and root of the head that is followed.
        new: Size and root of the head to sign.
        proof: The consistency proof between them.
    """

    old: tuple[int, bytes]
    new: tuple[int, bytes]
    proof: tuple[bytes, ...]

    def format(self) -> list[Value]:
        """Return it as a message."""
        return [FORMAT, "sign", *self.old, *self.new, list[Value](self.proof)]


@dataclass(frozen=True, slots=True)
class AskFreeze:
    """Asks for the entry that ends the log.

    Attributes:
        size: Number of entries before it.
        reason: Why, for people.
    """

    size: int
    reason: str

    def format(self) -> list[Value]:
        """Return it as a message."""
        return [FORMAT, "freeze", self.size, self.reason]


Request: TypeAlias = AskNewest | AskSign | AskFreeze


def parse_request(data: bytes) -> Request:
    """Parse a request without its length.

    Raises:
        FormatError: It is none.
    """
    match decode(data):
        case [str(version), "newest"] if version == FORMAT:
            return AskNewest()
        case [str(version), "sign", old_size, old_root, new_size, new_root, list(proof)] if version == FORMAT:
            if len(proof) > MAX_PROOF:
                raise FormatError(f"a consistency proof has at most {MAX_PROOF} hashes")
            hashes = tuple(_hash(value) for value in proof)
            return AskSign((_size(old_size), _hash(old_root)), (_size(new_size), _hash(new_root)), hashes)
        case [str(version), "freeze", size, str(reason)] if version == FORMAT:
            return AskFreeze(_size(size), reason)
        case _:
            raise FormatError(f"not a request of {FORMAT}")


def _size(value: Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
        raise FormatError("not the size of a tree")
    return value


def _hash(value: Value) -> bytes:
    if not isinstance(value, bytes) or len(value) != HASH_SIZE:
        raise FormatError(f"a hash has {HASH_SIZE} bytes")
    return value


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest head of a signer.

    Attributes:
        vkey: Its public key.
        size: Number of leaves.
        root: Root hash, 32 bytes.
    """

    vkey: str
    size: int
    root: bytes

    def format(self) -> list[Value]:
        """Return it as a message."""
        return ["newest", self.vkey, self.size, self.root]


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed: a note."""

    note: bytes

    def format(self) -> list[Value]:
        """Return it as a message."""
        return ["signed", self.note]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing was signed."""

    why: str

    def format(self) -> list[Value]:
        """Return it as a message."""
        return ["refused", self.why]


Answer: TypeAlias = Newest | Signed | Refused


def parse_answer(data: bytes) -> Answer:
    """Parse an answer without its length.

    Raises:
        FormatError: It is none.
    """
    match decode(data):
        case ["newest", str(vkey), size, root]:
            return Newest(vkey, _size(size), _hash(root))
        case ["signed", bytes(note)]:
            return Signed(note)
        case ["refused", str(why)]:
            return Refused(why)
        case _:
            raise FormatError(f"not an answer of {FORMAT}")


def framed(message: Request | Answer) -> bytes:
    """Return a message as it is sent, behind its length."""
    data = encode(message.format())
    return HEADER.pack(len(data)) + data


def parse_length(header: bytes) -> int:
    """Parse the length of a message.

    Raises:
        FormatError: It is longer than any message.
    """
    (length,) = HEADER.unpack(header)
    if length > MAX_MESSAGE_SIZE:
        raise FormatError(f"a message of more than {MAX_MESSAGE_SIZE} bytes")
    return int(length)
