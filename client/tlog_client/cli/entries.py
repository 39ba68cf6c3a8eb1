"""`tlog entries`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlog_client.option import Output, online_options
from tlog_client.report import progress, show_published

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlog_client.flow import Published
    from tlog_client.option import Options


@click.command(short_help="Print a range of entries.")
@click.argument("start", type=click.IntRange(0), metavar="START")
@click.argument("end", type=click.IntRange(0), metavar="[END]", required=False)
@click.option(
    "-o",
    "folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Write each entry to a file in DIR that is named by its index.",
)
@click.option("--force", is_flag=True, help="Replace files in DIR.")
@online_options
def entries(options: Options, start: int, end: int | None, folder: Path | None, *, force: bool) -> None:
    """Print the entries from START up to, and without, END; verified. Without END, up to the newest.

    Each is followed by a line feed, so entries that hold line feeds need --json or -o.

    \b
    Examples:
      tlog entries 0 10
      tlog entries 1000 --json
      mkdir copy && tlog entries 0 -o copy
    """  # noqa: D301  # \b is click's
    from tlog_client.log import Log

    if end is not None and end < start:
        raise click.UsageError(f"START {start} is above END {end}")
    total = None if end is None else end - start
    with (
        progress("reading", as_json=options.as_json or not folder) as advance,
        Log(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log,
    ):
        keep = _keep_in(folder, force=force) if folder else None
        for published in log.entries(start, end):
            if keep:
                keep(published)
                advance(published.index + 1 - start, total)
            if not keep or options.as_json:
                show_published(published, as_json=options.as_json, with_entry=not keep)


def _keep_in(folder: Path, *, force: bool) -> Callable[[Published], None]:
    """Return what writes an entry to a folder."""

    def keep(published: Published) -> None:
        output = Output(folder / str(published.index), force)
        output.check()
        output.write(published.entry)

    return keep
