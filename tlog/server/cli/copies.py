"""`tlogd backup` and `tlogd restore`."""

from __future__ import annotations

from pathlib import Path

import click

from tlog.server.cli.answer import config_option, entries, json_option, one_log, say, show_json, steps

_FILE = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  tlogd backup /mnt/backup/log-$(date +%F).db --config log/treehead.toml
"""
)
@click.argument("target", type=_FILE, metavar="FILE")
@config_option
@json_option
def backup(target: Path, file: Path, *, as_json: bool) -> None:
    """Copy the entries of a log into FILE, which must not exist, while it is served or not.

    The copy goes up to one signed head, which it holds, and is checked against that before it gets its name. Neither
    the key nor checkpoints.db is in it: keep a copy of the key where you keep secrets, and none of checkpoints.db.
    """
    from tlog.server.backup import make_backup
    from tlog.server.clock import wall_clock_ms

    with steps(as_json=as_json) as begin:
        head = make_backup(one_log(file), target, wall_clock_ms(), begin).head
    size = target.stat().st_size
    if as_json:
        fields = {"origin": head.origin, "size": head.size, "root": head.root.hex()}
        show_json({**fields, "file": str(target), "bytes": size})
        return
    say(f"{target}: {entries(head.size)} of {head.origin}, checked against its signed head, {size:,} bytes")


@click.command(
    epilog="""\b
Examples:
  tlogd restore /mnt/backup/log-2026-11-24.db --config log/treehead.toml
  tlogd restore log.backup --config old/treehead.toml --data new --checkpoints /mnt/other/log.checkpoints.db
"""
)
@click.argument("source", type=_FILE, metavar="FILE")
@config_option
@click.option("--data", type=_FILE, metavar="DIR", help="Make a new data directory instead; it must not exist.")
@click.option(
    "--checkpoints",
    type=_FILE,
    metavar="FILE",
    help="With --data: the current checkpoint store, where it is not that of the configuration.",
)
@json_option
def restore(source: Path, file: Path, data: Path | None, checkpoints: Path | None, *, as_json: bool) -> None:
    """Put the entries of the backup FILE in the place of a log.db that is lost or damaged. Stop the log first.

    Only a backup that has exactly the signed head is restored: the checkpoint store decides, and is never restored
    itself. A log.db that is whole is left alone, and a damaged one is kept under another name.
    """
    from tlog.server.restore import restore as restore_in_place
    from tlog.server.restore import restore_elsewhere

    if checkpoints is not None and data is None:
        raise click.UsageError("--checkpoints goes with --data")
    config = one_log(file)
    if not source.is_file():
        raise click.UsageError(f"there is no file {source}")
    with steps(as_json=as_json) as begin:
        if data is None:
            done = restore_in_place(config, source, begin)
        else:
            done = restore_elsewhere(config, source, data, checkpoints, begin)
    aside = str(done.aside) if done.aside else None
    if as_json:
        fields = {"origin": done.head.origin, "size": done.head.size, "root": done.head.root.hex()}
        show_json({**fields, "data": str(done.data), "aside": aside, "unsigned": done.unsigned})
        return
    say(f"Restored {entries(done.head.size)} of {done.head.origin} in {done.data}, with the signed head.")
    if done.unsigned:
        say(f"The commit behind it, {entries(done.unsigned)}, was kept; the next start signs it.")
    if aside:
        say(f"What was there before is now {aside}; remove it when nobody needs it any more.")
    say(f"Start the log with:\n\n  tlogd serve --config {done.data / 'treehead.toml'}")
