"""The command line of the operator: `tlogd`.

What only one command needs is imported by that command.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import click

from tlog.errors import TreeheadError
from tlog.server.cli.answer import EXIT_CODES, exit_code, show_error
from tlog.server.cli.check import fsck, status
from tlog.server.cli.copies import backup, restore
from tlog.server.cli.create import init, keygen
from tlog.server.cli.repair import recover_checkpoints, repair
from tlog.server.cli.serve import freeze, serve
from tlog.server.cli.settings import config
from tlog.server.cli.signer import signer
from tlog.server.errors import Exit


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="treehead", prog_name="tlogd")
def cli() -> None:
    """Run a transparency log: create it, serve it, check it, and keep it.

    \b
    Examples:
      tlogd init --origin example.com/log --data log
      tlogd serve --config log/treehead.toml
      tlogd status --config log/treehead.toml
      tlogd backup log.backup --config log/treehead.toml
      tlogd fsck --config log/treehead.toml
    """  # noqa: D301  # \b is click's


_COMMANDS = (keygen, init, serve, status, fsck, backup, restore, repair, recover_checkpoints, freeze, signer, config)

for _command in _COMMANDS:
    cli.add_command(_command)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: without it, a database opened later would get its number
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # it stays open
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(arguments, as_json="--json" in arguments))


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        code = cli.main(arguments, prog_name="tlogd", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except (TreeheadError, click.ClickException, sqlite3.Error) as error:
        show_error(error, as_json=as_json)
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return Exit.FAILED
    except OSError as error:
        show_error(error, as_json=as_json)
        return Exit.FAILED
    return code if isinstance(code, int) else Exit.DONE
