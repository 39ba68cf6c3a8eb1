"""`tlog get`."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import click

from tlog_client.option import online_options, output_options
from tlog_client.report import show_json

if TYPE_CHECKING:
    from tlog_client.option import Options, Output


@click.command(short_help="Print one entry.")
@click.argument("index", type=click.IntRange(0, (1 << 63) - 2))
@output_options("Write the entry to a file.")
@online_options
def get(options: Options, index: int, output: Output | None) -> None:
    """Print the entry at INDEX, verified, byte for byte.

    \b
    Examples:
      tlog get 42
      tlog get 42 -o entry.json
    """  # noqa: D301  # \b is click's
    from tlog_client.log import Log

    with Log(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log:
        fetched = log.get(index)
    if output:
        output.write(fetched.entry)
    if options.as_json:
        shown = {} if output else {"entry": b64encode(fetched.entry).decode()}
        size = fetched.checkpoint.size
        show_json({"index": index, "leaf_hash": fetched.leaf_hash.hex(), "size": size, **shown})
    elif not output:
        click.echo(fetched.entry, nl=False)
