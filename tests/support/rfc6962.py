"""The Merkle tree as the RFCs write it, recursion by recursion: the oracle of every test about trees.

MTH, PATH and PROOF are of RFC 6962 §2.1, SUBTREE_PROOF of draft-ietf-plants-merkle-tree-certs §4. D[low:high] is the
pair of its bounds. Only tree hashes are remembered; every proof is made anew.
"""

from collections.abc import Sequence
from hashlib import sha256


def split(n: int) -> int:
    """Return k, the largest power of two smaller than n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


class Tree:
    """The tree of a list of entries.

    Attributes:
        entries: The list D.
        uniform: Whether every entry is equal to the first. Then a hash depends on its width alone, so the tree may have
            2^63 - 1 leaves.
    """

    def __init__(self, entries: Sequence[bytes], *, uniform: bool = False) -> None:
        self.entries = entries
        self.uniform = uniform
        self._hashes: dict[tuple[int, int], bytes] = {}

    def mth(self, low: int, high: int) -> bytes:
        """Return MTH(D[low:high])."""
        if self.uniform:
            low, high = 0, high - low
        if (low, high) not in self._hashes:
            self._hashes[low, high] = self._mth(low, high)
        return self._hashes[low, high]

    def _mth(self, low: int, high: int) -> bytes:
        n = high - low
        if n == 0:
            return sha256().digest()
        if n == 1:
            return sha256(b"\x00" + self.entries[low]).digest()
        k = split(n)
        return sha256(b"\x01" + self.mth(low, low + k) + self.mth(low + k, high)).digest()

    def path(self, m: int, low: int, high: int) -> list[bytes]:
        """Return PATH(m, D[low:high]); m counts from low."""
        n = high - low
        if n == 1:
            return []
        k = split(n)
        if m < k:
            return [*self.path(m, low, low + k), self.mth(low + k, high)]
        return [*self.path(m - k, low + k, high), self.mth(low, low + k)]

    def proof(self, m: int, n: int) -> list[bytes]:
        """Return PROOF(m, D[n]), with the empty proof from 0."""
        return self._subproof(m, 0, n, whole=True) if m else []

    def _subproof(self, m: int, low: int, high: int, *, whole: bool) -> list[bytes]:
        n = high - low
        if m == n:
            return [] if whole else [self.mth(low, high)]
        k = split(n)
        if m <= k:
            return [*self._subproof(m, low, low + k, whole=whole), self.mth(low + k, high)]
        return [*self._subproof(m - k, low + k, high, whole=False), self.mth(low, low + k)]

    def subtree_proof(self, start: int, end: int, n: int) -> list[bytes]:
        """Return SUBTREE_PROOF(start, end, D[n])."""
        return self._subtree_subproof(start, end, 0, n, whole=True)

    def _subtree_subproof(self, start: int, end: int, low: int, high: int, *, whole: bool) -> list[bytes]:
        n = high - low
        if (start, end) == (0, n):
            return [] if whole else [self.mth(low, high)]
        k = split(n)
        if end <= k:
            return [*self._subtree_subproof(start, end, low, low + k, whole=whole), self.mth(low + k, high)]
        if k <= start:
            inner = self._subtree_subproof(start - k, end - k, low + k, high, whole=whole)
        else:
            inner = self._subtree_subproof(0, end - k, low + k, high, whole=False)
        return [*inner, self.mth(low, low + k)]


def is_valid_subtree(start: int, end: int) -> bool:
    """Return whether start is a multiple of the smallest power of two that is at least end - start."""
    power = 1
    while power < end - start:
        power *= 2
    return 0 <= start < end and start % power == 0
