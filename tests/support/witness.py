"""What clients saw of a log, remembered by somebody who trusts none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.rfc6962 import Tree
from tests.support.static import addresses, content, path
from tests.support.wire import head_of
from tlog.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.static import Address
    from tlog.fetch import Response


class Seen:
    """Every head, acknowledgement and tile that anybody saw.

    Attributes:
        heads: Size → root.
        acknowledged: Index → entry.
        served: Address → bytes of a tile or bundle.
    """

    def __init__(self, vkey: str) -> None:
        """Take the key of the log."""
        self.heads: dict[int, bytes] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.served: dict[Address, bytes] = {}
        self._policy = Policy.of_log(vkey)

    def head(self, note: bytes) -> int:
        """Note a head, and return its size; no two heads have one size."""
        size, root = head_of(note)
        if size not in self.heads:
            checkpoint = self._policy.open_checkpoint(note)
            assert (checkpoint.size, checkpoint.root) == (size, root)
        assert self.heads.setdefault(size, root) == root, f"two heads of size {size}"
        return size

    def acknowledgement(self, index: int, entry: bytes) -> None:
        """Note an acknowledgement; no index is given twice."""
        assert index not in self.acknowledged, f"index {index} was given twice"
        self.acknowledged[index] = entry

    def tiles(self, wanted: Sequence[Address], responses: Sequence[Response]) -> None:
        """Note tiles; none is missing, and none ever changes."""
        for address, response in zip(wanted, responses, strict=True):
            assert response.status == 200, f"{path(address)}: {response.status}"
            assert self.served.setdefault(address, response.body) == response.body, f"{path(address)} changed"

    def check(self, entries: Sequence[bytes]) -> Tree:
        """Check everything that was seen against the entries that the log turned out to hold."""
        tree = Tree(entries)
        for index, entry in self.acknowledged.items():
            assert entries[index] == entry, f"index {index} holds another entry than was acknowledged there"
        for size, root in self.heads.items():
            assert tree.mth(0, size) == root, f"the head of size {size} is of another tree"
        for address, data in self.served.items():
            assert content(tree, address) == data, f"{path(address)} is not what the definition says"
        return tree


__all__ = ["Seen", "addresses"]
