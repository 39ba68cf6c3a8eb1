"""One whole commit, steps 3 to 7 of the write path, on a disk: data and checkpoint are made durable."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from benchmarks.micro.fixture import entries
from tlog.checkpoint import Checkpoint
from tlog.edge import Edge
from tlog.merkle import EMPTY_ROOT, leaf_hash
from tlog.note import Signer, sign_note
from tlog.server.commit import Commit
from tlog.server.signer import LocalSigner
from tlog.server.storage import SignedHead
from tlog.server.storage.checkpoints import SqliteCheckpointStore, open_checkpoints
from tlog.server.storage.segments import SqliteStorage, open_segments

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.micro.fixture import Benchmark

_ORIGIN = "localhost/micro"
_ROUNDS = 200


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_commit(benchmark: Benchmark, tmp_path: Path, count: int) -> None:
    """Commit a batch; the log grows with each round. `--basetemp` says on which disk."""
    signer, empty = Signer(_ORIGIN, bytes(range(32))), Checkpoint(_ORIGIN, 0, EMPTY_ROOT)
    head = SignedHead(_ORIGIN, 0, 0, EMPTY_ROOT, sign_note(empty.format(), [signer]))
    batch = entries(count)
    leaves = [leaf_hash(entry) for entry in batch]
    with (
        closing(open_segments(tmp_path / "log.db", create=True)) as segments,
        closing(SqliteCheckpointStore(open_checkpoints(tmp_path / "checkpoints.db", create=True))) as store,
    ):
        store.create(head)
        commit = Commit(SqliteStorage(segments), store, LocalSigner(signer, empty), head, Edge(), 0)
        last = benchmark.pedantic(lambda: commit.run(batch, leaves, 1), rounds=_ROUNDS, warmup_rounds=5)
    assert last.head.size == (_ROUNDS + 5) * count
