"""What ends the server, or one request, on its own side."""

from __future__ import annotations

import enum

from tlog.errors import TreeheadError


class StartRefusedError(TreeheadError):
    """The state on disk does not fit together, so the log is not opened; the message says what to do."""


class DamagedFileError(StartRefusedError):
    """A file is no database, or not one that this version writes."""


class CommitError(TreeheadError):
    """A commit failed or its outcome is unknown: nothing more is signed, and the process ends."""


class StoppedError(TreeheadError):
    """The log is closing, or stopped to protect itself; the entry was not acknowledged."""


class DamageError(TreeheadError):
    """What the log was about to serve does not verify, so it is not served."""


class CreateError(TreeheadError):
    """A log could not be created; the message says what to do."""


class ConfigError(TreeheadError):
    """The configuration file cannot be used; the message says what to do."""


class Exit(enum.IntEnum):
    """What `tlogd` tells a supervisor."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3  # the state on disk does not fit; a restart will not help
    STOPPED = 4  # stopped to protect the log; a restart finds out what is durable
    DAMAGED = 5  # damage found
