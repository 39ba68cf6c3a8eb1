"""The command `tlog`.

What is only needed by one command is imported there: verifying offline loads no HTTP library, no asyncio and no
progress bar.
"""

from __future__ import annotations

import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlog.errors import TreeheadError
from tlog.merkle import leaf_hash
from tlog.proof import MAX_PROOF_SIZE, parse_proof, verify_proof
from tlog.tile import MAX_ENTRY_SIZE
from tlog_client.option import FILE, check_output, offline_options, online_options, read_file
from tlog_client.report import MEANINGS, News, progress, show_added, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog_client.log import Added
    from tlog_client.option import Options


_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {int(code)}  {text}" for code, text in MEANINGS.items())


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="treehead-client", prog_name="tlog")
def cli() -> None:
    """Submit entries to a Treehead log, and verify what it says.

    The log's key is given by you, with --vkey or --policy, and never fetched from the log.

    \b
    Examples:
      export TREEHEAD_LOG=https://log.example TREEHEAD_VKEY=@log.vkey
      tlog submit event.json -o event.tlog-proof
      tlog verify event.json event.tlog-proof
      tlog monitor --once
    """  # noqa: D301  # \b is click's


@cli.command()
@click.argument("files", nargs=-1, metavar="[FILE|-]...", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--lines", is_flag=True, help="Each line, without its line feed, is an entry.")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write the one entry's .tlog-proof."
)
@online_options
def submit(options: Options, files: tuple[str, ...], output: Path | None, *, lines: bool) -> None:
    """Append each FILE as one entry, stdin without FILE, and print their indexes.

    Up to 64 entries are under way at once, so lines may be appended in another order; indexes are printed in the order
    of the input. When an index is printed, the log has proven that the entry is in the tree that it signed.

    \b
    Examples:
      tlog submit event.json -o event.tlog-proof
      journalctl -o json | tlog submit --lines
    """  # noqa: D301  # \b is click's
    import asyncio

    from tlog_client.log import AsyncLog
    from tlog_client.submit import read_entries, so_far, submit_all

    if not files and sys.stdin.isatty():
        raise click.UsageError("name a FILE, or - for stdin")
    entries = read_entries(files or ("-",), lines=lines)
    if output:
        check_output(output)
        entries = iter([_only(entries)])
    count = 0
    with progress("submitting", as_json=options.as_json) as advance:

        def show(added: Added) -> None:
            nonlocal count
            show_added(added, as_json=options.as_json)
            count += 1
            advance(count, None)
            if output:
                output.write_bytes(added.proof.format())

        async def run() -> None:
            async with AsyncLog(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log:
                await submit_all(log, entries, show)

        try:
            asyncio.run(run())
        except (KeyboardInterrupt, BrokenPipeError):
            click.echo(f"tlog: stopped; {so_far(count)}", err=True)
            raise
        except TreeheadError as error:
            if lines:
                error.add_note(so_far(count))
            raise


def _only(entries: Iterator[bytes]) -> bytes:
    first, second = next(entries, None), next(entries, None)
    if first is None or second is not None:
        raise click.UsageError("-o takes the proof of exactly one entry")
    return first


@cli.command()
@click.argument("index", type=click.IntRange(0, (1 << 63) - 2))
@click.option("-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write the entry to a file.")
@online_options
def get(options: Options, index: int, output: Path | None) -> None:
    """Print the entry at INDEX, verified, byte for byte.

    \b
    Examples:
      tlog get 42
      tlog get 42 -o entry.json
    """  # noqa: D301  # \b is click's
    from tlog_client.log import Log

    check_output(output)
    with Log(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log:
        fetched = log.get(index)
    if output:
        output.write_bytes(fetched.entry)
    if options.as_json:
        shown = {} if output else {"entry": b64encode(fetched.entry).decode()}
        size = fetched.checkpoint.size
        show_json({"index": index, "leaf_hash": fetched.leaf_hash.hex(), "size": size, **shown})
    elif not output:
        click.echo(fetched.entry, nl=False)


@cli.command()
@click.argument("entry", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.argument("proof", type=FILE)
@offline_options
def verify(options: Options, entry: Path, proof: Path) -> None:
    """Verify offline that the file ENTRY is in the log, by its .tlog-proof file PROOF.

    \b
    Examples:
      tlog verify event.json event.tlog-proof --vkey @log.vkey
      tlog verify - event.tlog-proof --policy log.policy < event.json
    """  # noqa: D301  # \b is click's
    data = read_file(entry, MAX_ENTRY_SIZE)
    proven = parse_proof(read_file(proof, MAX_PROOF_SIZE))
    verify_proof(proven, data, options.policy)
    head = options.policy.open_checkpoint(proven.checkpoint)
    if options.as_json:
        leaf = leaf_hash(data).hex()
        show_json({"index": proven.index, "leaf_hash": leaf, "origin": head.origin, "size": head.size})
    else:
        click.echo(f"verified: entry {proven.index} of {head.origin}, in the tree of size {head.size}")


@cli.command()
@online_options
def checkpoint(options: Options) -> None:
    """Print the newest head that the log serves: origin, size and root; verified against the last one that was trusted.

    Without witnesses nothing signed carries a time, so how fresh it is cannot be checked.

    \b
    Examples:
      tlog checkpoint
      tlog checkpoint --json
    """  # noqa: D301  # \b is click's
    from tlog_client.log import Log

    with Log(options.url, options.policy, state_dir=options.state_dir, token=options.token) as log:
        head = log.checkpoint()
    if options.as_json:
        fields = {"origin": head.origin, "size": head.size, "root": b64encode(head.root).decode()}
        show_json({**fields, "freshness": "not checkable"})
    else:
        click.echo(head.format(), nl=False)


@cli.command()
@click.option("--once", is_flag=True, help="Do one round, for cron.")
@click.option("--interval", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds between rounds.")
@online_options
def monitor(options: Options, interval: float, *, once: bool) -> None:
    """Follow the log: verify that it only grows, and re-hash every entry up to each signed root.

    Alarms are a fork, with both notes saved as evidence, and an entry that is not the one in the signed tree. An older
    head, a missing answer or a busy log is none. The first run reads the whole log.

    \b
    Examples:
      tlog monitor --once; test $? -ne 4 || mail -s "the log is forked" you@example.org
      tlog monitor --interval 60 --json
    """  # noqa: D301  # \b is click's
    import asyncio

    from tlog_client.monitor import Monitor, stoppable, watch
    from tlog_client.run import AsyncRunner

    with progress("checking", as_json=options.as_json) as advance:
        watching = Monitor(options.policy, options.state_dir, advance)
        news = News(as_json=options.as_json)

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
