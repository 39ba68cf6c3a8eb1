"""`tlogd config check` and `tlogd config show`."""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from tlog import fetch
from tlog.server import limit
from tlog.server.cli.answer import json_option, say, show_json
from tlog.server.config import CONFIG_NAME, read_server_config
from tlog.server.head import log_verifier
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from tlog.server.config import Config, ServerConfig

_FILE = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")


@click.group()
def config() -> None:
    """Check a configuration, or show all its settings."""


@config.command(
    epilog="""\b
Examples:
  tlogd config check log/treehead.toml
"""
)
@_FILE
@json_option
def check(file: Path, *, as_json: bool) -> None:
    """Check a treehead.toml, or the file of a server of several logs; ends with 2 where it cannot be used."""
    found = read_server_config(file)
    for one in found.logs.values():
        log_verifier(one)
    origins = [one.origin for one in found.logs.values()]
    if as_json:
        show_json({"ok": True, "file": str(file), "origins": origins})
        return
    say(f"{file}: all settings can be used; it is of {', '.join(origins)}")


@config.command(
    epilog="""\b
Examples:
  tlogd config show log/treehead.toml
  tlogd config show --json log/treehead.toml
"""
)
@_FILE
@json_option
def show(file: Path, *, as_json: bool) -> None:
    """Show every setting with its value, and why each limit is there. What is printed is a configuration itself."""
    found = read_server_config(file)
    if as_json:
        show_json(_fields(found))
        return
    for line in _lines(found):
        say(line)


def reasons() -> dict[str, str]:
    """Return why each limit is there, by its setting: what `limit`, or else `fetch`, says below its constant."""
    found = {}
    statements = [pair for module in (fetch, limit) for pair in pairwise(ast.parse(inspect.getsource(module)).body)]
    for statement, following in statements:
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name.removeprefix("MAX_").removeprefix("MIN_").lower()] = " ".join(text.split())
            case _:
                pass
    return found


def _limits(limits: Limits) -> dict[str, dict[str, object]]:
    usual, why = msgspec.structs.asdict(Limits()), reasons()
    return {
        name: {"value": value, "default": usual[name], "reason": why[name]}
        for name, value in msgspec.structs.asdict(limits).items()
    }


def _settings(one: Config) -> dict[str, object]:
    """Return the settings of a log that are not limits, paths as they count."""
    return {
        "version": one.version,
        "origin": one.origin,
        "vkey": one.vkey,
        "key": str(one.path(one.key)),
        "passphrase": one.passphrase,
        "signer": one.signer,
        "checkpoints": str(one.path(one.checkpoints)),
        "anchors": [*one.anchors],
        "anchor_file": one.anchor_file,
        "dedup": one.dedup,
    }


def _fields(found: ServerConfig) -> dict[str, object]:
    http = msgspec.structs.asdict(found.http)
    if set(found.logs) == {""}:
        return {**_settings(found.logs[""]), "http": http, "limits": _limits(found.limits)}
    logs = [{"prefix": prefix, "data": one.directory, **_settings(one)} for prefix, one in found.logs.items()]
    return {"version": 1, "log": logs, "http": http, "limits": _limits(found.limits)}


def _lines(found: ServerConfig) -> list[str]:
    """Return the configuration as a file that says everything."""
    lines = []
    if set(found.logs) == {""}:
        lines += [f"{name} = {_value(value)}" for name, value in _settings(found.logs[""]).items()]
    else:
        lines.append("version = 1")
    http = msgspec.structs.asdict(found.http)
    lines += ["", "[http]", *(f"{name} = {_value(value)}" for name, value in http.items()), "", "[limits]"]
    for name, fields in _limits(found.limits).items():
        value = f"{name} = {_value(fields['value'])}"
        note = "" if fields["value"] == fields["default"] else f"  # instead of {_value(fields['default'])}"
        lines += [f"# {fields['reason']}", value + note]
    for prefix, one in found.logs.items():
        if prefix:
            data = (
                f"data = {_value(one.directory)}  # {one.origin}: tlogd config show {Path(one.directory) / CONFIG_NAME}"
            )
            lines += ["", "[[log]]", f"prefix = {_value(prefix)}", data]
    return lines


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
