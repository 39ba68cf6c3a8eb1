"""The right edge of a growing tree: all that is needed to append to it and to know its root.

A tree of `size` leaves is a row of complete subtrees, one for each set bit of the size, largest first. Their hashes are
its *peaks*: a tree of 13 = 0b1101 leaves has the peaks (3,0), (2,2) and (0,12). Folding them from the right gives the
root; merging equal neighbours appends.

`extend` works level by level over a whole batch and keeps every complete node that the batch brings, which is what
tiles, and proofs to the new head, are cut from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.merkle import EMPTY_ROOT, Node, node_hash, subtree_nodes, subtree_root

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Edge:
    """The right edge of a tree.

    Attributes:
        size: Number of leaves, ≥ 0.
        peaks: Hashes of the complete subtrees, 32 bytes each, largest (leftmost) first; one for each set bit of size.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def root(self) -> bytes:
        """Return the root hash of the tree, 32 bytes (RFC 6962 §2.1)."""
        return subtree_root(0, self.size, self.peaks) if self.size else EMPTY_ROOT

    def nodes(self) -> list[Node]:
        """Return the nodes whose hashes are the peaks, in their order."""
        return subtree_nodes(0, self.size) if self.size else []


@dataclass(frozen=True, slots=True)
class Growth:
    """What a batch added to a tree.

    Attributes:
        old: The edge before.
        new: The edge after.
        levels: For each level, from leaves upwards, the hashes of the complete nodes that are new, left to right; the
            first one of a level has the index `old.size >> level`.
    """

    old: Edge
    new: Edge
    levels: list[list[bytes]]

    def hash_of(self, node: Node) -> bytes:
        """Return the hash of a node that is new, or a peak of the old edge.

        Raises:
            KeyError: It is neither.
        """
        level, index = node
        offset = index - (self.old.size >> level)
        if level < len(self.levels) and 0 <= offset < len(self.levels[level]):
            return self.levels[level][offset]
        return dict(zip(self.old.nodes(), self.old.peaks, strict=True))[node]


def extend(edge: Edge, leaf_hashes: Sequence[bytes]) -> Growth:
    """Append leaves, given by their hashes of 32 bytes, level by level for the whole batch."""
    size = edge.size + len(leaf_hashes)
    waiting = list(edge.peaks)  # smallest last, so the peak of the current level is at the end
    peaks: list[bytes] = []  # smallest first
    levels: list[list[bytes]] = []
    fresh = list(leaf_hashes)
    for level in range(size.bit_length()):
        levels.append(fresh)
        row = [waiting.pop(), *fresh] if edge.size >> level & 1 else fresh
        if len(row) & 1:
            peaks.append(row[-1])
        fresh = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
    return Growth(edge, Edge(size, tuple(reversed(peaks))), levels)
