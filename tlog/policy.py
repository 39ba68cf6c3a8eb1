"""Policies: whose signatures make a checkpoint trusted (c2sp.org/tlog-policy).

    log <vkey> [<url>]      a log; the name of the key is its origin. Several lines may name keys of one origin.
    quorum none             how many witnesses must have cosigned; none, until this reader knows witnesses

Empty lines and lines that begin with "#" are ignored. A policy with `witness` or `group` lines is refused rather than
read in part: a quorum that is not checked must never look as if it were.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tlog.checkpoint import Checkpoint, parse_checkpoint, parse_origin
from tlog.errors import FormatError, VerificationError
from tlog.merkle import EMPTY_ROOT
from tlog.note import Verifier, open_note, parse_vkey, split_note
from tlog.strict import split_lines

MAX_POLICY_SIZE = 1 << 20
"""Largest policy file in bytes: 32 lines of each kind, which must be read, need a hundredth of it."""

_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose signatures make a checkpoint trusted.

    Attributes:
        logs: Keys of logs; a checkpoint must be signed by one whose name is its origin.
    """

    logs: tuple[Verifier, ...]

    @classmethod
    def of_log(cls, vkey: str) -> Policy:
        """Return the policy that trusts one log by its key alone.

        Raises:
            FormatError: Not a vkey.
        """
        return cls((parse_vkey(vkey),))

    def open_checkpoint(self, note: bytes) -> Checkpoint:
        """Return the checkpoint of a signed note, after every check that the policy asks for.

        Raises:
            FormatError: The note or the checkpoint breaks its form.
            VerificationError: The origin is unknown, or a signature is missing or does not hold.
        """
        unverified, _ = split_note(note)  # names the keys to try, and nothing else
        origin = parse_origin(split_lines(unverified)[0])
        keys = [verifier for verifier in self.logs if verifier.name == origin]
        if not keys:
            raise VerificationError(f"no key of a log named {origin!r} is trusted")
        text, _ = open_note(note, keys)
        checkpoint = parse_checkpoint(text)
        if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
            raise VerificationError("a tree of size 0 with the root of another")
        return checkpoint


def parse_policy(data: bytes) -> Policy:
    """Parse a policy file.

    Raises:
        FormatError: Broken form, an unknown or unsupported line, one key twice, or not exactly one quorum line.
    """
    if len(data) > MAX_POLICY_SIZE or not _ALLOWED.fullmatch(data):
        raise FormatError(f"a policy has at most {MAX_POLICY_SIZE} bytes, and no control characters")
    logs: list[Verifier] = []
    quorums = 0
    for line in data.split(b"\n"):
        items = re.findall(rb"[^\t ]+", line)
        match items:
            case []:
                pass
            case [first, *_] if first.startswith(b"#"):
                pass
            case [b"log", vkey] | [b"log", vkey, _]:
                logs.append(parse_vkey(vkey.decode("utf-8", "surrogateescape")))
            case [b"quorum", b"none"]:
                quorums += 1
            case [b"witness" | b"group" | b"quorum", *_]:
                raise FormatError("this version reads no witnesses: only log lines and quorum none")
            case _:
                raise FormatError(f"not a policy line: {line[:60]!r}")
    if quorums != 1:
        raise FormatError("a policy has exactly one quorum line")
    if len({verifier.public_key for verifier in logs}) != len(logs):
        raise FormatError("a policy names each key once")
    return Policy(tuple(logs))
