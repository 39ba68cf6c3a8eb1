"""The signer process: a key, the newest head that it has signed, and a socket. It signs one history, whoever asks.

The state is a checkpoint store of its own. For each head:

    1  it follows the newest head: larger, and proven consistent; or it is the newest head, to be signed again
    2  sign, and open the note as a client would
    3  swap it into the state, durably
    4  answer

so a signature that is out is always that of a head in the state. Requests are served one after the other. Any doubt
about the state ends the process, unanswered. Core dumps are off, so the key is in no file but its own.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

import structlog

from tlog.checkpoint import Checkpoint
from tlog.errors import FormatError, TreeheadError
from tlog.freeze import freeze_entry
from tlog.note import sign_note
from tlog.policy import Policy
from tlog.server.disk import drafted
from tlog.server.errors import CommitError, CreateError, SigningError, StartRefusedError, UnusableNameError
from tlog.server.lock import Lock
from tlog.server.signer import check_follows
from tlog.server.signer.wire import HEADER, AskNewest, AskSign, Newest, Refused, Signed, framed, parse_length
from tlog.server.signer.wire import parse_request as parse
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tlog.note import Signer
    from tlog.server.signer.wire import Answer, Request

MAX_CLIENTS = 16
"""Most connections at a time: a log has one, and its operator looks at the newest head now and then."""

MESSAGE_S = 5.0
"""Seconds for a whole message, from its first byte on."""

log = structlog.get_logger()

_PEER = Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED


class Keeper:
    """The key and the state. Blocking; owned by the process's only thread."""

    def __init__(self, signer: Signer, store: SqliteCheckpointStore, *, may_freeze: bool = False) -> None:
        """Take the state over.

        Args:
            signer: The key.
            store: The state.
            may_freeze: Whether to sign the entry that ends the log for ever.

        Raises:
            StartRefusedError: It is of another key, or does not verify.
        """
        self._signer = signer
        self._policy = Policy((signer.verifier,))
        self._store = store
        self._may_freeze = may_freeze
        origin = signer.verifier.name
        head = store.acquire(origin)
        if head is None:
            raise StartRefusedError(f"the state knows no log named {origin!r}; it is made with: tlogd signer init")
        try:
            found = self._policy.open_checkpoint(head.note)
        except TreeheadError as error:
            raise StartRefusedError(f"the state does not verify under the key of the signer: {error}") from error
        if found != Checkpoint(head.origin, head.size, head.root):
            raise StartRefusedError("the state contradicts itself: its note is of another head")
        self._head = head

    @property
    def newest(self) -> Checkpoint:
        """The newest head that was signed."""
        return Checkpoint(self._head.origin, self._head.size, self._head.root)

    def answer(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            CommitError: The state could not be made durable; nothing may be answered any more.
        """
        try:
            match request:
                case AskNewest():
                    return Newest(self._signer.verifier.vkey, self._head.size, self._head.root)
                case AskSign():
                    return Signed(self._sign(request))
                case _:
                    return Signed(self._freeze(request.size, request.reason))
        except (SigningError, FormatError) as error:
            log.warning("signer.refused", reason=str(error))
            return Refused(str(error))
        except (sqlite3.Error, OSError, MemoryError) as error:
            raise CommitError(f"the state of the signer is unknown: {error}") from error

    def _sign(self, request: AskSign) -> bytes:
        old, new = (Checkpoint(self._head.origin, *head) for head in (request.old, request.new))
        check_follows(self.newest, old, new, request.proof)
        note = sign_note(new.format(), [self._signer])
        if self._policy.open_checkpoint(note) != new:
            raise CommitError("the signed note says something else than was signed")
        if new != self.newest:
            head = SignedHead(new.origin, self._head.epoch, new.size, new.root, note)
            self._store.swap(self._head, head)
            self._head = head
        return note  # the head is durable here

    def _freeze(self, size: int, reason: str) -> bytes:
        if not self._may_freeze:
            raise SigningError("it may not end the log; start it with --allow-freeze for that")
        if size != self._head.size:
            raise SigningError(f"the newest head has size {self._head.size}, so the log does not end at {size}")
        return freeze_entry(self._signer, size, reason)


def create_state(path: Path, head: SignedHead) -> None:
    """Make the state of a signer that goes on from a signed head, which was verified.

    Raises:
        UnusableNameError: There is a file of that name.
        CreateError: The disk refuses.
    """
    try:
        with drafted(path) as draft, closing(open_checkpoints(draft, create=True)) as connection:
            SqliteCheckpointStore(connection).create(head)
    except FileExistsError:
        raise UnusableNameError(f"{path} exists; a state is never begun anew") from None
    except OSError as error:
        raise CreateError(f"the state {path} cannot be made: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Door:
    """Where a signer listens.

    Attributes:
        path: The socket.
        mode: Its mode: who may connect.
        users: Names of the users that may ask; empty for whoever can connect.
    """

    path: Path
    mode: int = 0o600
    users: tuple[str, ...] = ()

    def listen(self) -> socket.socket:
        """Listen; a socket that was left behind is replaced. Call it with the lock beside it.

        Raises:
            StartRefusedError: The path is something else, or cannot be used.
        """
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise StartRefusedError(f"{self.path} exists and is no socket")
            self.path.unlink()
        try:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o777)  # nobody connects before the mode is as it should be
            try:
                listening.bind(str(self.path))
            finally:
                os.umask(before)
            self.path.chmod(self.mode)
        except OSError as error:
            raise StartRefusedError(f"cannot listen at {self.path}: {error.strerror or error}") from error
        return listening

    def user_ids(self) -> frozenset[int]:
        """Return the numbers of the users.

        Raises:
            StartRefusedError: There is no such user.
        """
        try:
            return frozenset(pwd.getpwnam(name).pw_uid for name in self.users)
        except KeyError as error:
            raise StartRefusedError(f"there is no such user: {error}") from error


class Service:
    """Answers whoever connects. Owned by the event loop."""

    def __init__(self, keeper: Keeper, users: Iterable[int]) -> None:
        """Answer by a keeper; users are the numbers of those who may ask, none for all."""
        self._keeper = keeper
        self._users = frozenset(users)
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._failed = asyncio.get_running_loop().create_future()

    async def failure(self) -> None:
        """Wait until nothing may be answered any more.

        Raises:
            CommitError: Why.
        """
        await self._failed

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        self._clients[writer] = asyncio.current_task()
        try:
            if len(self._clients) <= MAX_CLIENTS and self._may_ask(writer.get_extra_info("socket")):
                await self._answer_all(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            log.info("signer.hung_up")
        except FormatError as error:
            log.warning("signer.unparsed", reason=str(error))
        except CommitError as error:
            if not self._failed.done():
                self._failed.set_exception(error)
        finally:
            del self._clients[writer]
            writer.close()

    async def hang_up(self) -> None:
        """End every connection, each after the answer that it is being given."""
        for writer in self._clients:
            writer.close()
        if answering := [task for task in self._clients.values() if task is not None]:
            await asyncio.wait(answering, timeout=MESSAGE_S)

    def _may_ask(self, client: socket.socket) -> bool:
        if not self._users:
            return True
        pid, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in self._users:
            log.warning("signer.stranger", pid=pid, uid=uid)
        return uid in self._users

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        patience: float | None = MESSAGE_S  # afterwards a log may be idle for as long as it likes
        while first := await asyncio.wait_for(reader.read(1), patience):
            patience = None
            async with asyncio.timeout(MESSAGE_S):
                length = parse_length(first + await reader.readexactly(HEADER.size - 1))
                request = parse(await reader.readexactly(length))
            if self._failed.done():
                return
            writer.write(framed(self._keeper.answer(request)))
            async with asyncio.timeout(MESSAGE_S):
                await writer.drain()


async def run_signer(signer: Signer, state: Path, door: Door, *, may_freeze: bool = False) -> None:
    """Sign until SIGTERM or SIGINT.

    Args:
        signer: The key.
        state: Its state.
        door: Where it listens.
        may_freeze: Whether to sign the entry that ends the log for ever.

    Raises:
        StartRefusedError: The state is missing, in use, or of another key; or the socket cannot be used.
        CommitError: The state could not be made durable; nothing more was answered.
    """
    users = door.user_ids()
    with Lock(door.path.with_name(f"{door.path.name}.lock")), closing(open_checkpoints(state)) as connection:
        keeper = Keeper(signer, SqliteCheckpointStore(connection), may_freeze=may_freeze)
        stop, service = asyncio.Event(), Service(keeper, users)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = await asyncio.start_unix_server(service.serve, sock=door.listen())
        log.info("signer.listening", socket=str(door.path), origin=keeper.newest.origin, size=keeper.newest.size)
        waiting = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(service.failure())]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()
            server.close()
            await service.hang_up()
            door.path.unlink(missing_ok=True)
        log.info("signer.stopped", size=keeper.newest.size)
