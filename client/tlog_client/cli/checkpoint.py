"""`tlog checkpoint`."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import click

from tlog_client.option import online_options, output_options
from tlog_client.report import show_json, show_notice

if TYPE_CHECKING:
    from tlog.checkpoint import Checkpoint
    from tlog_client.option import Options, Output


@click.command(short_help="Print the newest head, or follow the heads.")
@click.option("--follow", "follows", is_flag=True, help="Print each larger head as it is signed, one a line.")
@output_options("Write the signed checkpoint, for tlog consistency.")
@online_options
def checkpoint(options: Options, output: Output | None, *, follows: bool) -> None:
    """Print the newest head that the log serves: origin, size and root; verified against the last one that was trusted.

    With --follow, print size and root of each head until Ctrl-C; each is consistent with the one before. It goes on
    when the log comes back after an outage.

    Without witnesses nothing signed carries a time, so how fresh a head is cannot be checked. `tlog monitor --max-idle`
    says when a log has not grown for long.

    \b
    Examples:
      tlog checkpoint
      tlog checkpoint -o today.checkpoint
      tlog checkpoint --follow --json
    """  # noqa: D301  # \b is click's
    if follows and output:
        raise click.UsageError("-o takes one head, and --follow prints many")
    if follows:
        _follow(options)
        return
    from tlog_client.flow import Flows
    from tlog_client.run import SyncRunner

    flows = Flows(options.policy, options.state_dir)
    with SyncRunner(options.url, token=options.token) as runner:
        signed = runner.run(flows.signed_checkpoint())
        runner.run(flows.close())
    if output:
        output.write(signed.note)
    if options.as_json:
        _show_line(signed.head, as_json=True)
    elif not output:
        click.echo(signed.head.format(), nl=False)


def _follow(options: Options) -> None:
    import asyncio
    from contextlib import aclosing

    from tlog_client.log import AsyncLog
    from tlog_client.stop import stoppable

    async def run() -> None:
        async with (
            AsyncLog(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log,
            aclosing(log.follow(notice=show_notice)) as heads,
        ):
            async for head in heads:
                _show_line(head, as_json=options.as_json)

    asyncio.run(stoppable(run()))


def _show_line(head: Checkpoint, *, as_json: bool) -> None:
    root = b64encode(head.root).decode()
    if as_json:
        show_json({"origin": head.origin, "size": head.size, "root": root, "freshness": "not checkable"})
    else:
        click.echo(f"{head.size} {root}")
