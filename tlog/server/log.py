"""One open log: adding, reading and proving, each answer verified before it is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tlog.errors import NotFoundError, VerificationError
from tlog.merkle import (
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    subtree_nodes,
    subtree_root,
    verify_consistency,
    verify_inclusion,
)
from tlog.server.errors import DamageError
from tlog.server.sequencer import Placed, Sequencer
from tlog.server.startup import Opened, open_parts
from tlog.server.tree import Tree

if TYPE_CHECKING:
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead

Fatal = Callable[[BaseException], None]
"""Called when a commit failed or its outcome is unknown; a server ends its process here and now."""


class ServedLog:
    """An open log. Owned by the event loop."""

    def __init__(self, sequencer: Sequencer, tree: Tree) -> None:
        """Serve what a sequencer signs and a tree holds."""
        self._sequencer = sequencer
        self._failed = False
        self.closing = False
        self.tree = tree

    @property
    def head(self) -> SignedHead:
        """The served head: the newest signed one, as this log has no policy."""
        return self._sequencer.head

    def check_admission(self) -> None:
        """Refuse early what would be refused anyway; see Sequencer."""
        self._sequencer.check_admission()

    async def add(self, entry: bytes) -> Placed:
        """Append an entry; see Sequencer."""
        return await self._sequencer.add(entry)

    def is_ready(self) -> bool:
        """Return whether the log takes entries and signs them in time. An idle log does."""
        return not (self.closing or self._failed or self._sequencer.is_late())

    async def prove_inclusion(
        self, index: int, size: int, leaf: bytes | None = None, head: SignedHead | None = None
    ) -> tuple[bytes, list[bytes]]:
        """Return the leaf hash of an entry and its inclusion proof in the tree of a size, verified.

        Args:
            index: Index of the entry.
            size: Size of the tree, at most the signed one.
            leaf: The leaf hash that must be proven; None takes the one in the tree.
            head: The signed head that must confirm it; None takes the served one.

        Raises:
            NotFoundError: The index is not below the size, or the size is not signed yet.
            DamageError: What is stored does not lead to the signed root.
        """
        head = head or self.head
        if not index < size <= head.size:
            raise NotFoundError(f"no signed tree of size {size} with an entry {index}")
        nodes = [(0, index), *inclusion_nodes(index, size)]
        stored, *hashes = await self.tree.hashes(nodes)
        proof = inclusion_proof(index, size, hashes)
        root = await self._root(size, head)
        try:
            verify_inclusion(leaf if leaf is not None else stored, index, size, proof, root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        return stored, proof

    async def prove_consistency(self, old_size: int, new_size: int, head: SignedHead | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes, verified up to a signed head, by default the served one.

        Raises:
            NotFoundError: Not 0 ≤ old ≤ new ≤ the signed size.
            DamageError: What is stored does not lead to the signed root.
        """
        head = head or self.head
        if not 0 <= old_size <= new_size <= head.size:
            raise NotFoundError(f"no signed trees of sizes {old_size} and {new_size}, in this order")
        proof = consistency_proof(old_size, new_size, await self.tree.hashes(consistency_nodes(old_size, new_size)))
        if old_size > 0:
            old_root, new_root = await self._root(old_size, head), await self._root(new_size, head)
            try:
                verify_consistency(old_size, new_size, proof, old_root, new_root)
            except VerificationError as error:
                raise DamageError(str(error)) from error
        return proof

    async def read_entry(self, index: int) -> tuple[bytes, bytes, list[bytes], SignedHead]:
        """Return an entry, its leaf hash, its inclusion proof to the served head, and that head; verified together.

        Raises:
            NotFoundError: The served tree has no such entry.
            DamageError: What is stored does not lead to the signed root.
        """
        head = self.head
        entry = await self.tree.entry(index)
        leaf, proof = await self.prove_inclusion(index, head.size, leaf_hash(entry), head)
        return entry, leaf, proof, head

    async def _root(self, size: int, head: SignedHead) -> bytes:
        """Return the root at a size, proven to be a prefix of the signed tree."""
        if size == head.size:
            return head.root
        root = subtree_root(0, size, await self.tree.hashes(subtree_nodes(0, size)))
        hashes = await self.tree.hashes(consistency_nodes(size, head.size))
        try:
            verify_consistency(size, head.size, consistency_proof(size, head.size, hashes), root, head.root)
        except VerificationError as error:
            raise DamageError(str(error)) from error
        return root

    def fail(self) -> None:
        """Be not ready from now on."""
        self._failed = True


def wall_clock_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_log(
    config: Config, on_fatal: Fatal, clock_ms: Callable[[], int] = wall_clock_ms
) -> AsyncIterator[ServedLog]:
    """Open a log, run it, and close it when every admitted entry is signed.

    Args:
        config: Its configuration.
        on_fatal: Called at once when a commit fails.
        clock_ms: The wall clock, milliseconds since 1970.

    Raises:
        StartRefusedError: The state on disk does not fit together.
    """
    async with open_parts(config) as parts:
        sequencer = Sequencer(parts.writer, parts.commit, parts.overlay, parts.head, clock_ms)
        served = ServedLog(sequencer, Tree(parts.overlay, parts.reader, parts.tiles))
        tasks = _start(parts, sequencer, served, on_fatal)
        try:
            yield served
        finally:
            served.closing = True
            sequencer.close()
            await asyncio.wait(tasks[:1])
            tasks[1].cancel()
            await asyncio.wait(tasks)


def _start(parts: Opened, sequencer: Sequencer, served: ServedLog, on_fatal: Fatal) -> list[asyncio.Task[None]]:
    """Start the sequencer and the follower; whatever ends one of them ends the log."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            served.fail()
            sequencer.close()
            on_fatal(error)  # a server ends here: an unknown outcome is not answered
            sequencer.abandon()

    tasks = [
        asyncio.create_task(sequencer.run(), name="sequencer"),
        asyncio.create_task(parts.follower.run(sequencer.advanced), name="follower"),
    ]
    for task in tasks:
        task.add_done_callback(ended)
    return tasks
