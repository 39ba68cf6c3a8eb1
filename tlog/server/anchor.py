"""Anchors: copies of the newest head that are kept outside, and show whether a log was taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlog.server.config import Config
    from tlog.server.storage import SignedHead
    from tlog.server.tree import Tree


async def check_anchors(config: Config, head: SignedHead, tree: Tree) -> None:
    """Compare the signed head with each anchor of the configuration.

    Raises:
        StartRefusedError: An anchor cannot be read, is of another log, or has seen a head that is not in the tree.
    """
