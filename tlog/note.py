"""Signed notes (c2sp.org/signed-note), with Ed25519 (type 0x01).

    <text, every line ends in LF>
    <empty line>
    — <key name> <base64 of key ID (4 bytes) ‖ signature (64 bytes)>       one line a signature

    vkey   <name>+<key ID, 8 lowercase hex digits>+<base64 of 0x01 ‖ public key (32 bytes)>
    key ID first 4 bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ public key): it selects a key, it proves nothing

The text may hold empty lines itself, so the signatures begin behind the *last* one. Lines of unknown keys are ignored,
even when the name or the ID alone is known: that lets keys be rotated and witnesses be added. A known key's line must
verify, and may stand only once. Only base64 that encodes back to itself is read.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from tlog.errors import FormatError, VerificationError
from tlog.strict import check_name, check_text, parse_base64, split_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NOTE_SIZE = 1 << 20
"""Largest note that is read, in bytes; post-quantum signatures reach 5 kB each."""

MAX_SIGNATURES = 100
"""Most signature lines that are read, as in Go's implementation; the specification asks for at least 16."""

KEY_SIZE = 32
"""Bytes in an Ed25519 public key, and in the seed of a private one."""

SIGNATURE_SIZE = 64
"""Bytes in an Ed25519 signature."""

_ED25519 = b"\x01"
_KEY_ID_SIZE = 4
_DASH = "— ".encode()
_SKEY_PREFIX = "PRIVATE+KEY+"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key that notes are checked with.

    Attributes:
        name: Key name; of a log, its origin.
        public_key: Ed25519 public key, 32 bytes; refused when of small order or not canonical.
    """

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        """Refuse a key that no honest signer has.

        Raises:
            FormatError: The name breaks its rules, or the key is not a canonical point of the prime-order group.
        """
        check_name(self.name)
        if len(self.public_key) != KEY_SIZE or not crypto_core_ed25519_is_valid_point(self.public_key):
            raise FormatError(f"not an Ed25519 public key: {self.name}")

    @property
    def key_id(self) -> bytes:
        """The key ID, 4 bytes."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:_KEY_ID_SIZE]

    @property
    def vkey(self) -> str:
        """The key in text, as `parse_vkey` reads it."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.public_key).decode()}"

    def verify(self, text: bytes, signature: bytes) -> None:
        """Check an Ed25519 signature of 64 bytes over the text of a note (RFC 8032).

        Raises:
            VerificationError: It does not hold, or has another length.
        """
        if len(signature) != SIGNATURE_SIZE:
            raise VerificationError(
                f"a signature of {self.name} has {len(signature)} bytes instead of {SIGNATURE_SIZE}"
            )
        try:
            VerifyKey(self.public_key).verify(text, signature)
        except BadSignatureError as error:
            raise VerificationError(f"signature of {self.name} does not hold") from error


class Signer:
    """A private key that notes are signed with; it never shows its seed but in `skey`."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, seed: bytes) -> None:
        """Take a seed of 32 random bytes, from the operating system's generator.

        Raises:
            FormatError: The name breaks its rules, or the seed has another length.
        """
        if len(seed) != KEY_SIZE:
            raise FormatError(f"the seed of a key has {KEY_SIZE} bytes")
        self._key = SigningKey(seed)
        self.verifier = Verifier(name, bytes(self._key.verify_key))

    @property
    def skey(self) -> str:
        """The private key in text, as `parse_skey` reads it: the form that Go's note package uses."""
        secret = b64encode(_ED25519 + bytes(self._key)).decode()
        return f"{_SKEY_PREFIX}{self.verifier.name}+{self.verifier.key_id.hex()}+{secret}"

    def sign(self, text: bytes) -> bytes:
        """Return the Ed25519 signature over the text of a note, 64 bytes (RFC 8032)."""
        return self._key.sign(text).signature


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """One signature line of a note, checked only for its form.

    Attributes:
        name: Key name.
        key_id: Key ID, 4 bytes.
        signature: The bytes behind the key ID; 64 for Ed25519.
    """

    name: str
    key_id: bytes
    signature: bytes

    def format(self) -> bytes:
        """Write the line, with its LF."""
        return _DASH + f"{self.name} {b64encode(self.key_id + self.signature).decode()}\n".encode()


def parse_vkey(text: str) -> Verifier:
    """Parse a public key of type Ed25519 (signed-note, "Verifier keys").

    Raises:
        FormatError: Broken form, another type, a key ID that does not fit, or a key that no honest signer has.
    """
    name, key = _parse_key(text)
    verifier = Verifier(name, key)
    if verifier.vkey != text:
        raise FormatError("the key ID does not belong to the name and key")
    return verifier


def parse_skey(text: str) -> Signer:
    """Parse a private key as `Signer.skey` writes it.

    Raises:
        FormatError: Broken form, another type, or a key ID that does not fit. The message holds nothing of the key.
    """
    if not text.startswith(_SKEY_PREFIX):
        raise FormatError("not a private key: it begins with PRIVATE+KEY+")
    name, key = _parse_key(text.removeprefix(_SKEY_PREFIX))
    signer = Signer(name, key)
    if signer.skey != text:
        raise FormatError("the key ID does not belong to the name and private key")
    return signer


def _parse_key(text: str) -> tuple[str, bytes]:
    """Split <name>+<key ID>+<base64 of 0x01 ‖ 32 bytes>; base64 may hold "+" itself."""
    parts = text.split("+", 2)
    key = b""
    with suppress(IndexError, UnicodeEncodeError, FormatError):  # no error may carry what could be a private key
        key = parse_base64(parts[2].encode())
    if key[:1] != _ED25519 or len(key) != 1 + KEY_SIZE:
        raise FormatError("a key is <name>+<key ID>+<base64 of the type 0x01 and 32 bytes>")
    return parts[0], key[1:]


def split_note(note: bytes) -> tuple[bytes, list[SignatureLine]]:
    """Split a note into its text and its signature lines; nothing is verified.

    Raises:
        FormatError: Broken form, over 1 MiB, or over 100 signature lines.
    """
    if len(note) > MAX_NOTE_SIZE:
        raise FormatError(f"a note of more than {MAX_NOTE_SIZE} bytes")
    check_text(note)
    text, blank, signatures = note.rpartition(b"\n\n")
    if not blank:
        raise FormatError("a note has an empty line before its signatures")
    lines = split_lines(signatures)
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(f"a note of more than {MAX_SIGNATURES} signatures")
    return text + b"\n", [_parse_signature_line(line) for line in lines]


def _parse_signature_line(line: bytes) -> SignatureLine:
    name, space, encoded = line.removeprefix(_DASH).decode().partition(" ")
    if not line.startswith(_DASH) or not space:
        raise FormatError("not a signature line: — <name> <base64>")
    check_name(name)
    signature = parse_base64(encoded.encode())
    if len(signature) <= _KEY_ID_SIZE:
        raise FormatError("a signature line without a signature")
    return SignatureLine(name, signature[:_KEY_ID_SIZE], signature[_KEY_ID_SIZE:])


def open_note(note: bytes, verifiers: Iterable[Verifier]) -> tuple[bytes, list[Verifier]]:
    """Return the text of a note and those of the keys that signed it, in the order of their lines.

    Raises:
        FormatError: The note breaks its form.
        VerificationError: No line is of a known key, a known key's signature does not hold, or stands twice.
    """
    text, lines = split_note(note)
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    signed: list[Verifier] = []
    for line in lines:
        verifier = known.get((line.name, line.key_id))
        if verifier is None:
            continue
        if verifier in signed:
            raise VerificationError(f"two signatures of {verifier.name}")
        verifier.verify(text, line.signature)
        signed.append(verifier)
    if not signed:
        raise VerificationError("no signature by a known key")
    return text, signed


def sign_note(text: bytes, signers: Iterable[Signer]) -> bytes:
    """Return the note of a text with one signature line a signer, in their order.

    Raises:
        FormatError: The text is not UTF-8, holds a control character, or does not end in LF.
    """
    check_text(text)
    split_lines(text)
    lines = [SignatureLine(s.verifier.name, s.verifier.key_id, s.sign(text)).format() for s in signers]
    return text + b"\n" + b"".join(lines)
