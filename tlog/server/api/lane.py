"""The hot lane: the requests that come most often, answered without a task, a router or an object for each header.

    POST  /add  /v1/entries  /v1/proofs
    GET   /checkpoint  /tile/…  /v1/proofs/inclusion/…  /v1/proofs/consistency/…

It answers what memory can answer at once, and what goes well. Whatever it does not take, or would have to refuse, goes
to the operations of `tlog.server.api` as if there were no hot lane: they decide anew, from the same bytes, so no
refusal is worded twice. Behind both are the same functions of `ServedLog`, the same forms of answers, and the same
counts. What was admitted is the lane's to answer, in the end with a problem document, too (`tlog.server.api.adding`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError
from tlog.server.api.adding import Adding
from tlog.server.api.answer import ConsistencyProof, InclusionProof, LeafHash, encode
from tlog.server.api.entries import post_add, post_entry
from tlog.server.api.form import Stamp, form
from tlog.server.api.head import MAX_HEAD, parse_fields
from tlog.server.api.media import OCTETS, TEXT, negotiate
from tlog.server.api.proofs import PARSERS, get_consistency, get_inclusion, post_proofs, proofs_answer
from tlog.server.api.static import get_bundle, get_checkpoint, get_tile
from tlog.server.limit import MAX_PROOFS_BYTES
from tlog.strict import parse_decimal
from tlog.tile import Bundle, parse_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tlog.server.api.adding import Link
    from tlog.server.api.bodies import Bodies
    from tlog.server.api.head import Fields
    from tlog.server.api.operation import Operation
    from tlog.server.api.rate import Rates
    from tlog.server.api.traffic import Traffic
    from tlog.server.log import ServedLog
    from tlog.server.storage import SignedHead

OTHER = 0
"""What `Lane.take` returns for a request that the other lane answers."""

KEPT_BYTES = 32 << 20
"""Bytes of tiles and bundles that are kept as they are sent: the 4,000 that are read most."""

_END = b"\r\n\r\n"
_VERSION = b" HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that never changes.

    Attributes:
        operation: Whose it is.
        head: Up to the length and with it.
        body: The body.
    """

    operation: Operation
    head: bytes
    body: bytes


class Lane:
    """The hot lane of all logs of a server. Owned by the event loop."""

    def __init__(self, logs: Mapping[str, ServedLog], traffic: Traffic, rates: Rates, bodies: Bodies) -> None:
        """Answer for logs, by the prefix of their routes."""
        self._stamp = Stamp()
        self._readers = [
            (f"GET {prefix}/".encode(), Reader(prefix, log, traffic, self._stamp)) for prefix, log in logs.items()
        ]
        self._posts: dict[bytes, Adding | Proving] = {
            f"POST {prefix}{post_proofs.path}".encode() + _VERSION: Proving(prefix, log, traffic, self._stamp)
            for prefix, log in logs.items()
        }
        if rates.policy is None:  # else each answer says what the address has left, which is the other lane's work
            for operation in (post_add, post_entry):
                for prefix, log in logs.items():
                    line = f"POST {prefix}{operation.path}".encode() + _VERSION
                    self._posts[line] = Adding(operation, prefix, log, traffic, bodies, self._stamp)

    def take(self, link: Link, data: bytes) -> int:
        """Answer the request that some bytes begin with, now or later.

        Returns:
            Its bytes where it is answered, or will be; OTHER where it is not; where it is not all there, its bytes
            negated, and nothing was done.
        """
        end = data.find(_END, 0, MAX_HEAD)
        if end < 0:
            return OTHER
        start = data.index(b"\r\n")
        fields = parse_fields(data[start:end])
        if fields is None:
            return OTHER
        line, end = data[:start], end + len(_END)
        if fields.length is None:
            return end if self._read(link, line, fields) else OTHER
        post = self._posts.get(line)
        if post is None or fields.length > post.limit:
            return OTHER
        whole = end + fields.length
        if whole > len(data):
            return -whole
        return whole if post.take(link, fields, data[end:whole]) else OTHER

    def _read(self, link: Link, line: bytes, fields: Fields) -> bool:
        if line.endswith(_VERSION):
            for start, reader in self._readers:
                if line.startswith(start):
                    return reader.read(link, line, line[len(start) : -len(_VERSION)], fields)
        return False


class Proving:
    """Proofs of many entries of one log."""

    limit = MAX_PROOFS_BYTES

    def __init__(self, prefix: str, log: ServedLog, traffic: Traffic, stamp: Stamp) -> None:
        """Prove what a log holds, whose routes begin with a prefix."""
        self._route = prefix + post_proofs.path
        self._log = log
        self._traffic = traffic
        self._stamp = stamp
        self._forms = {media_type: form(post_proofs, media_type) for media_type in post_proofs.offers}

    def take(self, link: Link, fields: Fields, data: bytes) -> bool:
        """Answer where that takes no waiting, and return whether it did."""
        began = perf_counter()
        head = self._log.head
        try:
            media_type = negotiate(fields.accept, post_proofs.offers)
            parse = PARSERS.get(fields.media_type)
            wanted = parse(data).indexes if parse is not None and not fields.have else None
            found = self._log.prove_many_now(wanted, head) if wanted is not None else None
        except TreeheadError:
            return False  # the other lane says what is wrong
        if wanted is None or found is None:
            return False
        body = encode(proofs_answer(wanted, found, head), media_type)
        link.reply(b"%b%d%b%b" % (self._forms[media_type], len(body), self._stamp(), body))
        self._traffic.add(self._route, "POST", 200, perf_counter() - began)
        return True


class Reader:
    """What is read of one log."""

    def __init__(self, prefix: str, log: ServedLog, traffic: Traffic, stamp: Stamp) -> None:
        """Read from a log, whose routes begin with a prefix."""
        self._prefix = prefix
        self._log = log
        self._traffic = traffic
        self._stamp = stamp
        self._forms: dict[tuple[str, str], bytes] = {}
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._kept_bytes = 0
        self._head: SignedHead | None = None
        self._checkpoint = b""

    def read(self, link: Link, line: bytes, path: bytes, fields: Fields) -> bool:
        """Answer a GET where that takes no waiting, and return whether it did."""
        began = perf_counter()
        kept = self._kept.get(line)
        if kept is not None:
            self._kept.move_to_end(line)
            link.reply(b"%b%b%b" % (kept.head, self._stamp(), kept.body))
            operation = kept.operation
        elif path == b"checkpoint":
            link.reply(self._newest())
            operation = get_checkpoint
        else:
            found = self._find(line, path, fields)
            if found is None:
                return False
            link.reply(b"%b%b%b" % (found.head, self._stamp(), found.body))
            operation = found.operation
        self._traffic.add(self._prefix + operation.path, "GET", 200, perf_counter() - began)
        return True

    def _newest(self) -> bytes:
        """Return the answer with the newest checkpoint."""
        head = self._log.head
        if head is not self._head:
            self._head = head
            self._checkpoint = b"%b%d" % (form(get_checkpoint, TEXT), len(head.note))
        return b"%b%b%b" % (self._checkpoint, self._stamp(), head.note)

    def _find(self, line: bytes, path: bytes, fields: Fields) -> Kept | None:
        """Return the answer to any other request; None where that takes waiting, or is no answer of this lane's."""
        try:
            match path.split(b"/"):
                case [b"tile", *_]:
                    return self._tile(line, path)
                case [b"v1", b"proofs", b"inclusion", index, size]:
                    return self._inclusion(parse_decimal(index), parse_decimal(size), fields.accept)
                case [b"v1", b"proofs", b"consistency", old, new]:
                    return self._consistency(parse_decimal(old), parse_decimal(new), fields.accept)
                case _:
                    return None
        except (TreeheadError, UnicodeDecodeError):
            return None  # the other lane says what is wrong

    def _tile(self, line: bytes, path: bytes) -> Kept | None:
        address = parse_path(path.decode("ascii"))
        if isinstance(address, Bundle):
            operation, body = get_bundle, self._log.tree.bundle_now(address)
        else:
            operation, body = get_tile, self._log.tree.tile_now(address)
        if body is None:
            return None
        found = self._form(operation, OCTETS, body)
        self._keep(line, found)
        return found

    def _inclusion(self, index: int, size: int, accept: str) -> Kept | None:
        media_type = negotiate(accept, get_inclusion.offers)
        found = self._log.prove_inclusion_now(index, size)
        if found is None:
            return None
        leaf, proof = found
        answer = InclusionProof(index=index, size=size, leaf_hash=LeafHash(leaf), proof=proof)
        return self._form(get_inclusion, media_type, encode(answer, media_type))

    def _consistency(self, old: int, new: int, accept: str) -> Kept | None:
        media_type = negotiate(accept, get_consistency.offers)
        proof = self._log.prove_consistency_now(old, new)
        if proof is None:
            return None
        answer = ConsistencyProof(old_size=old, new_size=new, proof=proof)
        return self._form(get_consistency, media_type, encode(answer, media_type))

    def _form(self, operation: Operation, media_type: str, body: bytes) -> Kept:
        key = (operation.path, media_type)
        start = self._forms.get(key)
        if start is None:
            start = self._forms[key] = form(operation, media_type)
        return Kept(operation, b"%b%d" % (start, len(body)), body)

    def _keep(self, line: bytes, found: Kept) -> None:
        """Keep an answer, and drop the ones that were not asked for for longest."""
        self._kept[line] = found
        self._kept_bytes += len(found.body)
        while self._kept_bytes > KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped.body)
