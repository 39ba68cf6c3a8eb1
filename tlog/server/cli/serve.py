"""`tlogd serve` and `tlogd freeze`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from tlog.server.cli.answer import config_option, confirm, entries, json_option, one_log, say, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlog.server.config import ServerConfig


@click.command(
    epilog="""\b
Examples:
  tlogd serve --config log/treehead.toml
  tlogd serve --config log/treehead.toml --host 0.0.0.0 --port 80
  tlogd serve --config log/treehead.toml --read-only
  tlogd serve --config log/treehead.toml --write-anchor /mnt/other/log.head
  tlogd serve --config log/treehead.toml --anchor /mnt/other/log.head --anchor https://mirror.example/checkpoint

\b
The file of a server of several logs:
  version = 1
  [[log]]
  prefix = "/2026"
  data = "/var/lib/treehead/2026"
"""
)
@click.option(
    "--config",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The treehead.toml of a log, or the file of a server of several.",
)
@click.option("--host", metavar="H", help="Address to listen on, instead of the configuration's.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="Port; 0 takes a free one and logs it.")
@click.option("--read-only", is_flag=True, help="Take no entries; needs no key.")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="FILE|URL",
    help="Refuse to start where this copy of the newest head has seen more; adds to the configuration's.",
)
@click.option("--write-anchor", metavar="FILE", help="Keep a copy of the newest head here, best on another machine.")
def serve(
    file: Path,
    host: str | None,
    port: int | None,
    *,
    read_only: bool,
    anchors: tuple[str, ...],
    write_anchor: str | None,
) -> int:
    """Serve a log, or several, until SIGTERM or SIGINT; a second one ends it at once."""
    import uvloop

    from tlog.server.config import read_server_config

    with _left_out("rich"):
        from tlog.server.api.process import serve as run_server

    config = _with_anchors(read_server_config(file), anchors, write_anchor)
    where = host or config.http.host, config.http.port if port is None else port
    return uvloop.run(run_server(config, *where, read_only=read_only))


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Let a package seem not to be installed: structlog imports rich where it is, for nothing and 0.1 s."""
    found = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # this is how the import system is told
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not None:
            sys.modules[name] = found


def _with_anchors(config: ServerConfig, anchors: tuple[str, ...], write_anchor: str | None) -> ServerConfig:
    """Return a configuration with the anchors of the command line; paths on that are of the working directory."""
    if not anchors and write_anchor is None:
        return config
    if set(config.logs) != {""}:
        raise click.UsageError("--anchor and --write-anchor are of one log; of several, each names its own in its file")
    named = [one if one.startswith(("http://", "https://")) else str(Path(one).absolute()) for one in anchors]
    (one,) = config.logs.values()
    file = one.anchor_file if write_anchor is None else str(Path(write_anchor).absolute())
    log = msgspec.structs.replace(one, anchors=(*one.anchors, *named), anchor_file=file)
    return msgspec.structs.replace(config, logs={"": log})


@click.command(
    epilog="""\b
Examples:
  tlogd freeze --config log/treehead.toml --reason "moved to example.com/log2"
  tlogd freeze --config log/treehead.toml --yes example.com/log
"""
)
@config_option
@click.option(
    "--reason", default="", metavar="TEXT", help="Why, for people; one line in the entry, for everybody to see."
)
@click.option(
    "--yes", metavar="ORIGIN", help="The log's origin: yes, that one. Needed where there is no terminal to ask."
)
@json_option
def freeze(file: Path, reason: str, yes: str | None, *, as_json: bool) -> None:
    """End a log FOR EVER, with a signed last entry. It is served on, read-only; this cannot be undone.

    Stop the log first. The key is needed for this once more, and never again.
    """
    import uvloop

    from tlog.errors import FormatError
    from tlog.freeze import check_reason
    from tlog.server.api.journal import configure_logging
    from tlog.server.api.process import exit_stopped
    from tlog.server.freeze import freeze_log

    config = one_log(file)
    try:
        check_reason(reason)
    except FormatError as error:
        raise click.UsageError(str(error)) from error
    confirm(
        config.origin,
        yes,
        "this ends the log for ever",
        f"This ends the log {config.origin} for ever: it takes no entry any more, and nobody can undo that.",
    )
    configure_logging()
    placed = uvloop.run(freeze_log(config, reason, exit_stopped))
    if as_json:
        show_json({"origin": config.origin, "index": placed.index, "size": placed.head.size, "reason": reason})
        return
    say(f"The log {config.origin} ended with entry {placed.index}: it has {entries(placed.head.size)} for ever.")
    say(f"Serve it on, read-only:\n\n  tlogd serve --config {file}")
