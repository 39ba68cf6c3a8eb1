"""`tlog submit`."""

from __future__ import annotations

import sys
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import click

from tlog.errors import CouldNotCheckError, RefusedError, TreeheadError
from tlog_client.option import online_options, output_options
from tlog_client.report import progress, show_added, show_notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog_client.flow import Added
    from tlog_client.log import AsyncLog
    from tlog_client.option import Options, Output
    from tlog_client.submit import Submission


@click.command(short_help="Append entries, and print their indexes.")
@click.argument("files", nargs=-1, metavar="[FILE|-]...", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--lines", is_flag=True, help="Each line, without its line feed, is an entry.")
@click.option("--skip", type=click.IntRange(0), default=0, metavar="N", help="Leave out the first N entries.")
@output_options("Write the one entry's .tlog-proof.")
@online_options
def submit(options: Options, files: tuple[str, ...], output: Output | None, skip: int, *, lines: bool) -> None:
    """Append each FILE as one entry, stdin without FILE, and print their indexes.

    Entries are sent in batches, one after the other, so the log has their order. When an index is printed, the log has
    proven that the entry is in the tree that it signed. When the log is away or busy, a batch is sent again, and never
    appended twice.

    \b
    Examples:
      tlog submit event.json -o event.tlog-proof
      journalctl -o json | tlog submit --lines
      tlog submit --lines --skip 5000 events.jsonl
    """  # noqa: D301  # \b is click's
    import asyncio

    from tlog_client.log import AsyncLog
    from tlog_client.submit import Submission, read_entries

    if not files and sys.stdin.isatty():
        raise click.UsageError("name a FILE, or - for stdin")
    entries: Iterator[bytes] = islice(read_entries(files or ("-",), lines=lines), skip, None)
    if output:
        entries = iter([_only(entries)])
    with progress("submitting", as_json=options.as_json or sys.stdout.isatty()) as advance:

        def show(added: Added) -> None:
            show_added(added, as_json=options.as_json)
            advance(submission.reported + 1, None)
            if output:
                output.write(added.proof.format())

        log = AsyncLog(options.url, options.policy, state_dir=options.state_dir, token=options.token)
        submission = Submission(log, show, show_notice)
        try:
            asyncio.run(_submit(log, submission, entries))
        except (KeyboardInterrupt, BrokenPipeError):
            click.echo(f"tlog: stopped; {_so_far(submission, skip)}", err=True)
            raise
        except TreeheadError as error:
            if submission.sent > 1 or lines:
                error.add_note(_so_far(submission, skip))
            elif submission.sent and not isinstance(error, RefusedError):
                error.add_note("the entry may have been appended all the same")
            raise


async def _submit(log: AsyncLog, submission: Submission, entries: Iterator[bytes]) -> None:
    async with log:
        with suppress(CouldNotCheckError):
            await log.checkpoint()  # entries stay for ever, so first see that this is the log of the key
        await submission.run(entries)


def _so_far(submission: Submission, skip: int) -> str:
    """Say what is known of entries when submitting them ended early, and how to go on."""
    count, more = submission.reported, submission.sent - submission.reported
    known = f"{count} indexes were printed, and {more} more entries may have been appended"
    return f"{known}; to go on with the same input, add --skip {skip + count}"


def _only(entries: Iterator[bytes]) -> bytes:
    first, second = next(entries, None), next(entries, None)
    if first is None or second is not None:
        raise click.UsageError("-o takes the proof of exactly one entry")
    return first
