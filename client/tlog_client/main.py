"""Where the command `tlog` begins, and where every error ends: as one line and an exit code, never as a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tlog.errors import TreeheadError
from tlog_client.cli import cli
from tlog_client.option import Answering
from tlog_client.report import ExitCode, exit_code, show_error


def main() -> None:
    """Run the command, and end the process."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: without it, a file opened later would get its number
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # it stays open
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; see `tlog --help`."""
    answering = Answering()
    try:
        code = cli.main(arguments, prog_name="tlog", standalone_mode=False, obj=answering)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except (TreeheadError, click.ClickException) as error:
        show_error(error, as_json=answering.as_json)
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return ExitCode.OTHER
    except OSError as error:
        show_error(error, as_json=answering.as_json)
        return ExitCode.OTHER
    return code if isinstance(code, int) else ExitCode.DONE
