"""The configuration: `treehead.toml`, of one log in its data directory, or of a server of several.

    version = 1
    origin = "example.com/log"
    vkey = "example.com/log+…"
    key = "key"                             relative paths start at the folder of the file
    passphrase = "file:/run/secrets/log"    of an encrypted key; also file:$CREDENTIALS_DIRECTORY/NAME
    signer = "unix:/run/treehead/signer"    the process that signs, instead of key and passphrase
    checkpoints = "checkpoints.db"
    anchors = ["/mnt/other/log.head"]       copies of the newest head that a start must agree with: files, http(s) URLs
    anchor_file = "/mnt/other/log.head"     where each new head is written, beside the log
    dedup = true                            an entry that the log has is not appended again

    [http]
    host = "127.0.0.1"
    port = 8080
    hot_lane = true                         the requests that come most often are answered without aiohttp's handlers

    [limits]                                see `tlog.server.limit`
    rate = 1000

A server of several logs names their folders, and takes `http` and the limits that are not a log's own from its file:

    version = 1

    [[log]]
    prefix = "/2026"                        its routes are /2026/checkpoint and so on
    data = "/var/lib/treehead/2026"         its treehead.toml says the rest
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from tlog.server.errors import ConfigError
from tlog.server.limit import Limits

CONFIG_NAME = "treehead.toml"

VERSION = 1

S = TypeVar("S", bound=msgspec.Struct)

_CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
_MAX_FILE = 1 << 20
_Path = Annotated[str, Meta(pattern=r"^[^\x00]+$")]


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server listens, and whether the requests that come most often have a lane of their own."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    hot_lane: bool = True


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of one log; `directory` is the folder of the file, and is set on reading."""

    version: int
    origin: str
    vkey: str
    key: _Path = "key"
    passphrase: Annotated[str, Meta(pattern=r"^(file:[^\x00]+)?$")] = ""
    signer: Annotated[str, Meta(pattern=r"^(unix:[^\x00]+)?$")] = ""
    checkpoints: _Path = "checkpoints.db"
    anchors: tuple[_Path, ...] = ()
    anchor_file: Annotated[str, Meta(pattern=r"^[^\x00]*$")] = ""
    dedup: bool = True
    http: Http = Http()
    limits: Limits = Limits()
    directory: str = ""

    def path(self, name: str) -> Path:
        """Return a path of the configuration, relative ones from the folder of the file."""
        return Path(self.directory) / name

    def passphrase_path(self) -> Path | None:
        """Return where the passphrase of the key is; None for a key that is not encrypted.

        Raises:
            ConfigError: It is in the credentials of a service manager, and none started this process.
        """
        name = self.passphrase.removeprefix("file:")
        if name.startswith(_CREDENTIALS):
            folder = os.environ.get(_CREDENTIALS[1:-1])
            if not folder:
                raise ConfigError(
                    f"passphrase = {self.passphrase!r}, but {_CREDENTIALS[:-1]} is not set by a service manager"
                )
            name = folder + name[len(_CREDENTIALS) - 1 :]
        return self.path(name) if name else None


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several logs: where its routes begin, and its folder."""

    prefix: Annotated[str, Meta(pattern=r"^(/[a-z0-9._~-]*[a-z0-9_~-])+$", max_length=255)]
    data: _Path


class _ServerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of a server of several logs."""

    version: int
    log: Annotated[list[Mount], Meta(min_length=1)]
    http: Http = Http()
    limits: Limits = Limits()


class ServerConfig(msgspec.Struct, frozen=True):
    """What one process serves.

    Attributes:
        http: Where it listens.
        limits: Those of the process: connections, deadlines, rates.
        logs: Each log by the prefix of its routes: "" alone, or "/name" for each of several.
    """

    http: Http
    limits: Limits
    logs: Mapping[str, Config]


def read_config(path: Path) -> Config:
    """Read the configuration of one log.

    Raises:
        ConfigError: It is missing, not TOML, or has an unknown, missing or wrong setting.
    """
    config = _convert(path, _read(path), Config)
    if config.version != VERSION:
        raise ConfigError(f"{path}: version must be {VERSION}, and not {config.version}")
    if config.directory:
        raise ConfigError(f"{path}: directory is not a setting")
    return msgspec.structs.replace(config, directory=str(path.absolute().parent))


def read_server_config(path: Path) -> ServerConfig:
    """Read the configuration of a server: the file of one log, or of several.

    Raises:
        ConfigError: One of the files is missing, not TOML, or has an unknown, missing or wrong setting.
    """
    table = _read(path)
    if "log" not in table:
        config = read_config(path)
        return ServerConfig(config.http, config.limits, {"": config})
    file = _convert(path, table, _ServerFile)
    if file.version != VERSION:
        raise ConfigError(f"{path}: version must be {VERSION}, and not {file.version}")
    logs = {mount.prefix: read_config(path.absolute().parent / mount.data / CONFIG_NAME) for mount in file.log}
    if len(logs) < len(file.log) or len({config.origin for config in logs.values()}) < len(file.log):
        raise ConfigError(f"{path}: two logs have the same prefix or the same origin")
    if any(one != other and one.startswith(f"{other}/") for one in logs for other in logs):
        raise ConfigError(f"{path}: one log's prefix begins with another's")
    return ServerConfig(file.http, file.limits, logs)


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.loads(file.read(_MAX_FILE).decode())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create a log with: tlogd init --origin NAME --data DIR") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or too deep or long a value for Python
        raise ConfigError(f"{path}: {error}") from error


def _convert(path: Path, table: dict[str, object], kind: type[S]) -> S:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def format_config(config: Config) -> str:
    """Write the file of a log: what it must say, and what is not as it is by default."""

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # then it is a TOML basic string

    usual = msgspec.structs.asdict(Limits())
    limits = {name: value for name, value in msgspec.structs.asdict(config.limits).items() if value != usual[name]}
    return (
        f"version = {VERSION}\n"
        f"origin = {text(config.origin)}\n"
        f"vkey = {text(config.vkey)}\n"
        f"key = {text(config.key)}\n"
        + (f"passphrase = {text(config.passphrase)}\n" if config.passphrase else "")
        + (f"signer = {text(config.signer)}\n" if config.signer else "")
        + f"checkpoints = {text(config.checkpoints)}\n"
        + (f"anchors = [{', '.join(map(text, config.anchors))}]\n" if config.anchors else "")
        + (f"anchor_file = {text(config.anchor_file)}\n" if config.anchor_file else "")
        + ("" if config.dedup else "dedup = false\n")
        + f"\n[http]\nhost = {text(config.http.host)}\nport = {config.http.port}\n"
        + ("" if config.http.hot_lane else "hot_lane = false\n")
        + ("\n[limits]\n" if limits else "")
        + "".join(f"{name} = {value}\n" for name, value in limits.items())
    )
