"""Ending a log for ever: its last entry says so, signed (see `tlog.freeze`), through the write path of every entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tlog.merkle import MAX_SIZE
from tlog.server.errors import CommitError
from tlog.server.log import open_log

if TYPE_CHECKING:
    from tlog.server.config import Config
    from tlog.server.log import Fatal
    from tlog.server.sequencer import Placed


async def freeze_log(config: Config, reason: str, on_fatal: Fatal) -> Placed:
    """Append the entry that ends a log, which nobody serves; from then on it is only read.

    Args:
        config: Its configuration.
        reason: Why, for people: at most 1,000 bytes, one line.
        on_fatal: Called at once when the commit fails.

    Raises:
        StartRefusedError: The log is in use, or its state does not fit together.
        ReadOnlyError: It was ended before.
        FormatError: The reason is too long, or not one line.
        SigningError: The signer does not sign it.
        CommitError: Something else took the last place.
    """
    limits = msgspec.structs.replace(config.limits, tree_size=MAX_SIZE, free_bytes=0)  # a full log can be ended, too
    async with open_log(msgspec.structs.replace(config, limits=limits), on_fatal) as log:
        log.check_admission()
        size = log.head.size
        placed = await log.add(await log.sign_end(reason))
    if (placed.index, placed.is_new) != (size, True):
        raise CommitError(f"the log has more than the {size} entries that its end was signed for; try again")
    return placed
