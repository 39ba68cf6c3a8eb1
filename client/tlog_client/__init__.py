"""The client of a Treehead log: every answer it returns has been verified.

    from tlog_client import AsyncLog, Log

Names are imported when they are first used, so that verifying offline loads neither asyncio nor an HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlog_client.log import Added, AsyncLog, Fetched, Log, UncheckedError
    from tlog_client.run import OptionError
    from tlog_client.state import ForkProvenError, StateError

__all__ = ["Added", "AsyncLog", "Fetched", "ForkProvenError", "Log", "OptionError", "StateError", "UncheckedError"]

_HOMES = {"OptionError": "run", "ForkProvenError": "state", "StateError": "state"}


def __getattr__(name: str) -> object:
    """Import one of the public names from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module 'tlog_client' has no attribute {name!r}")
    return getattr(import_module(f"tlog_client.{_HOMES.get(name, 'log')}"), name)
