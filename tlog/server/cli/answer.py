"""What `tlogd` prints, and with which code it ends.

Results go to stdout, everything else to stderr; with --json both are JSON objects on stdout, one a line.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlog.errors import CouldNotCheckError, TreeheadError
from tlog.server.errors import (
    CommitError,
    ConfigError,
    CreateError,
    DamageFoundError,
    Exit,
    InUseError,
    MissingFileError,
    NoSpaceError,
    ReadOnlyError,
    SignerAwayError,
    SigningError,
    SourceError,
    StartRefusedError,
    UnusableNameError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlog.server.config import Config

    Progress = Callable[[int, int], None]
    """Told how many of how many are done."""

    Steps = Callable[[str], Progress]
    """Told which step begins; returns what is told how far it is."""

MEANINGS = {
    Exit.DONE: "done, or verified",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage: an option, a name that is taken, or the configuration",
    Exit.REFUSED: "refused: the state on disk does not fit, is in use, or was ended; trying again will not help",
    Exit.STOPPED: "stopped to protect the log: an I/O error, or a lost checkpoint store",
    Exit.DAMAGED: "damage found",
    Exit.INTERRUPTED: "interrupted",
}

EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {int(code):3}  {text}" for code, text in MEANINGS.items())

_ERRORS: tuple[tuple[type[Exception], Exit, str], ...] = (
    (ConfigError, Exit.USAGE, "mend the file; `tlogd config check FILE` says when it can be used"),
    (UnusableNameError, Exit.USAGE, "choose another name"),
    (click.UsageError, Exit.USAGE, "see --help"),
    (click.ClickException, Exit.USAGE, "see --help"),
    (InUseError, Exit.REFUSED, "stop that process, or wait until it has ended"),
    (MissingFileError, Exit.REFUSED, "tlogd fsck --config FILE says what can be done"),
    (StartRefusedError, Exit.REFUSED, ""),
    (ReadOnlyError, Exit.REFUSED, "nothing was changed"),
    (DamageFoundError, Exit.DAMAGED, "see what is damaged: tlogd fsck --config FILE"),
    (CommitError, Exit.STOPPED, "nothing was acknowledged; the next start finds out what is durable"),
    (SignerAwayError, Exit.FAILED, "start it with: tlogd signer serve"),
    (SigningError, Exit.FAILED, "nothing was signed"),
    (NoSpaceError, Exit.FAILED, "free some space"),
    (CreateError, Exit.FAILED, "mend that and try again; nothing was left behind"),
    (SourceError, Exit.FAILED, "nothing was changed; try again, or name another source"),
    (CouldNotCheckError, Exit.FAILED, "try again, or stop the log first"),
    (TreeheadError, Exit.FAILED, ""),
    (sqlite3.Error, Exit.FAILED, "see what is damaged: tlogd fsck --config FILE"),
    (OSError, Exit.FAILED, ""),
)
"""The one table from an error to how the command ends, and what to do next. The first that fits counts."""


def exit_code(error: Exception) -> Exit:
    """Return the code that an error ends the command with."""
    return next((code for kind, code, _ in _ERRORS if isinstance(error, kind)), Exit.FAILED)


def show_error(error: Exception, *, as_json: bool) -> None:
    """Print an error as one line on stderr, or as a JSON object on stdout."""
    message = error.format_message().rstrip(".") if isinstance(error, click.ClickException) else str(error)
    message = " ".join(message.split())
    advice = next((text for kind, _, text in _ERRORS if isinstance(error, kind)), "")
    damages = error.damages if isinstance(error, DamageFoundError) else ()
    if as_json:
        fields = {"error": type(error).__name__, "message": message, "advice": advice, "exit": int(exit_code(error))}
        show_json({**fields, "damages": list(damages)} if damages else fields)
        return
    for damage in damages:
        say(f"damaged: {damage}", err=True)
    say(f"tlogd: {message}{'; ' if advice else ''}{advice}", err=True)


def say(text: str = "", *, err: bool = False) -> None:
    """Print text, whatever bytes a file name in it has."""
    click.echo(text.encode("utf-8", "backslashreplace").decode(), err=err)


def entries(number: int) -> str:
    """Return a number of entries in words."""
    return "1 entry" if number == 1 else f"{number:,} entries"


def show_json(fields: dict[str, object]) -> None:
    """Print a JSON object as one line."""
    click.echo(json.dumps(fields))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

config_option = click.option(
    "--config",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The treehead.toml of the log.",
)


def confirm(origin: str, yes: str | None, short: str, warning: str) -> None:
    """Have the origin of a log typed before something that cannot be undone.

    Args:
        origin: The origin.
        yes: What was given as the origin on the command line; None where nothing was.
        short: What will happen, in a few words.
        warning: What will happen, for whoever is asked.

    Raises:
        click.UsageError: It was not typed, or nobody can be asked.
    """
    if yes is None:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{short}; if that is meant, say: --yes {origin}")
        say(warning, err=True)
        yes = click.prompt("Type its origin to go on", err=True, type=str)
    if yes != origin:
        raise click.UsageError(f"{yes!r} is not the origin of this log; nothing was changed")


def one_log(file: Path) -> Config:
    """Read the configuration of one log.

    Raises:
        ConfigError: It cannot be used, or is that of a server of several.
    """
    from tlog.server.config import CONFIG_NAME, read_server_config

    logs = read_server_config(file).logs
    if set(logs) != {""}:
        names = ", ".join(f"{config.directory}/{CONFIG_NAME}" for config in logs.values())
        raise ConfigError(f"{file} is of a server of several logs; name one of them: {names}")
    return logs[""]


@contextmanager
def steps(*, as_json: bool) -> Iterator[Steps]:
    """Show how far each step is, on a terminal; elsewhere do nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda _step: lambda _done, _total: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:  # it is nice to have, and no dependency
        yield lambda _step: lambda _done, _total: None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:

        def begin(step: str) -> Progress:
            task = bar.add_task(step, total=None)
            return lambda done, total: bar.update(task, completed=done, total=max(done, total))

        yield begin
