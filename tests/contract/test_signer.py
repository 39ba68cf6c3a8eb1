"""What every `HeadSigner` promises, in the process of the log and in one of its own, and what that promises besides."""

from __future__ import annotations

import socket
import sqlite3
import struct
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.support import faulty_tlogd
from tests.support.rfc6962 import Tree
from tests.support.signing import SignerProcess
from tests.support.writing import ORIGIN, SIGNER, empty_head
from tlog.cbor import Value, encode
from tlog.checkpoint import Checkpoint
from tlog.freeze import is_freeze
from tlog.policy import Policy
from tlog.server.errors import SigningError
from tlog.server.key import write_key
from tlog.server.signer import LocalSigner
from tlog.server.signer.process import create_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog.server.signer import HeadSigner

pytestmark = pytest.mark.invariant("I2", "I4", "I8", "I14", "I23")

TREE = Tree([b"entry %d" % number for number in range(40)])
OTHER = Tree([b"other %d" % number for number in range(40)])


def head(size: int, tree: Tree = TREE, origin: str = ORIGIN) -> Checkpoint:
    return Checkpoint(origin, size, tree.mth(0, size))


def sign(signer: HeadSigner, old: int, new: int, tree: Tree = TREE) -> bytes:
    return signer.sign(head(old, tree), head(new, tree), tree.proof(old, new))


class Home(Protocol):
    """Where a signer lives: it may be ended and opened again."""

    def open(self) -> HeadSigner: ...
    def end(self) -> None: ...


class Local:
    """In this process; what it remembers is what the checkpoint store keeps."""

    def __init__(self) -> None:
        self._newest = head(0)
        self._signer: LocalSigner | None = None

    def open(self) -> HeadSigner:
        self._signer = LocalSigner(SIGNER, self._newest)
        return self._signer

    def end(self) -> None:
        assert self._signer is not None
        self._newest = self._signer.newest()


class Process:
    """In a process of its own, which is killed when it ends."""

    def __init__(self, folder: Path) -> None:
        write_key(folder / "key", SIGNER)
        create_state(folder / "state.db", empty_head())
        self.process = SignerProcess(folder, "--allow-freeze")

    def open(self) -> HeadSigner:
        self.process.start()
        return self.process.connect()

    def end(self) -> None:
        self.process.kill()


@pytest.fixture(params=["local", "process"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    if request.param == "local":
        yield Local()
        return
    process = Process(tmp_path)
    yield process
    process.process.end()


def test_heads_that_grow_out_of_each_other_are_signed_as_the_key_signs_them(home: Home) -> None:
    signer = home.open()
    assert signer.newest() == head(0)
    assert signer.verifier == SIGNER.verifier
    size = 0
    for new in (1, 2, 3, 7, 8, 9, 32, 40):
        note = sign(signer, size, new)
        assert Policy((SIGNER.verifier,)).open_checkpoint(note) == head(new)
        assert signer.newest() == head(new)
        size = new


def test_the_newest_head_is_signed_again_with_the_same_bytes_also_after_an_end(home: Home) -> None:
    signer = home.open()
    first = sign(signer, 0, 5)
    assert sign(signer, 0, 5) == first
    assert signer.sign(head(5), head(5), []) == first
    home.end()
    signer = home.open()
    assert signer.newest() == head(5)
    assert sign(signer, 0, 5) == first


CONTRADICTIONS = {
    "smaller": (head(8), head(7), []),
    "another root": (head(8), head(8, OTHER), []),
    "empty": (head(8), head(0), []),
    "not the newest": (head(7), head(9), TREE.proof(7, 9)),
    "not signed yet": (head(9), head(12), TREE.proof(9, 12)),
    "another history": (head(8, OTHER), head(12, OTHER), OTHER.proof(8, 12)),
    "a fork": (head(8), head(12, OTHER), OTHER.proof(8, 12)),
    "a fork under a proof": (head(8), head(12, OTHER), TREE.proof(8, 12)),
    "a hash missing": (head(8), head(12), TREE.proof(8, 12)[:-1]),
    "a hash more": (head(8), head(12), [*TREE.proof(8, 12), bytes(32)]),
    "a forged proof": (head(8), head(12), [bytes(32)] * len(TREE.proof(8, 12))),
    "another size": (head(8), head(13), TREE.proof(8, 12)),
    "from nothing": (head(0), head(12), []),
    "another log": (head(8, origin="log.example/y"), head(12, origin="log.example/y"), TREE.proof(8, 12)),
}


@pytest.mark.parametrize("again", [False, True])
def test_what_contradicts_the_newest_head_is_never_signed(home: Home, *, again: bool) -> None:
    signer = home.open()
    note = sign(signer, 0, 8)
    if again:
        home.end()
        signer = home.open()
    for case, (old, new, proof) in CONTRADICTIONS.items():
        with pytest.raises(SigningError):
            raise AssertionError(f"{case}: {signer.sign(old, new, proof)!r}")
        assert signer.newest() == head(8)
        assert sign(signer, 0, 8) == note
    assert sign(signer, 8, 12)


def test_the_end_of_a_log_is_signed_where_it_is_and_nowhere_else(home: Home) -> None:
    signer = home.open()
    sign(signer, 0, 8)
    assert is_freeze(signer.freeze(8, "moved"), 8, SIGNER.verifier)
    for size in (0, 7, 9):
        with pytest.raises(SigningError, match="does not end at"):
            signer.freeze(size, "moved")


# A process of its own.


@pytest.fixture
def process(tmp_path: Path) -> Iterator[SignerProcess]:
    home = Process(tmp_path)
    with home.process:
        yield home.process


def state(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        return int(connection.execute("SELECT size FROM head").fetchone()[0])


def test_of_two_heads_of_one_size_that_race_exactly_one_is_signed(process: SignerProcess) -> None:
    sizes, signed = iter(range(1, 40)), 0
    for size in sizes:
        results: list[bytes | SigningError] = []

        def ask(tree: Tree, new: int = size, results: list[bytes | SigningError] = results) -> None:
            signer = process.connect()
            try:
                results.append(signer.sign(head(new - 1), head(new, tree), TREE.proof(new - 1, new)))
            except SigningError as error:
                results.append(error)
            signer.close()

        longer = Tree([*TREE.entries[: size - 1], b"another"])
        forked = Tree([*TREE.entries[: size - 1], b"a third"])
        threads = [threading.Thread(target=ask, args=(tree,)) for tree in (TREE, TREE, longer, forked)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        notes = {result for result in results if isinstance(result, bytes)}
        assert len(notes) <= 1, "two heads of one size"
        signed += len(notes)
        with closing(process.connect()) as signer:
            if not notes or signer.newest() != head(size):
                break
    assert signed > 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signature_is_out_only_after_its_head_is_in_the_state(tmp_path: Path, moment: str) -> None:
    home = Process(tmp_path)
    faulty = (sys.executable, faulty_tlogd.__file__, "swap", moment, "exit", "2")
    with SignerProcess(tmp_path, program=faulty) as process:
        signer = process.connect()
        sign(signer, 0, 3)
        with pytest.raises(SigningError, match="failed"):
            sign(signer, 3, 5)
        with pytest.raises(SigningError, match="failed before"):
            sign(signer, 3, 5)
        assert process.wait() == faulty_tlogd.EXIT_CODE
    with home.process as again:
        kept = 5 if moment == "after" else 3
        assert again.connect().newest() == head(kept)
        if kept == 5:
            with pytest.raises(SigningError):
                again.connect().sign(head(3), head(5, OTHER), TREE.proof(3, 5))
        assert sign(again.connect(), 3, 5)


def test_a_state_that_cannot_be_made_durable_ends_the_process_with_4_and_no_signature(tmp_path: Path) -> None:
    Process(tmp_path)
    faulty = (sys.executable, faulty_tlogd.__file__, "swap", "before", "raise", "1")
    with SignerProcess(tmp_path, program=faulty) as process:
        with pytest.raises(SigningError):
            sign(process.connect(), 0, 3)
        assert process.wait() == 4
        assert process.stderr.count("tlogd: ") == 1
    assert state(tmp_path) == 0


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def request(*parts: Value) -> bytes:
    return framed(encode(["treehead/signer/v1", *parts]))


GARBAGE = [
    b"",
    b"\x00",
    b"\x00\x00\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff\xff\xff\xff",
    framed(b""),
    framed(b"\xff" * 100),
    framed(encode([])),
    framed(encode(["treehead/signer/v2", "newest"])),
    request("newest", 1),
    request("sign"),
    request("sign", 0, bytes(32), 1, bytes(31), []),
    request("sign", -1, bytes(32), 1, bytes(32), []),
    request("sign", False, bytes(32), 1, bytes(32), []),  # noqa: FBT003  # it is no number
    request("sign", 0, bytes(32), 1 << 63, bytes(32), []),
    request("sign", 0, bytes(32), 1, bytes(32), [bytes(32)] * 127),
    request("sign", 0, bytes(32), 1, bytes(32), [[bytes(32)]]),
    request("sign", 0, "root", 1, bytes(32), []),
    request("freeze", 0),
    request("freeze", "0", ""),
    request("note", b"anything"),
    request("sign", 0, bytes(32), 1, bytes(32), [])[:-1],
]


def test_garbage_is_not_answered_and_harms_nobody(process: SignerProcess) -> None:
    signer = process.connect()
    for data in GARBAGE:
        with closing(process.raw()) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b"", data
    note = sign(signer, 0, 4)
    assert sign(process.connect(), 0, 4) == note
    assert process.stop() == 0
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 1001], ids=["lines", "long"])
def test_a_reason_that_no_entry_can_hold_is_refused_in_words(process: SignerProcess, reason: str) -> None:
    with pytest.raises(SigningError, match="the reason"):
        process.connect().freeze(0, reason)


def test_half_a_message_is_not_waited_for_and_keeps_nobody_waiting(process: SignerProcess) -> None:
    clients = [process.raw() for _ in range(12)]
    for client in clients:
        client.sendall(b"\x00\x00")
    assert sign(process.connect(), 0, 4)
    for client in clients:
        assert client.recv(1) == b""  # it hangs up
        client.close()


def test_more_clients_than_a_log_has_are_hung_up_on(process: SignerProcess) -> None:
    signer = process.connect()
    clients = [process.raw() for _ in range(20)]
    for client in clients[16:]:
        assert client.recv(1) == b""
    assert sign(signer, 0, 4)
    for client in clients:
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_no_core_dump_of_it_is_written(process: SignerProcess) -> None:
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert [line.split()[-3:-1] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]


def test_a_user_that_is_not_named_is_not_answered(tmp_path: Path) -> None:
    Process(tmp_path)
    with SignerProcess(tmp_path, "--user", "nobody") as process, pytest.raises(SigningError, match="failed"):
        process.connect()


def test_an_unknown_user_is_refused(tmp_path: Path) -> None:
    Process(tmp_path)
    with pytest.raises(AssertionError, match=r"ended with 3.*no such user"):
        SignerProcess(tmp_path, "--user", "nobody-at-all").start()


def test_a_second_process_on_one_state_is_refused_and_the_first_goes_on(tmp_path: Path, process: SignerProcess) -> None:
    with pytest.raises(AssertionError, match=r"ended with 3.*in use"):
        SignerProcess(tmp_path).start()
    assert sign(process.connect(), 0, 4)


@pytest.mark.parametrize("case", ["missing", "damaged", "another key", "a file in the way"])
def test_a_signer_that_is_not_as_it_was_left_refuses_to_start(tmp_path: Path, case: str) -> None:
    Process(tmp_path)
    if case == "missing":
        (tmp_path / "state.db").unlink()
    elif case == "damaged":
        (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    elif case == "another key":
        with closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
            connection.execute("UPDATE head SET note = CAST(replace(note, 'A', 'B') AS BLOB)")
    else:
        (tmp_path / "socket").write_text("precious")
    with pytest.raises(AssertionError, match="ended with 3"):
        SignerProcess(tmp_path).start()
    assert (tmp_path / "socket").exists() == (case == "a file in the way")
    assert (tmp_path / "state.db").exists() == (case != "missing"), "a state is never begun anew"


def test_a_socket_that_was_left_behind_is_replaced(process: SignerProcess) -> None:
    process.kill()
    assert process.path.exists()
    process.start()
    assert sign(process.connect(), 0, 4)
    assert process.stop() == 0
    assert not process.path.exists()
