"""`tlog trust`: what is pinned on disk, and the explicit acts that change it. Nothing here talks to a log."""

from __future__ import annotations

import sys
from base64 import b64encode
from typing import TYPE_CHECKING

import click

from tlog.errors import FormatError
from tlog_client.option import local_options, read_vkey
from tlog_client.report import show_json

if TYPE_CHECKING:
    from tlog_client.option import Options
    from tlog_client.pin import Pinned


@click.group(short_help="Show or change what is pinned of each log.")
def trust() -> None:
    """Show or change which keys are pinned, and which heads are trusted, of each log.

    \b
    Examples:
      tlog trust show
      tlog trust add @new.vkey
      tlog trust remove log.example/first
    """  # noqa: D301  # \b is click's


@trust.command(short_help="Print keys, heads and evidence.")
@click.argument("origin", required=False)
@local_options
def show(options: Options, origin: str | None) -> None:
    """Print, for each log or the one named ORIGIN, its pinned keys, the newest head that was accepted, and evidence.

    \b
    Examples:
      tlog trust show
      tlog trust show log.example/first --json
    """  # noqa: D301  # \b is click's
    from tlog_client.pin import pinned
    from tlog_client.state import NotKeptError

    known = [one for one in pinned(options.state_dir) if origin in (None, one.origin)]
    if origin is not None and not known:
        raise NotKeptError(f"nothing is kept of {origin} in {options.state_dir}")
    for one in known:
        if options.as_json:
            show_json(_fields(one))
        else:
            click.echo(_text(one), nl=False)
    if not known and not options.as_json:
        click.echo(f"nothing is kept in {options.state_dir}", err=True)


def _fields(one: Pinned) -> dict[str, object]:
    heads = {
        kind: {"size": saved.signed.head.size, "root": b64encode(saved.signed.head.root).decode()}
        for kind, saved in one.states.items()
    }
    return {"origin": one.origin, "vkeys": one.vkeys, **heads, "evidence": [str(path) for path in one.evidence]}


def _text(one: Pinned) -> str:
    lines = [one.origin, *(f"  key      {vkey}" for vkey in one.vkeys)]
    for kind, saved in one.states.items():
        head = saved.signed.head
        lines.append(f"  {kind:7}  size {head.size}, root {b64encode(head.root).decode()}")
    lines += [f"  FORK     evidence in {path}" for path in one.evidence]
    return "".join(f"{line}\n" for line in lines)


@trust.command(short_help="Pin a further key of a log.")
@click.argument("vkey", metavar="VKEY|@FILE")
@local_options
def add(options: Options, vkey: str) -> None:
    """Pin a further key of a log that is known, and keep the trusted head: for a log that changes its key.

    Get the key from the log's operator, never from the log.

    \b
    Examples:
      tlog trust add @new.vkey
    """  # noqa: D301  # \b is click's
    from tlog_client.pin import add_key

    text = read_vkey(vkey)
    try:
        keys = add_key(options.state_dir, text)
    except FormatError as error:
        raise click.UsageError(f"VKEY: {error}") from error
    origin = text.partition("+")[0]
    if options.as_json:
        show_json({"origin": origin, "vkeys": keys})
    else:
        click.echo(f"{'1 key is' if len(keys) == 1 else f'{len(keys)} keys are'} pinned for {origin}")


def is_terminal() -> bool:
    """Say whether somebody can be asked."""
    return sys.stdin.isatty()


@trust.command(short_help="Forget a log.")
@click.argument("origin")
@click.option("--yes", is_flag=True, help="Do not ask.")
@local_options
def remove(options: Options, origin: str, *, yes: bool) -> None:
    """Forget the pinned keys and the trusted head of the log ORIGIN: its past is then trusted anew.

    If the log's history was changed in the meantime, this machine no longer notices. Evidence is kept. Without --yes
    the origin has to be typed once more.

    \b
    Examples:
      tlog trust remove log.example/first
      tlog trust remove log.example/first --yes
    """  # noqa: D301  # \b is click's
    from tlog_client.pin import forget

    if not yes:
        if not is_terminal():
            raise click.UsageError("without a terminal nothing is removed unless --yes is given")
        typed = click.prompt(f"What is known of {origin} is lost. Type the origin to go on", err=True)
        if typed != origin:
            raise click.UsageError("that is not the origin; nothing was removed")
    removed = forget(options.state_dir, origin)
    if options.as_json:
        show_json({"origin": origin, "removed": [str(path) for path in removed]})
    else:
        click.echo(f"forgotten: {origin}")
