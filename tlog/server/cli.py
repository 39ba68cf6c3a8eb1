"""The command line of the operator: tlogd."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import click

from tlog.errors import TreeheadError
from tlog.server.errors import ConfigError, Exit, StartRefusedError

_EPILOG = """\b
Exit codes:
  0  done
  1  failed
  2  usage
  3  refused to start: the state on disk does not fit
  4  stopped to protect the log: an I/O error, or a lost checkpoint store
  5  damage found
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="treehead")
def cli() -> None:
    """Run a transparency log."""


@cli.command(
    epilog="""\b
Examples:
  tlogd init --origin example.com/log --data /var/lib/treehead/log
  tlogd init --origin example.com/log --data log --checkpoints /mnt/other/log.checkpoints.db
"""
)
@click.option("--origin", required=True, metavar="NAME", help="Unique name: the log's URL without the scheme.")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to create.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the signed head is kept; best on another volume than the data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(origin: str, data: Path, checkpoints: Path | None, *, as_json: bool) -> None:
    """Create a log, with a new key and its first entry."""
    import json

    from tlog.server.config import CONFIG_NAME
    from tlog.server.create import create_log
    from tlog.server.log import wall_clock_ms

    config = create_log(origin, data, wall_clock_ms(), checkpoints)
    file = data / CONFIG_NAME
    if as_json:
        click.echo(json.dumps({"origin": config.origin, "vkey": config.vkey, "config": str(file)}))
        return
    click.echo(f"Created the log {config.origin} in {data}.\n\n  vkey    {config.vkey}\n  config  {file}\n")
    if checkpoints is None:
        click.echo("Keep checkpoints.db on another volume in production: --checkpoints FILE.")
    click.echo(f"Give the vkey to everybody who is to verify the log. Start it with:\n\n  tlogd serve --config {file}")


@cli.command(
    epilog="""\b
Examples:
  tlogd serve --config log/treehead.toml
  tlogd serve --config log/treehead.toml --host 0.0.0.0 --port 80
"""
)
@click.option("--config", "file", required=True, type=click.Path(path_type=Path), metavar="FILE", help="treehead.toml.")
@click.option("--host", metavar="H", help="Address to listen on, instead of the configuration's.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="Port; 0 takes a free one and logs it.")
def serve(file: Path, host: str | None, port: int | None) -> None:
    """Serve a log until SIGTERM or SIGINT; a second one ends it at once."""
    import uvloop

    from tlog.server.api.serve import serve as run_server
    from tlog.server.config import read_config

    config = read_config(file)
    uvloop.run(run_server(config, host or config.http.host, config.http.port if port is None else port))


def run() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except TreeheadError as error:
        click.echo(f"tlogd: {error}", err=True)
        code = Exit.REFUSED if isinstance(error, StartRefusedError) else Exit.FAILED
        code = Exit.USAGE if isinstance(error, ConfigError) else code
    except (OSError, sqlite3.Error) as error:
        click.echo(f"tlogd: {error}", err=True)
        code = Exit.FAILED
    sys.exit(code)
