"""The command `tlog`: one module a command, imported when the command is asked for.

So verifying offline loads no HTTP library, no asyncio and no progress bar. A new command is a module here that defines
a click command of its own name, and one line in `COMMANDS`.
"""

from __future__ import annotations

from importlib import import_module

import click

from tlog_client.report import MEANINGS

COMMANDS = {
    "submit": "tlog_client.cli.submit",
    "get": "tlog_client.cli.get",
    "entries": "tlog_client.cli.entries",
    "tail": "tlog_client.cli.tail",
    "verify": "tlog_client.cli.verify",
    "checkpoint": "tlog_client.cli.checkpoint",
    "consistency": "tlog_client.cli.consistency",
    "monitor": "tlog_client.cli.monitor",
    "fsck": "tlog_client.cli.fsck",
    "trust": "tlog_client.cli.trust",
}
"""Where each command is, in the order of the help. The module defines the command under the command's name."""

_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {int(code)}  {text}" for code, text in MEANINGS.items())


class _Commands(click.Group):
    """Imports a command when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's interface
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's interface
        """Return a command, None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101  # the table says so
        return command


@click.group(
    cls=_Commands,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
