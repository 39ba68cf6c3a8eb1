"""What signs tree heads, and refuses to sign two that contradict each other.

A signer is asked with the head that it signed last, the head that is to follow, and the consistency proof between them.
It keeps its own newest head, so whoever asks it can make it stop, and cannot make it fork the log. Two of them:

    LocalSigner     in the process of the log; begins at the signed head of the checkpoint store
    RemoteSigner    a process with its own user, key and state, behind a socket: `tlogd signer`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tlog.errors import TreeheadError
from tlog.freeze import freeze_entry
from tlog.merkle import verify_consistency
from tlog.note import sign_note
from tlog.server.errors import SignerAwayError, SigningError, StartRefusedError
from tlog.server.key import read_log_key
from tlog.server.secrecy import forbid_core_dumps
from tlog.server.signer.remote import RemoteSigner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.checkpoint import Checkpoint
    from tlog.note import Signer, Verifier
    from tlog.server.config import Config


class HeadSigner(Protocol):
    """Signs the heads of one log. Blocking; owned by one thread at a time."""

    @property
    def verifier(self) -> Verifier:
        """The public key."""

    def newest(self) -> Checkpoint:
        """Return the newest head that was signed.

        Raises:
            SigningError: It cannot be told.
        """

    def sign(self, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> bytes:
        """Return the signed note of a head that extends the newest one, or of the newest one again.

        Args:
            old: The head that is followed: the newest one, unless `new` is.
            new: The head to sign.
            proof: The consistency proof from `old` to `new`.

        Raises:
            SigningError: It would contradict what was signed, or the signer failed; no signature was given.
        """

    def freeze(self, size: int, reason: str) -> bytes:
        """Return the signed entry that ends the log (see `tlog.freeze`).

        Args:
            size: Number of entries before it, which is the size of the newest head.
            reason: Why, for people.

        Raises:
            SigningError: The log does not end there, the reason is too long, or the signer failed.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class LocalSigner:
    """A signer in the process of the log. What it remembers is in memory: the checkpoint store keeps the rest."""

    def __init__(self, signer: Signer, newest: Checkpoint) -> None:
        """Take a private key, and the head that it signed last."""
        self._signer = signer
        self._newest = newest

    @property
    def verifier(self) -> Verifier:
        """The public key."""
        return self._signer.verifier

    def newest(self) -> Checkpoint:
        """Return the newest head; see HeadSigner."""
        return self._newest

    def sign(self, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> bytes:
        """Sign a head; see HeadSigner."""
        check_follows(self._newest, old, new, proof)
        self._newest = new  # before the signature is out
        return sign_note(new.format(), [self._signer])

    def freeze(self, size: int, reason: str) -> bytes:
        """Sign the end of the log; see HeadSigner."""
        if size != self._newest.size:
            raise SigningError(f"the newest head has size {self._newest.size}, so the log does not end at {size}")
        return freeze_entry(self._signer, size, reason)

    def close(self) -> None:
        """Hold nothing."""


def check_follows(newest: Checkpoint, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
    """Check that a head may be signed behind the newest one.

    Raises:
        SigningError: It is of another log, does not follow the newest head, or contradicts it.
    """
    if new == newest:
        return
    if new.origin != newest.origin:
        raise SigningError(f"this signer is of {newest.origin!r}, and not of {new.origin!r}")
    if old != newest:
        raise SigningError(
            f"the head to follow has size {old.size}, and is not the newest that was signed, of size {newest.size}"
        )
    if new.size <= old.size:
        raise SigningError(f"a head of size {new.size} does not follow one of size {old.size}")
    try:
        verify_consistency(old.size, new.size, proof, old.root, new.root)
    except TreeheadError as error:
        raise SigningError(f"the head of size {new.size} contradicts the one of size {old.size}: {error}") from error


def open_signer(config: Config, newest: Checkpoint) -> HeadSigner:
    """Return the signer of a configured log.

    Args:
        config: The configuration.
        newest: The signed head of the checkpoint store.

    Raises:
        StartRefusedError: The key cannot be read, or is that of another log.
        SignerAwayError: No signer answers.
    """
    if config.signer:
        return connect_signer(config)
    forbid_core_dumps()
    signer = read_log_key(config)
    _check_key(config, "the key", signer.verifier)
    return LocalSigner(signer, newest)


def connect_signer(config: Config) -> RemoteSigner:
    """Return the signer process of a configured log.

    Raises:
        SignerAwayError: None answers.
        StartRefusedError: Its key is that of another log.
    """
    path = config.path(config.signer.removeprefix("unix:"))
    try:
        signer = RemoteSigner(path)
    except SigningError as error:
        raise SignerAwayError(str(error)) from error
    try:
        _check_key(config, f"the key of the signer at {path}", signer.verifier)
    except StartRefusedError:
        signer.close()
        raise
    return signer


def _check_key(config: Config, what: str, verifier: Verifier) -> None:
    if verifier.name != config.origin or verifier.vkey != config.vkey:
        raise StartRefusedError(
            f"{what} is the one of {verifier.name!r}, and not that of the origin and vkey in the configuration"
        )
