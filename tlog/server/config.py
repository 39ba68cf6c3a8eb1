"""The configuration of one log: `treehead.toml` in its data directory.

version = 1
origin = "example.com/log"
vkey = "example.com/log+…"
key = "key"                             relative paths start at the folder of this file
checkpoints = "checkpoints.db"

[http]
host = "127.0.0.1"
port = 8080
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec

from tlog.server.errors import ConfigError

CONFIG_NAME = "treehead.toml"


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server listens."""

    host: str = "127.0.0.1"
    port: int = 8080


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of one log; `directory` is the folder of the file, and is set on reading."""

    version: int
    origin: str
    vkey: str
    key: str = "key"
    checkpoints: str = "checkpoints.db"
    http: Http = Http()
    directory: str = ""

    def path(self, name: str) -> Path:
        """Return a path of the configuration, relative ones from the folder of the file."""
        return Path(self.directory) / name


def read_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: It is missing, not TOML, or has an unknown, missing or wrong setting.
    """
    try:
        config = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Config)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create a log with: tlogd init --origin NAME --data DIR") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.version != 1 or config.directory:
        raise ConfigError(f"{path}: version must be 1, and directory is not a setting")
    return msgspec.structs.replace(config, directory=str(path.absolute().parent))


def format_config(config: Config) -> str:
    """Write the file that `tlogd init` leaves."""

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # then it is a TOML basic string

    return (
        "version = 1\n"
        f"origin = {text(config.origin)}\n"
        f"vkey = {text(config.vkey)}\n"
        f"key = {text(config.key)}\n"
        f"checkpoints = {text(config.checkpoints)}\n"
        f"\n[http]\nhost = {text(config.http.host)}\nport = {config.http.port}\n"
    )
