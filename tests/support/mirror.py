"""A mirror of a log over HTTP, from the texts of tlog-tiles and the RFC alone, that misbehaves when it is told to."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from tests.support.static import addresses, content, path
from tests.support.static import every_width as widths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from tests.support.rfc6962 import Tree

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body; a Content-Length among the headers may lie."""


def files(tree: Tree, size: int, *, every_width: bool = False) -> dict[str, bytes]:
    """Return what a log of that size serves, by path; for heads before it as well, with every width."""
    wanted = widths(size) if every_width else addresses(size)
    return {path(address): content(tree, address) for address in wanted}


def write_mirror(folder: Path, tree: Tree, size: int, *, encoded: bool) -> None:
    """Write a mirror as files, with its bundles gzip-encoded or not."""
    for name, data in files(tree, size).items():
        target = folder / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(data) if encoded and "entries" in name else data)


class Mirror:
    """One mirror.

    Attributes:
        asked: The paths that were asked for.
        lie: Changes the reply at a path; None leaves the request without any.
    """

    def __init__(self, tree: Tree, size: int, note: bytes | None = None, *, every_width: bool = False) -> None:
        self.asked: list[str] = []
        self.lie: Callable[[str, Reply], Reply | None] = lambda _, reply: reply
        self._files = files(tree, size, every_width=every_width) | ({"/checkpoint": note} if note else {})
        self._stopped = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                mirror._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Say nothing of who hangs up."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        data = self._files.get(handler.path)
        reply = self.lie(handler.path, (404, {}, b"nothing here") if data is None else (200, {}, data))
        if reply is None:
            self._stopped.wait(30)
            handler.close_connection = True
            return
        status, headers, body = reply
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = "Content-Length" in headers

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
