"""Both storage protocols in memory: small enough to be read in full, and easy to make lie."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.static import unframed
from tlog.errors import FormatError
from tlog.server.errors import CommitError, StartRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog.server.storage import Segment, SignedHead


class MemoryStorage:
    """Storage in a list; several of them may share one."""

    def __init__(self, segments: list[Segment] | None = None) -> None:
        self.segments = [] if segments is None else segments

    def append(self, segment: Segment) -> None:
        if segment.first != self.size() or segment.count < 1:
            raise CommitError(f"the stored log does not end at {segment.first}")
        self.segments.append(segment)

    def size(self) -> int:
        return self.segments[-1].end if self.segments else 0

    def segment_at(self, index: int) -> Segment | None:
        return next((segment for segment in self.segments if segment.first <= index < segment.end), None)

    def entries(self, start: int, end: int, max_bytes: int = 1 << 62) -> list[bytes]:  # noqa: ARG002
        if end > self.size():
            raise StartRefusedError(f"no entry {end - 1}")
        return [entry for segment in self.segments for entry in unframed(segment.entries)][start:end]

    def segments_from(self, start: int, end: int, max_count: int, max_bytes: int) -> list[Segment]:
        found = [segment for segment in self.segments if start <= segment.first < end][:max_count]
        while sum(len(segment.entries) for segment in found[:-1]) >= max_bytes:
            found.pop()
        if not found or found[0].first != start:
            raise StartRefusedError(f"no entry {start}")
        return found

    def keys(self, since_ms: int, end: int) -> Iterator[tuple[int, bytes]]:
        for segment in self.segments:
            if segment.keys and segment.time_ms >= since_ms and segment.first < end:
                if not segment.is_whole:
                    raise FormatError(f"the keys of entries {segment.first} to {segment.end - 1} were changed")
                yield segment.time_ms, segment.keys


class MemoryCheckpointStore:
    """CheckpointStore in a dictionary; several of them may share one."""

    def __init__(self, heads: dict[str, SignedHead] | None = None) -> None:
        self.heads = {} if heads is None else heads

    def create(self, head: SignedHead) -> None:
        if head.origin in self.heads:
            raise CommitError("the origin has a head")
        self.heads[head.origin] = head

    def acquire(self, origin: str) -> SignedHead | None:
        if origin not in self.heads:
            return None
        head = self.heads[origin]
        self.heads[origin] = replace(head, epoch=head.epoch + 1)
        return self.heads[origin]

    def latest(self, origin: str) -> SignedHead | None:
        return self.heads.get(origin)

    def swap(self, old: SignedHead, new: SignedHead) -> None:
        found = self.heads.get(old.origin)
        if found is None or (found.epoch, found.size, found.root) != (old.epoch, old.size, old.root):
            raise CommitError("lost the checkpoint store")
        self.heads[old.origin] = replace(new, origin=old.origin, epoch=old.epoch)
