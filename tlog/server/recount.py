"""The second path to the root: from the stored bytes, entry by entry.

It shares nothing with `tlog.edge` and `tlog.tile` but `node_hash`: own framing, own leaf hash, own stack. A bit that
flips on one path, in memory or on disk, gives two roots, and two roots are never signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from tlog.errors import VerificationError
from tlog.merkle import EMPTY_ROOT, node_hash


@dataclass(frozen=True, slots=True)
class Recount:
    """A tree counted entry by entry.

    Attributes:
        size: Number of leaves.
        stack: Height and hash of each complete subtree, largest first.
    """

    size: int
    stack: tuple[tuple[int, bytes], ...]

    def root(self) -> bytes:
        """Return the root hash, 32 bytes."""
        if not self.stack:
            return EMPTY_ROOT
        root = self.stack[-1][1]
        for _, peak in self.stack[-2::-1]:
            root = node_hash(peak, root)
        return root

    def add(self, framed: bytes) -> tuple[Recount, bytes]:
        """Return the tree with the framed entries appended, and the SHA-256 over their leaf hashes.

        Raises:
            VerificationError: The framing is broken.
        """
        stack, size, digest, at = list(self.stack), self.size, sha256(), 0
        while at < len(framed):
            end = at + 2 + (framed[at] << 8) + framed[at + 1] if at + 2 <= len(framed) else len(framed) + 1
            if end > len(framed):
                raise VerificationError("a stored segment ends within an entry")
            height, top = 0, sha256(b"\x00" + framed[at + 2 : end]).digest()
            digest.update(top)
            while stack and stack[-1][0] == height:
                height, top = height + 1, node_hash(stack.pop()[1], top)
            stack.append((height, top))
            size, at = size + 1, end
        return Recount(size, tuple(stack)), digest.digest()
