"""Keeping a private key in the memory of its process: no core dump, and no look from another process of its user."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress

from tlog.server.errors import StartRefusedError

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # prctl(2)


def forbid_core_dumps() -> None:
    """Let no core dump of this process be written; on Linux also let no process of the same user read its memory.

    Raises:
        StartRefusedError: The system does not follow.
    """
    with suppress(OSError, ValueError):  # where a process may change no limits, its service manager has set this one
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    is_off = resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        is_off &= libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 == libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    if not is_off:
        raise StartRefusedError("core dumps of this process cannot be turned off, so it may hold no key")
