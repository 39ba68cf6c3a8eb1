"""Commits that are wrong, each in its own way: whoever checks a log must find them."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.support.checker import REFUSALS
from tlog.edge import Growth, extend
from tlog.server import commit as module
from tlog.server.commit import Commit, Committed
from tlog.server.metrics import Steps
from tlog.server.storage import Segment
from tlog.tile import format_bundle

if TYPE_CHECKING:
    from collections.abc import Sequence


class SwapsFirst(Commit):
    """Signs before the entries are durable."""

    def run(self, entries: Sequence[bytes], leaf_hashes: Sequence[bytes], time_ms: int, keys: bytes = b"") -> Committed:
        growth = extend(self._edge, leaf_hashes)
        head = self._signed(growth.new, module._consistency(growth))
        self._checkpoints.swap(self._head, head)
        digest = sha256(b"".join(leaf_hashes)).digest()
        framed, root = format_bundle(entries), growth.new.root()
        self._storage.append(Segment(growth.old.size, len(entries), framed, root, digest, time_ms, keys).sealed())
        self._head, self._edge = head, growth.new
        return Committed(head, growth, Steps(0, 0, 0, 0), time_ms)


class TriesAgain(Commit):
    """Goes on after an error."""

    def run(self, entries: Sequence[bytes], leaf_hashes: Sequence[bytes], time_ms: int, keys: bytes = b"") -> Committed:
        try:
            return super().run(entries, leaf_hashes, time_ms, keys)
        except REFUSALS:
            self._broken = False
            return super().run(entries, leaf_hashes, time_ms, keys)


class Hurries(Commit):
    """Answers whatever became of the swap."""

    def _sign(self, growth: Growth, keys: bytes | None, started: float) -> Committed:
        try:
            return super()._sign(growth, keys, started)
        except sqlite3.Error:
            head = self._signed(growth.new, module._consistency(growth))
            return Committed(head, growth, Steps(0, 0, 0, 0), 0)
