"""`tlogd keygen` and `tlogd init`."""

from __future__ import annotations

from pathlib import Path

import click

from tlog.server.cli.answer import json_option, say, show_json

_FILE = click.Path(path_type=Path)

origin_option = click.option(
    "--origin", required=True, metavar="NAME", help="Unique name of the log: its URL without the scheme."
)

passphrase_option = click.option(
    "--passphrase-file",
    type=_FILE,
    metavar="F",
    help="Encrypt the key under the passphrase in this file; only its owner may be able to read it.",
)


@click.command(
    epilog="""\b
Examples:
  tlogd keygen --origin example.com/log -o log.key
  tlogd keygen --origin example.com/log --passphrase-file passphrase -o log.key
  tlogd init --origin example.com/log --key log.key --passphrase-file passphrase --data log
"""
)
@origin_option
@passphrase_option
@click.option("-o", "output", required=True, type=_FILE, metavar="KEY", help="File to write; must not exist.")
@json_option
def keygen(origin: str, passphrase_file: Path | None, output: Path, *, as_json: bool) -> None:
    """Make a key for a log that is yet to be created, and print its vkey.

    `tlogd init` makes one, too; make it beforehand to keep it on another volume. One key signs one log, for ever, and
    the log cannot go on without it: keep a copy where you keep secrets.
    """
    from tlog.server.create import create_key
    from tlog.server.errors import CreateError, StartRefusedError
    from tlog.server.key import read_passphrase

    try:
        passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    except StartRefusedError as error:
        raise CreateError(str(error)) from error
    verifier = create_key(origin, output, passphrase)
    if as_json:
        show_json({"origin": origin, "vkey": verifier.vkey, "key": str(output), "encrypted": passphrase is not None})
        return
    say(verifier.vkey)


@click.command(
    epilog="""\b
Examples:
  tlogd init --origin example.com/log --data /var/lib/treehead/log
  tlogd init --origin example.com/log --data log --checkpoints /mnt/other/log.checkpoints.db
  tlogd init --origin example.com/log --data log --passphrase-file /etc/treehead/passphrase
  tlogd init --origin example.com/log --data log --key log.key
"""
)
@origin_option
@click.option("--data", required=True, type=_FILE, metavar="DIR", help="Folder to create.")
@click.option(
    "--checkpoints",
    type=_FILE,
    metavar="FILE",
    help="Where the signed head is kept; best on another volume than the data.",
)
@passphrase_option
@click.option("--key", type=_FILE, metavar="FILE", help="Use this key from `tlogd keygen`, where it is.")
@json_option
def init(
    origin: str, data: Path, checkpoints: Path | None, passphrase_file: Path | None, key: Path | None, *, as_json: bool
) -> None:
    """Create a log, with its key and its first entry.

    The configuration then names the passphrase file; it may also name a credential of the service manager:
    passphrase = "file:$CREDENTIALS_DIRECTORY/NAME".
    """
    from tlog.server.clock import wall_clock_ms
    from tlog.server.config import CONFIG_NAME
    from tlog.server.create import KeySource, create_log

    config = create_log(origin, data, wall_clock_ms(), checkpoints, KeySource(key, passphrase_file))
    file = data / CONFIG_NAME
    if as_json:
        show_json({"origin": config.origin, "vkey": config.vkey, "config": str(file)})
        return
    say(f"Created the log {config.origin} in {data}.\n\n  vkey    {config.vkey}\n  config  {file}\n")
    if checkpoints is None:
        say("Keep checkpoints.db on another volume in production: --checkpoints FILE.")
    say(f"Give the vkey to everybody who is to verify the log. Start it with:\n\n  tlogd serve --config {file}")
