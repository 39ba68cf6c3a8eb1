"""`tlog fsck`."""

from __future__ import annotations

import os
import signal
import time
from base64 import b64encode
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from tlog.note import MAX_NOTE_SIZE
from tlog_client.option import FILE, online_options, read_file
from tlog_client.report import ExitCode, progress, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tlog.damage import Damage
    from tlog_client.fsck import Report
    from tlog_client.option import Options


class _AtAddress(click.Command):
    """A command whose argument URL stands for --log."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give the URL the place of the option, where it goes before the environment."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        address = given.get("address")
        if isinstance(address, str):
            if isinstance(given.get("url"), str):
                raise click.UsageError("give the address of the log once: as URL, or with --log", ctx)
            args = ["--log", address, *args]
        return super().parse_args(ctx, args)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@click.command(cls=_AtAddress)
@click.argument("address", required=False, metavar="[URL]", expose_value=False)
@click.option(
    "--checkpoint", type=FILE, metavar="FILE", help="Check the tree of this signed checkpoint, not of the newest."
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: one for each core]")
@click.option(
    "--resume/--no-resume", default=True, help="Go on where an earlier run was interrupted, or begin anew.  [resume]"
)
@online_options
def fsck(options: Options, checkpoint: Path | None, workers: int | None, *, resume: bool) -> None:
    """Verify the whole log at URL: every entry and every tile, up to its newest signed head.

    All that is wrong or missing is listed, not only the first. A run that is interrupted, however that happens, goes on
    where it was when the command is run again. It ends with 0 where everything is verified, with 3 where something is
    proven wrong, with 4 where the log signed another history than the one that was trusted, and with 8 where nothing is
    wrong but something could not be read.

    \b
    Examples:
      tlog fsck https://log.example --vkey @log.vkey
      tlog fsck --json | jq '.damage[].path'
      tlog fsck --checkpoint last-year.checkpoint --workers 2
    """  # noqa: D301  # \b is click's
    from tlog_client.fsck import Fsck

    note = read_file(checkpoint, MAX_NOTE_SIZE) if checkpoint else None
    began = time.monotonic()
    with _stoppable(), progress("checking", as_json=options.as_json) as advance:
        checking = Fsck(options.policy, options.state_dir, note=note, progress=advance, tell=_tell)
        report = checking.run(options.url, options.token, workers or _cores(), resume=resume)
    seconds = time.monotonic() - began
    if options.as_json:
        _show_json(report, seconds)
    else:
        _show(report, seconds)
    if report.damaged:
        click.get_current_context().exit(ExitCode.VERIFICATION)
    if report.missing:
        click.get_current_context().exit(ExitCode.UNAVAILABLE)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop the command as Ctrl-C does, and say how to go on."""

    def stop(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _tell("stopped; what was checked is kept: run the same command again to go on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(sentence: str) -> None:
    click.echo(f"tlog: {sentence}", err=True)


def _show(report: Report, seconds: float) -> None:
    for damage in report.damage:
        click.echo(f"damaged: {_place(damage)}: {damage.reason}")
    for unread in report.unread:
        click.echo(f"not read: {unread.path}: {unread.reason}")
    head = report.head
    if report.damaged or report.missing:
        click.echo(
            f"NOT verified: {head.origin}, size {head.size}: {report.damaged} damaged, {report.missing} not read"
        )
    else:
        rate = f", {head.size / seconds:,.0f} entries a second" if head.size >= 1000 else ""
        click.echo(f"verified: every entry and tile of {head.origin}, size {head.size}{rate}")


def _place(damage: Damage) -> str:
    """Return where damage is: the path, and what of it, or the entries of a subtree."""
    if not damage.path:
        return f"entries {damage.start} to {damage.end - 1}"
    kind = "entry" if damage.path.startswith("tile/entries/") else "hash"
    shown = ", ".join(map(str, damage.wrong[:8])) + (" …" if len(damage.wrong) > 8 else "")
    return damage.path + (f", {kind} {shown}" if damage.wrong else "")


def _show_json(report: Report, seconds: float) -> None:
    from tlog.fsck import count_bundles, count_tiles
    from tlog_client.finding import damage_fields, unread_fields

    head = report.head
    show_json(
        {
            "result": "damaged" if report.damaged else "incomplete" if report.missing else "verified",
            "origin": head.origin,
            "size": head.size,
            "root": b64encode(head.root).decode(),
            "bundles": count_bundles(head.size),
            "tiles": count_tiles(head.size),
            "genesis": report.genesis,
            "damaged": report.damaged,
            "damage": [damage_fields(damage) for damage in report.damage],
            "missing": report.missing,
            "unread": [unread_fields(unread) for unread in report.unread],
            "timing": {"seconds": round(seconds, 3)},
        }
    )
