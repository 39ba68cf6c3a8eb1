"""A whole log in memory, with a real key, that answers requests of `tlog.fetch`: honestly, until it is told to lie.

Its trees and proofs are those of the RFC's recursion. `serving` puts it on a socket.
"""

import contextlib
import gzip
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TypeVar

from tests.support.rfc6962 import Tree
from tlog.cbor import decode, encode
from tlog.checkpoint import Checkpoint
from tlog.fetch import (
    HAVE_HEADER,
    KEY_HEADER,
    Answer,
    BatchAnswer,
    Fetching,
    Request,
    Response,
    Result,
)
from tlog.multiproof import multiproof_nodes
from tlog.note import Signer, sign_note
from tlog.tile import Bundle, Tile, parse_path

T = TypeVar("T")
Lie = Callable[[Request, Response], Response]

ORIGIN = "log.example/simulated"
OTHER = Signer(ORIGIN, bytes([9]) * 32)
"""A key of that name which nobody trusts."""


def entry_of(index: int) -> bytes:
    return b"entry %d" % index


class SimulatedLog:
    """A log.

    Attributes:
        tree: What it signs.
        tiles: The tree that tiles are cut from; a lie where it is another.
        bundles: The entries that bundles are cut from; a lie where they are others.
        signer: Its key.
        size: Size of the head that it serves.
        lies: What happens to the answers to paths that begin so.
        asked: The paths that were asked for.
        keys: The answer to each Idempotency-Key; None where the log knows no such keys.
    """

    def __init__(self, entries: Sequence[bytes], *, size: int | None = None) -> None:
        self.tree = self.tiles = self.bundles = Tree(list(entries))
        self.signer = Signer(ORIGIN, bytes([7]) * 32)
        self.size = len(entries) if size is None else size
        self.lies: dict[str, Lie] = {}
        self.asked: list[str] = []
        self.keys: dict[str, bytes] | None = {}
        self._lock = Lock()

    @classmethod
    def of_size(cls, size: int) -> "SimulatedLog":
        return cls([entry_of(index) for index in range(size)])

    def forked(self, at: int, size: int | None = None) -> "SimulatedLog":
        """Return a log with the same key that differs in one entry, and serves its own tiles."""
        entries = [*self.tree.entries]
        entries += [entry_of(index) for index in range(len(entries), size or 0)]
        entries[at] = b"forked"
        return SimulatedLog(entries[:size])

    @property
    def vkey(self) -> str:
        return self.signer.verifier.vkey

    def head(self, size: int | None = None) -> Checkpoint:
        size = self.size if size is None else size
        return Checkpoint(ORIGIN, size, self.tree.mth(0, size))

    def note(self, size: int | None = None) -> bytes:
        return sign_note(self.head(size).format(), [self.signer])

    def answer(self, index: int, have: int = 0, *, with_entry: bool = False) -> Answer:
        entry = self.tree.entries[index]
        return Answer(
            index,
            self.tree.mth(index, index + 1),
            tuple(self.tree.path(index, 0, self.size)),
            self.note(),
            entry if with_entry else None,
            (have, tuple(self.tree.proof(have, self.size))) if 0 < have <= self.size else None,
        )

    def batch_answer(self, indexes: Sequence[int], have: int = 0, size: int | None = None) -> BatchAnswer:
        """Answer for entries at these indexes, each of them new."""
        size = self.size if size is None else size
        nodes = multiproof_nodes(set(indexes), size) if indexes else []
        return BatchAnswer(
            tuple(Result(index, self.tree.mth(index, index + 1), is_new=True) for index in indexes),
            tuple(self.tree.mth(index << level, (index + 1) << level) for level, index in nodes),
            self.note(size),
            (have, tuple(self.tree.proof(have, size))) if 0 < have <= size else None,
        )

    def respond(self, request: Request) -> Response:
        with self._lock:
            self.asked.append(request.path)
            response = self._respond(request)
        for path, lie in self.lies.items():
            if request.path.startswith(path):
                response = lie(request, response)
        return response

    def send(self, requests: list[Request]) -> list[Response]:
        return [self.respond(request) for request in requests]

    def _respond(self, request: Request) -> Response:
        if request.path == "checkpoint":
            return Response(200, {}, self.note())
        if request.path in ("v1/entries", "v1/entries/batch"):
            return self._append(request)
        if request.path.startswith("v1/entries/"):
            index = int(request.path.rsplit("/", 1)[1])
            if index >= self.size:
                return Response(404, {}, b'{"title": "no such entry"}')
            return Response(200, {}, self.answer(index, with_entry=True).format())
        if request.path.startswith("v1/"):
            return Response(404, {}, b"")
        data = self._static(parse_path(request.path))
        return Response(200, {}, data) if data else Response(404, {}, b"")

    def _append(self, request: Request) -> Response:
        headers = dict(request.headers)
        key = headers.get(KEY_HEADER)
        if self.keys is not None and key in self.keys:
            return Response(200, {}, self.keys[key])
        is_batch = request.path.endswith("batch")
        entries = decode(request.body or b"") if is_batch else [request.body]
        assert isinstance(self.tree.entries, list)
        assert isinstance(entries, list)
        assert entries
        start = len(self.tree.entries)
        for entry in entries:
            assert isinstance(entry, bytes)
            self.tree.entries.append(entry)
        self.size = len(self.tree.entries)
        have = int(headers.get(HAVE_HEADER, "0"))
        answer = self.batch_answer(range(start, self.size), have) if is_batch else self.answer(start, have)
        if self.keys is not None and key is not None:
            self.keys[key] = answer.format()
        return Response(201, {}, answer.format())

    def _static(self, address: Tile | Bundle) -> bytes:
        if isinstance(address, Bundle):
            start = 256 * address.index
            entries = self.bundles.entries[start : start + address.width]
            return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
        span = 256**address.level
        starts = [span * (256 * address.index + at) for at in range(address.width)]
        if starts[-1] + span > len(self.tiles.entries):
            return b""
        return b"".join(self.tiles.mth(start, start + span) for start in starts)


# Lies.


def always(status: int, body: bytes = b"", **headers: str) -> Lie:
    response = Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
    return lambda _request, _response: response


def changed(change: Callable[[bytes], bytes]) -> Lie:
    return lambda _, response: Response(response.status, response.headers, change(response.body))


def flipped(data: bytes, at: int = -1) -> bytes:
    copy = bytearray(data)
    copy[at] ^= 1
    return bytes(copy)


def answering(**fields: object) -> Lie:
    """Replace parts of an answer in CBOR."""

    def change(body: bytes) -> bytes:
        value = decode(body)
        assert isinstance(value, dict)
        value.update(fields)  # type: ignore[arg-type]  # a lie may be anything
        return encode(value)

    return changed(change)


# Schedules.


def interleave(log: SimulatedLog, flows: Sequence[Fetching[T]], order: list[int]) -> list[T]:
    """Run flows side by side; `order` decides whose answer arrives next, and who begins when."""
    results: dict[int, T] = {}
    waiting: dict[int, list[Response] | None] = dict.fromkeys(range(len(flows)))
    step = 0
    while waiting:
        choice = order[step % len(order)] if order else 0
        step += 1
        number = list(waiting)[(choice + step // max(1, len(order))) % len(waiting)]
        answers = waiting[number]
        try:
            requests = next(flows[number]) if answers is None else flows[number].send(answers)
            waiting[number] = log.send(requests)
        except StopIteration as done:
            results[number] = done.value
            del waiting[number]
    return [results[number] for number in range(len(flows))]


# Sockets.


@contextlib.contextmanager
def serving(log: SimulatedLog, *, prefix: str = "", zipped: bool = False) -> Iterator[str]:
    """Serve a log on a free port, and return its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._do("GET", None)

        def do_POST(self) -> None:
            self._do("POST", self.rfile.read(int(self.headers.get("Content-Length", "0"))))

        def _do(self, method: str, body: bytes | None) -> None:
            assert self.path.startswith(f"{prefix}/")
            path = self.path[len(prefix) + 1 :]
            response = log.respond(Request(method, path, tuple(self.headers.items()), body))
            data = gzip.compress(response.body) if zipped else response.body
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if zipped:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
