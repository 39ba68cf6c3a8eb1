"""The log's private key: a file that only its owner may read, plain or encrypted under a passphrase.

Plain, it is one line, as `Signer.skey` writes it. Encrypted, it is four:

    treehead/key/v1
    vkey <vkey>
    argon2id <passes> <memory in KiB> <base64 of the salt, 16 bytes>
    secretbox <base64 of the nonce, 24 bytes ‖ the plain form, encrypted>

    secretbox key = HMAC-SHA-256(argon2id(passphrase, salt, passes, memory), the first three lines with their LF)

So the vkey and the parameters are bound to the key, and the first line separates this use of a passphrase from others.
The passphrase is the content of a file without the LF at its end; it never comes from the environment or an argument.
"""

from __future__ import annotations

import hmac
import os
import stat
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from tlog.errors import FormatError
from tlog.note import Signer, parse_skey, parse_vkey
from tlog.server.errors import StartRefusedError
from tlog.strict import check_text, parse_base64, parse_decimal, split_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.note import Verifier
    from tlog.server.config import Config

KEY_MODE = 0o400
"""Mode of the key file: its owner may read it, and nobody may do anything else."""

PASSES = 3
"""Passes of argon2id over its memory."""

MEMORY_KIB = 256 << 10
"""Memory of argon2id: 256 MiB, about a second once a start, as libsodium advises for keys that are not used often."""

MAX_PASSES = 16
"""Most passes that are read: a file that was tampered with must not hold up a start for long."""

MIN_MEMORY_KIB = 8 << 10
"""Least memory that is read."""

MAX_MEMORY_KIB = 1 << 20
"""Most memory that is read: 1 GiB."""

MAX_PASSPHRASE_SIZE = 1024
"""Largest passphrase in bytes."""

_FORMAT = b"treehead/key/v1"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NOT_OWNERS = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO  # a service manager's ACL shows as a group that may read
_MAX_KEY_FILE = 4096


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A private key that is encrypted under a passphrase.

    Attributes:
        verifier: The public key.
        passes: Passes of argon2id.
        memory_kib: Memory of argon2id in KiB.
        salt: Salt of argon2id, 16 bytes.
        box: Nonce of 24 bytes ‖ the encrypted text of the private key.
    """

    verifier: Verifier
    passes: int
    memory_kib: int
    salt: bytes
    box: bytes

    def format(self) -> bytes:
        """Write the file."""
        return self._header() + b"secretbox " + b64encode(self.box) + b"\n"

    def _header(self) -> bytes:
        salt = b64encode(self.salt).decode()
        return _FORMAT + f"\nvkey {self.verifier.vkey}\nargon2id {self.passes} {self.memory_kib} {salt}\n".encode()

    def secret_box(self, passphrase: bytes) -> SecretBox:
        """Return what a passphrase opens and closes; takes the time and memory of argon2id."""
        stretched = argon2id.kdf(32, passphrase, self.salt, opslimit=self.passes, memlimit=self.memory_kib << 10)
        return SecretBox(hmac.digest(stretched, self._header(), "sha256"))


def seal_key(signer: Signer, passphrase: bytes, *, passes: int = PASSES, memory_kib: int = MEMORY_KIB) -> SealedKey:
    """Encrypt a private key under a passphrase."""
    empty = SealedKey(signer.verifier, passes, memory_kib, os.urandom(argon2id.SALTBYTES), b"")
    box = empty.secret_box(passphrase).encrypt(signer.skey.encode())
    return SealedKey(empty.verifier, passes, memory_kib, empty.salt, bytes(box))


def open_key(sealed: SealedKey, passphrase: bytes) -> Signer:
    """Decrypt a private key.

    Raises:
        StartRefusedError: The passphrase is wrong, or the file was changed.
    """
    try:
        signer = parse_skey(sealed.secret_box(passphrase).decrypt(sealed.box).decode())
    except (CryptoError, FormatError, UnicodeDecodeError) as error:
        raise StartRefusedError("the passphrase is wrong, or the key file was changed") from error
    if signer.verifier != sealed.verifier:
        raise StartRefusedError("the key file holds another private key than its vkey says")
    return signer


def parse_sealed_key(data: bytes) -> SealedKey:
    """Parse the file of an encrypted key.

    Raises:
        FormatError: It is something else, or asks for more time or memory than a start may take.
    """
    check_text(data)
    match [line.split(b" ") for line in split_lines(data)]:
        case [[magic], [b"vkey", vkey], [b"argon2id", passes, memory, salt], [b"secretbox", box]] if magic == _FORMAT:
            sealed = SealedKey(
                parse_vkey(vkey.decode()),
                parse_decimal(passes, maximum=MAX_PASSES),
                parse_decimal(memory, maximum=MAX_MEMORY_KIB),
                parse_base64(salt),
                parse_base64(box),
            )
        case _:
            raise FormatError("not an encrypted key: treehead/key/v1, vkey, argon2id and secretbox, each on a line")
    if len(sealed.salt) != argon2id.SALTBYTES or len(sealed.box) < SecretBox.NONCE_SIZE + SecretBox.MACBYTES:
        raise FormatError("an encrypted key with a salt, or a box, of another length")
    if sealed.passes < 1 or sealed.memory_kib < MIN_MEMORY_KIB:
        raise FormatError("an encrypted key with less than one pass of argon2id, or less than 8 MiB")
    return sealed


def parse_key(data: bytes) -> Signer | SealedKey:
    """Parse the content of a key file.

    Raises:
        FormatError: It is no key. The message holds nothing of it.
    """
    if data.startswith(_FORMAT + b"\n"):
        return parse_sealed_key(data)
    return parse_skey(data.decode("utf-8", "replace").removesuffix("\n"))


def read_key_file(path: Path) -> Signer | SealedKey:
    """Read a key file, and decrypt nothing.

    Raises:
        StartRefusedError: It is missing, others can read it, or it is not a key. The message holds nothing of it.
    """
    data = _read_secret(path, "the key", _OTHERS, _MAX_KEY_FILE)
    try:
        return parse_key(data)
    except FormatError as error:
        raise StartRefusedError(f"{path}: {error}") from error


def read_key(path: Path, passphrase: bytes | None = None) -> Signer:
    """Read the private key.

    Args:
        path: The key file.
        passphrase: The passphrase that it is encrypted under; None for one that is not encrypted.

    Raises:
        StartRefusedError: It is missing, others can read it, it is not a key, or the passphrase is not the right one.
            The message holds nothing of either.
    """
    found = read_key_file(path)
    if isinstance(found, Signer):
        if passphrase is not None:
            raise StartRefusedError(f"{path} is not encrypted, so no passphrase may be set for it; remove that setting")
        return found
    if passphrase is None:
        raise StartRefusedError(f'{path} is encrypted; set in treehead.toml: passphrase = "file:PATH"')
    try:
        return open_key(found, passphrase)
    except StartRefusedError as error:
        raise StartRefusedError(f"{path}: {error}") from error


def read_log_key(config: Config) -> Signer:
    """Read the private key of a configured log.

    Raises:
        StartRefusedError: As of `read_key`, or its passphrase cannot be read.
    """
    reference = config.passphrase_path()
    return read_key(config.path(config.key), None if reference is None else read_passphrase(reference))


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase: the content of its file, without the LF at its end.

    Raises:
        StartRefusedError: It is missing, others can read it, or it is empty or too long.
    """
    text = _read_secret(path, "the passphrase file", _NOT_OWNERS, MAX_PASSPHRASE_SIZE + 2)
    passphrase = text.removesuffix(b"\n")
    if not 1 <= len(passphrase) <= MAX_PASSPHRASE_SIZE:
        raise StartRefusedError(f"{path} holds no passphrase: it has 1 to {MAX_PASSPHRASE_SIZE} bytes")
    return passphrase


def _read_secret(path: Path, what: str, forbidden: int, limit: int) -> bytes:
    """Read at most `limit` bytes of a regular file that has none of the forbidden mode bits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise StartRefusedError(f"{what} {path} is not a file")
            if mode & forbidden:
                raise StartRefusedError(f"{path} can be read by others than its owner; set: chmod 400 {path}")
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StartRefusedError(f"{what} {path} is missing") from error
    except (OSError, ValueError) as error:
        raise StartRefusedError(f"{what} {path} cannot be read: {getattr(error, 'strerror', error)}") from error


def write_key(path: Path, signer: Signer, passphrase: bytes | None = None) -> None:
    """Write a private key to a new file, durably; encrypted where there is a passphrase.

    Raises:
        FileExistsError: The name is taken.
        OSError: The disk refuses; nothing is left behind.
    """
    data = f"{signer.skey}\n".encode() if passphrase is None else seal_key(signer, passphrase).format()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink()
        raise
