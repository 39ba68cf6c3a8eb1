"""The client of a Treehead log: every answer it returns has been verified.

    from tlog_client import AsyncLog, Log

Names are imported when they are first used, so that verifying offline loads neither asyncio nor an HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlog_client.flow import Added, Fetched, Published, UncheckedError
    from tlog_client.log import AsyncLog, Log
    from tlog_client.run import OptionError
    from tlog_client.state import ForkProvenError, StateError

_HOMES = {
    "Added": "flow",
    "AsyncLog": "log",
    "Fetched": "flow",
    "ForkProvenError": "state",
    "Log": "log",
    "OptionError": "run",
    "Published": "flow",
    "StateError": "state",
    "UncheckedError": "flow",
}

__all__ = [
    "Added",
    "AsyncLog",
    "Fetched",
    "ForkProvenError",
    "Log",
    "OptionError",
    "Published",
    "StateError",
    "UncheckedError",
]


def __getattr__(name: str) -> object:
    """Import one of the public names from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tlog_client' has no attribute {name!r}")
    return getattr(import_module(f"tlog_client.{_HOMES[name]}"), name)
