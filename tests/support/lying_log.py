"""A log in memory that answers what flows ask for: honestly, until it is told to lie.

Its tiles come from the RFC's recursion (`rfc6962.Tree`), and from no code of ours.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tests.support.rfc6962 import Tree
from tlog.checkpoint import Checkpoint
from tlog.fetch import Fetching, Request, Response
from tlog.reader import ReadBundles, Reading, ReadTiles
from tlog.tile import Bundle, Tile, parse_path

T = TypeVar("T")

ORIGIN = "log.example/lies"


class LyingLog:
    """A log that may lie.

    Attributes:
        tree: What it has signed; its heads are always of this tree.
        bundles_of: The tree that its bundles are cut from: a lie where it is another.
        tiles_of: The tree that its tiles are cut from: a lie where it is another.
        keeps_partials: Whether it serves partial tiles and bundles, where the full one exists.
        asked: The paths asked for, in order.
    """

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.tree = self.bundles_of = self.tiles_of = Tree(entries)
        self.keeps_partials = True
        self.asked: list[str] = []
        self._changes: dict[str, Callable[[bytes], bytes]] = {}

    def head(self, size: int | None = None) -> Checkpoint:
        """Return the true head of a size, the largest by default."""
        size = len(self.tree.entries) if size is None else size
        return Checkpoint(ORIGIN, size, self.tree.mth(0, size))

    def lie(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Change what is served at a path."""
        self._changes[path] = change

    def serve(self, entries: Sequence[bytes]) -> None:
        """Serve the tiles and bundles of other entries."""
        self.bundles_of = self.tiles_of = Tree(entries)

    def serve_swapped(self, first: int, second: int) -> None:
        """Serve the tiles and bundles of a tree in which two entries have changed places."""
        entries = list(self.tree.entries)
        entries[first], entries[second] = entries[second], entries[first]
        self.serve(entries)

    def read(self, address: Tile | Bundle) -> bytes:
        """Return what is served at an address; as much of it as there is."""
        self.asked.append(address.path)
        data = self._bundle(address) if isinstance(address, Bundle) else self._tile(address)
        return self._changes.get(address.path, bytes)(data)

    def _bundle(self, bundle: Bundle) -> bytes:
        start = 256 * bundle.index
        entries = self.bundles_of.entries[start : start + bundle.width]
        return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)

    def _tile(self, tile: Tile) -> bytes:
        span = 256**tile.level
        starts = (span * (256 * tile.index + at) for at in range(tile.width))
        size = len(self.tiles_of.entries)
        return b"".join(self.tiles_of.mth(start, start + span) for start in starts if start + span <= size)

    def answer(self, request: ReadTiles | ReadBundles) -> list[bytes]:
        """Answer a request of `tlog.reader`."""
        return [self.read(address) for address in addresses(request)]

    def respond(self, requests: Iterable[Request]) -> list[Response]:
        """Answer requests of `tlog.fetch`."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Request) -> Response:
        assert (request.method, request.body) == ("GET", None)
        address = parse_path(request.path)
        data = self.read(address)
        assert len(data) <= request.max_size or self._changes
        full = len(self.tree.entries) >> 8 * getattr(address, "level", 0) >= 256 * (address.index + 1)
        gone = full and address.width < 256 and not self.keeps_partials
        return Response(404, {}, b"") if gone else Response(200, {}, data)


def addresses(request: ReadTiles | ReadBundles) -> tuple[Tile, ...] | tuple[Bundle, ...]:
    """Return what a request asks for."""
    return request.tiles if isinstance(request, ReadTiles) else request.bundles


def run(reading: Reading[T], log: LyingLog) -> T:
    """Drive a flow of `tlog.reader` to its result."""
    try:
        request = next(reading)
        while True:
            request = reading.send(log.answer(request))
    except StopIteration as done:
        result: T = done.value
        return result


def run_http(fetching: Fetching[T], respond: Callable[[list[Request]], list[Response]]) -> T:
    """Drive a flow of `tlog.fetch` to its result."""
    try:
        requests = next(fetching)
        while True:
            requests = fetching.send(respond(requests))
    except StopIteration as done:
        result: T = done.value
        return result
