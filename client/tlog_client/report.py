"""What `tlog` prints, and with which code it ends.

Results go to stdout, everything else to stderr; with --json both are JSON objects on stdout, one a line.
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import click

from tlog.errors import (
    CouldNotCheckError,
    ForkError,
    FormatError,
    NotFoundError,
    PolicyError,
    PushbackError,
    RefusedError,
    TreeheadError,
    VerificationError,
)
from tlog_client.run import OptionError
from tlog_client.state import BadEntryError, NotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlog_client.flow import Added, Published
    from tlog_client.monitor import Round


class ExitCode(IntEnum):
    """How `tlog` ends. "Proven bad" (3, 4, 5) is never mixed with "could not check" (7, 8, 9)."""

    DONE = 0
    OTHER = 1
    USAGE = 2
    VERIFICATION = 3
    FORK = 4
    POLICY = 5
    STALE = 6
    NOT_FOUND = 7
    UNAVAILABLE = 8
    NOT_AUTHORISED = 9
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done, or verified",
    ExitCode.OTHER: "another error, such as unusable state",
    ExitCode.USAGE: "wrong usage: an option, or a file of yours",
    ExitCode.VERIFICATION: "verification failed",
    ExitCode.FORK: "fork proven: the log signed two histories",
    ExitCode.POLICY: "the policy is not met",
    ExitCode.STALE: "stale: no larger head for longer than --max-idle (monitor)",
    ExitCode.NOT_FOUND: "the log has no such thing",
    ExitCode.UNAVAILABLE: "network or server unavailable; nothing was proven",
    ExitCode.NOT_AUTHORISED: "not authorised, or the log takes no entries",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
}

_ERRORS: tuple[tuple[type[Exception], ExitCode, str], ...] = (
    (ForkError, ExitCode.FORK, "stop relying on this log, keep both notes and show them to others"),
    (PolicyError, ExitCode.POLICY, "it may be met later: try again"),
    (VerificationError, ExitCode.VERIFICATION, "do not rely on this; check that key, log and files belong together"),
    (FormatError, ExitCode.VERIFICATION, "do not rely on this; check that key, log and files belong together"),
    (NotKeptError, ExitCode.NOT_FOUND, "tlog trust show lists what is"),
    (NotFoundError, ExitCode.NOT_FOUND, "check the URL, and the index if you gave one"),
    (PushbackError, ExitCode.UNAVAILABLE, "try again later"),
    (RefusedError, ExitCode.OTHER, "check what was asked for"),
    (CouldNotCheckError, ExitCode.UNAVAILABLE, "check the URL and try again; nothing was proven"),
    (OptionError, ExitCode.USAGE, "see tlog --help"),
    (click.UsageError, ExitCode.USAGE, "see --help"),
    (TreeheadError, ExitCode.OTHER, ""),
)
"""The one table from an error to how the command ends, and what to do next. The first that fits counts."""


def exit_code(error: Exception) -> ExitCode:
    """Return the code that an error ends the command with."""
    if isinstance(error, RefusedError) and error.status in (401, 403):
        return ExitCode.NOT_AUTHORISED
    return next((code for kind, code, _ in _ERRORS if isinstance(error, kind)), ExitCode.OTHER)


def show_error(error: Exception, *, as_json: bool, alarm: str | None = None) -> None:
    """Print an error as one line on stderr, or as a JSON object on stdout."""
    message = error.format_message().rstrip(".") if isinstance(error, click.ClickException) else str(error)
    evidence = getattr(error, "evidence", None)
    if as_json:
        kind = "ForkError" if isinstance(error, ForkError) else type(error).__name__
        fields: dict[str, object] = {"error": kind, "message": message, "evidence": str(evidence) if evidence else None}
        show_json({"alarm": alarm, **fields} if alarm else fields)
        return
    advice = next((text for kind, _, text in _ERRORS if isinstance(error, kind)), "")
    if exit_code(error) == ExitCode.NOT_AUTHORISED:  # a proxy says 401, a log that takes nothing more 403, and why
        advice = "give a token with --token-file" if getattr(error, "status", 0) == 401 else ""
    notes = list(getattr(error, "__notes__", ()))
    line = "; ".join(part for part in (message, *notes, advice) if part)
    prefix = f"ALARM ({alarm}): " if alarm else ""
    click.secho("tlog: ", fg="red", err=True, nl=False, color=_color())
    click.echo(prefix + " ".join(line.split()), err=True)


def show_notice(error: Exception) -> None:
    """Say on stderr that the log is away for a while; the command goes on by itself."""
    click.echo(f"tlog: {error}; trying again", err=True)


def show_added(added: Added, *, as_json: bool) -> None:
    """Print where an entry is."""
    if as_json:
        size, is_new = added.checkpoint.size, added.is_new
        show_json({"index": added.index, "leaf_hash": added.leaf_hash.hex(), "size": size, "is_new": is_new})
    else:
        click.echo(added.index)


def show_published(published: Published, *, as_json: bool, with_entry: bool = True) -> None:
    """Print an entry and a line feed."""
    if as_json:
        shown = {"entry": b64encode(published.entry).decode()} if with_entry else {}
        show_json({"index": published.index, **shown})
    else:
        click.echo(published.entry)


def show_json(fields: dict[str, object]) -> None:
    """Print a JSON object as one line."""
    click.echo(json.dumps(fields))


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None  # None: only on a terminal


@contextmanager
def progress(what: str, *, as_json: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far something is, on a terminal; elsewhere do nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=done != total)


class News:
    """Prints what a monitor finds.

    Attributes:
        code: How the command would end.
        is_alarm: Whether there was an alarm.
    """

    def __init__(self, *, as_json: bool, max_idle: float | None = None) -> None:
        """Begin without news; beyond so many seconds without a larger head the log is stale."""
        self.code = ExitCode.DONE
        self.is_alarm = False
        self._as_json = as_json
        self._max_idle = max_idle
        self._last = ""

    def show(self, found: Round | VerificationError | CouldNotCheckError) -> None:
        """Print it, unless it is what was printed last."""
        is_stale = not isinstance(found, Exception) and self._max_idle is not None and found.idle > self._max_idle
        said = f"{found!r}{is_stale}" if isinstance(found, Exception) else f"{found.head}{found.new}{is_stale}"
        repeated, self._last = self._last == said, said
        if not self.is_alarm:
            self.is_alarm = isinstance(found, VerificationError)
            self.code = (
                exit_code(found) if isinstance(found, Exception) else (ExitCode.STALE if is_stale else ExitCode.DONE)
            )
        elif isinstance(found, ForkError):
            self.code = ExitCode.FORK
        if repeated:
            return
        if isinstance(found, Exception):
            show_error(found, as_json=self._as_json, alarm=_alarm(found))
        else:
            self._show_round(found, is_stale=is_stale)

    def _show_round(self, found: Round, *, is_stale: bool) -> None:
        if self._as_json:
            root = b64encode(found.head.root).decode()
            fields = {"size": found.head.size, "root": root, "new": found.new, "older": found.is_older}
            show_json({**fields, "idle_seconds": int(found.idle), "stale": is_stale})
            return
        older = ", older than known and consistent" if found.is_older else ""
        stale = f"; STALE: no larger head for {int(found.idle)} s" if is_stale else ""
        click.echo(f"verified: size {found.head.size}, {found.new} new{older}{stale}")


def _alarm(error: Exception) -> str | None:
    """Return the kind of an alarm, None where nothing was proven."""
    if isinstance(error, ForkError):
        return "fork"
    if isinstance(error, BadEntryError):
        return "bad entry"
    return "bad answer" if isinstance(error, VerificationError) else None
