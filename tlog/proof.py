"""Proofs that travel with an entry and verify offline: .tlog-proof files (c2sp.org/tlog-proof).

c2sp.org/tlog-proof@v1LF
extra <base64>LF                optional; authenticated by nothing
index <decimal>LF
<hash, base64>LF                the inclusion proof, the leaf's sibling first
LF
<signed checkpoint, verbatim>
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlog.errors import FormatError
from tlog.merkle import leaf_hash, verify_inclusion
from tlog.note import MAX_NOTE_SIZE
from tlog.strict import parse_base64, parse_decimal, parse_hash

if TYPE_CHECKING:
    from tlog.policy import Policy

MAX_PROOF_HASHES = 63
"""Most hashes in an inclusion proof: the height of the largest tree."""

MAX_EXTRA_SIZE = 1 << 16
"""Largest extra data that is read, in bytes."""

MAX_PROOF_SIZE = MAX_NOTE_SIZE + 2 * MAX_EXTRA_SIZE
"""Largest proof that is read, in bytes."""

_HEADER = b"c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class TlogProof:
    """Where an entry is in a log, and the proof of it (c2sp.org/tlog-proof).

    Attributes:
        index: Zero-based index of the entry.
        hashes: The inclusion proof, 32 bytes each, the leaf's sibling first.
        checkpoint: The signed note of the head that the proof leads to, as received.
        extra: Data of an application, authenticated by nothing; None where the line is absent.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def format(self) -> bytes:
        """Write the file."""
        extra = [] if self.extra is None else [b"extra " + b64encode(self.extra)]
        lines = [_HEADER, *extra, b"index %d" % self.index, *map(b64encode, self.hashes), b""]
        return b"".join(line + b"\n" for line in lines) + self.checkpoint


def parse_proof(data: bytes) -> TlogProof:
    """Parse a .tlog-proof file; the checkpoint in it is not parsed, and nothing is verified.

    Raises:
        FormatError: Broken form, or beyond one of the limits above.
    """
    if len(data) > MAX_PROOF_SIZE:
        raise FormatError(f"a proof of more than {MAX_PROOF_SIZE} bytes")
    head, blank, checkpoint = data.partition(b"\n\n")
    lines = head.split(b"\n")
    if lines[0] != _HEADER or not blank or not checkpoint:
        raise FormatError("not a tlog-proof: first line, empty line or checkpoint is missing")
    rest = lines[1:]
    extra = _take(rest, b"extra ")
    index = _take(rest, b"index ")
    if index is None or len(rest) > MAX_PROOF_HASHES:
        raise FormatError(f"a proof has an index and at most {MAX_PROOF_HASHES} hashes")
    return TlogProof(
        parse_decimal(index), tuple(map(parse_hash, rest)), checkpoint, None if extra is None else _parse_extra(extra)
    )


def _take(lines: list[bytes], keyword: bytes) -> bytes | None:
    """Remove the first line if it begins with the keyword, and return what follows."""
    return lines.pop(0).removeprefix(keyword) if lines and lines[0].startswith(keyword) else None


def _parse_extra(text: bytes) -> bytes:
    extra = parse_base64(text)
    if len(extra) > MAX_EXTRA_SIZE:
        raise FormatError(f"extra data of more than {MAX_EXTRA_SIZE} bytes")
    return extra


def verify_proof(proof: TlogProof, entry: bytes, policy: Policy) -> None:
    """Check that the entry is in a log that the policy trusts, where the proof says (tlog-proof, "Verifying").

    Raises:
        FormatError: The checkpoint breaks its form.
        VerificationError: A signature or the inclusion proof does not hold.
    """
    checkpoint = policy.open_checkpoint(proof.checkpoint)
    verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
