"""Servers with limits of their own, and bare connections to them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.server import Server


class Serve(Protocol):
    """Starts a server of a fresh log."""

    def __call__(self, **limits: float) -> Server: ...


def limit(data: Path, **limits: float) -> None:
    """Set limits in the configuration of a log; their table is its last."""
    path = data / "treehead.toml"
    usual, _, old = path.read_text().partition("\n[limits]\n")
    kept = [line for line in old.splitlines() if line.partition(" = ")[0] not in limits]
    new = [f"{name} = {value}" for name, value in limits.items()]
    path.write_text("\n".join([usual, "[limits]", *kept, *new, ""]))


@asynccontextmanager
async def dialled(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a bare connection, and close it afterwards."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
