"""Real `tlogd` processes with limits of their own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.server import Server, init_log
from tests.support.serving import limit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.serving import Serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers, and end them after the test."""
    with ExitStack() as stack:

        def start(**limits: float) -> Server:
            data = tmp_path / "log"
            init_log(data)
            limit(data, **limits)
            return stack.enter_context(Server(data))

        yield start
