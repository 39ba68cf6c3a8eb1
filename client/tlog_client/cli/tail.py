"""`tlog tail`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tlog_client.option import online_options
from tlog_client.report import show_notice, show_published

if TYPE_CHECKING:
    from tlog_client.option import Options


@click.command(short_help="Print entries as they are published.")
@click.option("--from", "start", type=click.IntRange(0), metavar="INDEX", help="Begin here.  [default: at the end]")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N entries.")
@online_options
def tail(options: Options, start: int | None, count: int | None) -> None:
    """Print entries as they are published, each with a line feed after it; verified.

    Goes on when the log comes back after an outage, and says on stderr when one begins. Ctrl-C ends it, with 0.

    \b
    Examples:
      tlog tail
      tlog tail --from 0 --json
      tlog tail --count 1
    """  # noqa: D301  # \b is click's
    import asyncio
    from contextlib import aclosing

    from tlog_client.log import AsyncLog
    from tlog_client.stop import stoppable

    async def run() -> None:
        left = count
        async with (
            AsyncLog(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log,
            aclosing(log.tail(start, notice=show_notice)) as entries,
        ):
            async for published in entries:
                show_published(published, as_json=options.as_json)
                left = None if left is None else left - 1
                if left == 0:
                    return

    asyncio.run(stoppable(run()))
