"""Whether anything has seen more of a log than its signed head, before what may be a newer one is given up.

Data and checkpoint store alone cannot tell that they are old. Who may know better: the anchors, the signer process, and
tiles.db, which is made of what was signed. Nobody there proves nothing: people may have seen more.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tlog.checkpoint import Checkpoint
from tlog.errors import TreeheadError
from tlog.server.anchor import read_anchors
from tlog.server.errors import StartRefusedError
from tlog.server.signer import open_signer
from tlog.server.storage.reading import open_reading
from tlog.server.storage.tiles import SCHEMA, TileStore
from tlog.server.verify.finding import TILES

if TYPE_CHECKING:
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead


def check_unseen(config: Config, head: SignedHead) -> None:
    """Check that nobody outside has seen more than a signed head, or something else, and tiles.db neither.

    Raises:
        StartRefusedError: An anchor, the signer process or tiles.db has, or one of the first two cannot be read.
        SigningError: The signer process does not say.
    """
    check_derived(config, head.size)
    seen = [(f"the anchor {name}", checkpoint) for name, checkpoint in read_anchors(config)]
    if config.signer:
        with closing(open_signer(config, Checkpoint(head.origin, head.size, head.root))) as signer:
            seen.append(("the signer process", signer.newest()))
    for who, checkpoint in seen:
        if checkpoint.size > head.size or (checkpoint.size == head.size and checkpoint.root != head.root):
            raise StartRefusedError(
                f"{who} has seen a head of size {checkpoint.size}, and the checkpoint store holds that of "
                f"{head.size}: its signature may be out, so nothing behind {head.size} may be discarded. Nothing was "
                "changed. Bring back the entries from a backup or a copy of the disk"
            )


def check_derived(config: Config, size: int) -> None:
    """Check that no more was derived than a size: tiles are made of what is signed and shown.

    Raises:
        StartRefusedError: There was.
    """
    path = config.path(TILES)
    try:
        with closing(open_reading(path, SCHEMA, alone=True)) as connection:
            derived = TileStore(connection).position()
    except (TreeheadError, sqlite3.Error):  # it is lost or damaged, and says nothing
        return
    if derived > size:
        raise StartRefusedError(
            f"{path} was derived from a signed head of at least {derived} entries, and here the log ends at {size}: "
            "it was taken back, and would fork. Nothing was changed. Bring the newest log.db and checkpoints.db; only "
            f"where {path.name} is not of this log, move that away"
        )
