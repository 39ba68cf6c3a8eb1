"""The options that the commands of `tlog` share, and what becomes of them before a command runs."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tlog.errors import FormatError
from tlog.policy import MAX_POLICY_SIZE, Policy, parse_policy
from tlog_client.state import default_state_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass
class Answering:
    """How to answer, known before anything can fail; the object of click's context.

    Attributes:
        as_json: Whether --json was given.
    """

    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What every command is told.

    Attributes:
        policy: Whose signature makes a head.
        as_json: Whether to print JSON.
        url: Address of the log; empty for offline commands.
        state_dir: Folder of the state files.
        token: Bearer token.
    """

    policy: Policy
    as_json: bool
    url: str = ""
    state_dir: Path = Path()
    token: str | None = None


def _answer_in_json(context: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001  # click's interface
    context.ensure_object(Answering).as_json = value
    return value


class _Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: 90, 15m, 36h, 7d."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value, re.ASCII)
        if match is None or match[1].strip("0") == "":
            self.fail(f"{value!r} is not a duration such as 90, 15m, 36h or 7d", param, ctx)
        return float(int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])


DURATION = _Duration()
"""A duration in seconds, above 0."""

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""A file that is read."""

_OFFLINE = (
    click.option(
        "--vkey",
        envvar="TREEHEAD_VKEY",
        show_envvar=True,
        metavar="VKEY|@FILE",
        help="The log's public key, or @ and a file.",
    ),
    click.option(
        "--policy",
        envvar="TREEHEAD_POLICY",
        show_envvar=True,
        type=FILE,
        metavar="FILE",
        help="A policy instead of a key.",
    ),
    click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_answer_in_json, help="Print JSON."),
)

_STATE_DIR = click.option(
    "--state-dir",
    envvar="TREEHEAD_STATE_DIR",
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where trust is kept.  [default: $XDG_STATE_HOME/treehead, else ~/.local/state/treehead]",
)

_PERHAPS_ONLINE = (
    click.option(
        "--log", "url", envvar="TREEHEAD_LOG", show_envvar=True, metavar="URL", default="", help="Address of the log."
    ),
    *_OFFLINE[:2],
    _STATE_DIR,
    click.option("--token-file", type=FILE, metavar="FILE", help="File that holds the bearer token."),
    *_OFFLINE[2:],
)


def offline_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what it needs to verify: `options` without a log's address."""

    @wraps(command)
    def run(vkey: str | None, policy: Path | None, *, as_json: bool, **rest: object) -> None:
        command(Options(_read_policy(vkey, policy), as_json), **rest)

    return _decorate(run, _OFFLINE)


def perhaps_online_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what it needs to talk to a log, or to do without: `options`, whose URL may be empty."""

    @wraps(command)
    def run(  # one for each option
        url: str,
        vkey: str | None,
        policy: Path | None,
        state_dir: Path | None,
        token_file: Path | None,
        *,
        as_json: bool,
        **rest: object,
    ) -> None:
        trusting = _read_policy(vkey, policy)
        if len(origins := {verifier.name for verifier in trusting.logs}) != 1:
            raise click.UsageError(
                f"the policy names {len(origins)} logs; keep the log lines of one origin in it, the one of --log"
            )
        token = read_file(token_file, 1 << 16).decode("utf-8", "replace").strip() if token_file else None
        command(Options(trusting, as_json, url, state_dir or default_state_dir(), token), **rest)

    return _decorate(run, _PERHAPS_ONLINE)


def online_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what it needs to talk to a log: `options`."""

    @wraps(command)
    def run(options: Options, **rest: object) -> None:
        if not options.url:
            raise click.UsageError("give the address of the log with --log, or in TREEHEAD_LOG")
        command(options, **rest)

    return perhaps_online_options(run)


def local_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what it needs to look at what is kept on disk: `options` without a log and without a key."""

    @wraps(command)
    def run(*, state_dir: Path | None, as_json: bool, **rest: object) -> None:
        command(Options(Policy(()), as_json, "", state_dir or default_state_dir()), **rest)

    return _decorate(run, (_STATE_DIR, _OFFLINE[-1]))


def _decorate(
    command: Callable[..., None], options: Sequence[Callable[[Callable[..., None]], Callable[..., None]]]
) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Output:
    """A file that the user names for a result; a file that is there already is replaced only where that is said.

    Attributes:
        path: The file.
        may_replace: Whether --force was given.
    """

    path: Path
    may_replace: bool

    def check(self) -> None:
        """Refuse a file that cannot be written before anything is done whose result it is to hold."""
        if self.path.is_file() and not self.may_replace:
            raise click.UsageError(f"{self.path} exists already; name another file, or replace it with --force")
        if not os.access(self.path if self.path.exists() else self.path.absolute().parent, os.W_OK):
            raise click.UsageError(f"{self.path} cannot be written; nothing was done")

    def write(self, data: bytes) -> None:
        """Write the file."""
        is_new = not self.may_replace and not self.path.exists()
        with self.path.open("xb" if is_new else "wb") as file:
            file.write(data)


def output_options(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command -o and --force, as an `output` that was checked, None where none is named."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: object, output: Path | None, force: bool, **rest: object) -> None:
            checked = None if output is None else Output(output, force)
            if checked:
                checked.check()
            command(*args, output=checked, **rest)

        return _decorate(
            run,
            (
                click.option(
                    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=text
                ),
                click.option("--force", is_flag=True, help="Replace FILE if it exists."),
            ),
        )

    return decorate


def read_file(path: Path, limit: int) -> bytes:
    """Read a file of the user, `-` for stdin, up to a limit."""
    try:
        if path == Path("-"):
            return _read_all(sys.stdin.buffer.read(limit + 1), path, limit)
        with path.open("rb") as file:
            return _read_all(file.read(limit + 1), path, limit)
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or 'it is closed'}") from error


def _read_all(data: bytes, path: Path, limit: int) -> bytes:
    if len(data) > limit:
        raise click.UsageError(f"{path} has more than {limit} bytes")
    return data


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file of the user in the error that says why it is none of its format."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def read_vkey(text: str) -> str:
    """Return a vkey that is given by itself, or as @ and a file."""
    return read_file(Path(text[1:]), 1 << 12).decode("utf-8", "replace").strip() if text.startswith("@") else text


def _read_policy(vkey: str | None, path: Path | None) -> Policy:
    """Return the policy; what the command line says goes before the environment."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in ("vkey", "policy") if source(name) is ParameterSource.COMMANDLINE]
    vkey = None if given == ["policy"] else vkey
    path = None if given == ["vkey"] else path
    if bool(vkey) == bool(path):
        raise click.UsageError("give the log's public key with --vkey, or a policy with --policy: one of the two")
    try:
        if path:
            return parse_policy(read_file(path, MAX_POLICY_SIZE))
        return Policy.of_log(read_vkey(vkey or ""))
    except FormatError as error:
        raise click.UsageError(f"{_named(vkey, path)}: {error}") from error


def _named(vkey: str | None, path: Path | None) -> str:
    """Name what cannot be used by its file, and never by its text, which may be a private key."""
    if vkey is None:
        return f"--policy {path}"
    if vkey.startswith("@"):
        return f"--vkey {vkey}"
    return f"--vkey (@{vkey} reads that file)" if os.path.lexists(vkey) else "--vkey"
