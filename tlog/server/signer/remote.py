"""The log's side of a signer process: one connection, one request at a time, a deadline for each."""

from __future__ import annotations

import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError
from tlog.note import parse_vkey
from tlog.server.errors import SigningError
from tlog.server.signer.wire import (
    HEADER,
    AskFreeze,
    AskNewest,
    AskSign,
    Newest,
    Refused,
    Signed,
    framed,
    parse_answer,
    parse_length,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tlog.note import Verifier
    from tlog.server.signer.wire import Answer, Request

ANSWER_S = 5.0
"""Seconds for an answer: a signature and one fsync. A signer that takes longer is as good as none."""


class RemoteSigner:
    """A signer in another process. After any failure nothing more is asked: what it has signed is unknown."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket of a signer, and ask it who it is.

        Raises:
            SigningError: Nothing answers there, or what does is no signer.
        """
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        self._failed = ""
        try:
            self._socket.connect(str(path))
            self._verifier = parse_vkey(self._ask_newest().vkey)
        except (OSError, FormatError) as error:
            self.close()
            raise SigningError(f"no signer answers at {path}: {error}") from error
        except SigningError:
            self.close()
            raise

    @property
    def verifier(self) -> Verifier:
        """The public key that the signer names; whoever uses it compares."""
        return self._verifier

    def newest(self) -> Checkpoint:
        """Return its newest head; see HeadSigner."""
        found = self._ask_newest()
        if found.vkey != self._verifier.vkey:
            raise SigningError(f"the signer at {self._path} has another key than before")
        return Checkpoint(self._verifier.name, found.size, found.root)

    def sign(self, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> bytes:
        """Have a head signed; see HeadSigner. The note is whatever the signer says: who asked verifies it."""
        if new.origin != self._verifier.name:
            raise SigningError(f"this signer is of {self._verifier.name!r}, and not of {new.origin!r}")
        return self._signed(AskSign((old.size, old.root), (new.size, new.root), tuple(proof)))

    def freeze(self, size: int, reason: str) -> bytes:
        """Have the entry signed that ends the log; see HeadSigner."""
        return self._signed(AskFreeze(size, reason))

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._socket.close()

    def _ask_newest(self) -> Newest:
        match self._ask(AskNewest()):
            case Newest() as newest:
                return newest
            case answer:
                raise SigningError(f"the signer at {self._path} gives no head: {answer}")

    def _signed(self, request: Request) -> bytes:
        match self._ask(request):
            case Signed(note):
                return note
            case Refused(why):
                raise SigningError(f"the signer refuses: {why}")
            case answer:
                raise SigningError(f"the signer at {self._path} gives no signature: {answer}")

    def _ask(self, request: Request) -> Answer:
        if self._failed:
            raise SigningError(f"the signer at {self._path} failed before: {self._failed}")
        deadline = monotonic() + ANSWER_S
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(framed(request))
            length = parse_length(self._receive(HEADER.size, deadline))
            return parse_answer(self._receive(length, deadline))
        except (OSError, FormatError) as error:
            self._failed = str(error) or type(error).__name__
            raise SigningError(f"the signer at {self._path} failed: {self._failed}") from error

    def _receive(self, length: int, deadline: float) -> bytes:
        data = b""
        while len(data) < length:
            if (left := deadline - monotonic()) <= 0:
                raise TimeoutError("it takes too long")
            self._socket.settimeout(left)
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError("it hung up")
            data += part
        return data
