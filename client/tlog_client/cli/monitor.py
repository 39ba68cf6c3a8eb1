"""`tlog monitor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tlog_client.option import DURATION, online_options
from tlog_client.report import News, progress

if TYPE_CHECKING:
    from tlog_client.option import Options


@click.command(short_help="Follow the log, and raise an alarm when it lies.")
@click.option("--once", is_flag=True, help="Do one round, for cron.")
@click.option("--interval", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds between rounds.")
@click.option("--max-idle", type=DURATION, metavar="DURATION", help="Stale after so long without a larger head: 36h.")
@online_options
def monitor(options: Options, interval: float, max_idle: float | None, *, once: bool) -> None:
    """Follow the log: verify that it only grows, and re-hash every entry up to each signed root.

    Alarms are a fork, with both notes saved as evidence, and an entry that is not the one in the signed tree. An older
    head, a missing answer or a busy log is none. The first run reads the whole log.

    Nothing that is signed carries a time. --max-idle says, by this machine's clock, that no larger head was found for
    so long: exit code 6. A log that withholds its newest heads looks so, and one to which nobody submits does, too.

    \b
    Examples:
      tlog monitor --once; test $? -ne 4 || mail -s "the log is forked" you@example.org
      tlog monitor --interval 60 --max-idle 36h --json
    """  # noqa: D301  # \b is click's
    import asyncio
    from math import isfinite

    from tlog_client.monitor import Monitor, watch
    from tlog_client.run import AsyncRunner
    from tlog_client.stop import stoppable

    if not isfinite(interval):
        raise click.UsageError("--interval is a number of seconds")
    with progress("checking", as_json=options.as_json) as advance:
        watching = Monitor(options.policy, options.state_dir, advance)
        news = News(as_json=options.as_json, max_idle=max_idle)

        async def run() -> None:
            async with AsyncRunner(options.url, token=options.token) as runner:
                await watch(runner, watching, None if once else interval, news.show)

        with watching.alone():
            watching.load()
            is_done = asyncio.run(stoppable(run()))
    if once and not is_done:
        raise click.Abort
    if once or news.is_alarm:
        click.get_current_context().exit(news.code)
