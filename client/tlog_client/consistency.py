"""Whether one signed head grew out of another, through the log's tiles or by a proof in a file.

The file is what `GET /v1/proofs/consistency/{from}/{to}` answers, a JSON object: "from" and "to" are sizes, "proof" is
an array of hashes in base64.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING

from tlog.errors import CouldNotCheckError, ForkError, FormatError, VerificationError
from tlog.fetch import fetch_checkpoint
from tlog.merkle import verify_consistency
from tlog.reader import read_consistency_proof
from tlog.strict import parse_hash
from tlog_client.trust import Trust, check_growth, read_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlog.fetch import Fetching
    from tlog_client.state import Signed

MAX_PROOF_FILE_SIZE = 1 << 14
"""Largest proof file that is read, in bytes: 126 hashes need half of it."""


def parse_consistency(data: bytes) -> tuple[int, int, list[bytes]]:
    """Parse a proof file: the two sizes, and the hashes between them.

    Raises:
        FormatError: Another form.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("not a consistency proof: no JSON") from error
    match value:
        case {"from": int(old), "to": int(new), "proof": list(proof)} if not isinstance(old or new, bool):
            hashes = [parse_hash(item.encode()) for item in proof if isinstance(item, str)]
            if len(hashes) == len(proof):
                return old, new, hashes
    raise FormatError('not a consistency proof: a JSON object with "from", "to" and "proof"')


def format_consistency(old: int, new: int, proof: Sequence[bytes]) -> bytes:
    """Write a proof file."""
    value = {"from": old, "to": new, "proof": [b64encode(item).decode() for item in proof]}
    return json.dumps(value).encode() + b"\n"


def verify_pair(old: Signed, new: Signed, proof: tuple[int, int, Sequence[bytes]] | None) -> None:
    """Check two heads offline by a proof; heads of one size, and the empty tree, need none.

    Raises:
        ForkError: They are of one size, with different roots.
        VerificationError: The proof does not hold, or is one between other sizes: of the heads it says nothing.
    """
    sizes = (old.head.size, new.head.size)
    if sizes[0] == sizes[1] and old.head.root != new.head.root:
        raise ForkError(f"{new.head.origin} signed two trees of size {sizes[0]}", first=old.note, second=new.note)
    start, end, hashes = proof or (*sizes, ())
    if (start, end) != sizes:
        raise VerificationError(f"the proof is one from size {start} to {end}, not from {sizes[0]} to {sizes[1]}")
    verify_consistency(start, end, hashes, old.head.root, new.head.root)


def check_pair(trust: Trust, old: Signed, new: Signed) -> Fetching[list[bytes]]:
    """Check two heads through what the log serves, and return the consistency proof between them.

    First through the tiles that lead to the larger head. Where the log does not serve those, its newest head decides:
    both must be in its tree, and one that is not is the other side of a fork.

    Raises:
        ForkError: A fork is proven, of the two or of one of them and the newest head.
        FormatError: A tile or the checkpoint breaks its form.
        VerificationError: The tiles lead to none of these heads.
        CouldNotCheckError: A tile is missing.
    """
    try:
        yield from check_growth(old, new, trust.cache)
        return (yield from read_log(read_consistency_proof(new.head, old.head.size, trust.cache)))
    except ForkError:
        raise
    except (VerificationError, CouldNotCheckError) as error:
        newest = trust.open((yield from fetch_checkpoint()))
        if newest.head.size < new.head.size or newest.head == new.head:
            raise
        for head in (new, old):
            yield from check_growth(head, newest, trust.cache)
        raise CouldNotCheckError(f"both heads are in the log's newest tree, but there is no proof: {error}") from error
