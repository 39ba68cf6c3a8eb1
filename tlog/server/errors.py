"""What ends the server, or one request, on its own side."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from tlog.errors import TreeheadError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence


class StartRefusedError(TreeheadError):
    """The state on disk does not fit together, so the log is not opened; the message says what to do."""


class SourceError(UnavailableError):
    """A source of lost entries cannot be reached, or does not answer in time."""


class InUseError(StartRefusedError):
    """Another process uses the log."""


class MissingFileError(StartRefusedError):
    """A database of the log is missing."""


class OtherHistoryError(StartRefusedError):
    """A head of this log was seen outside that is not in its tree: it was taken back, or has forked."""


class DamagedFileError(StartRefusedError):
    """A file is no database, or not one that this version writes."""


class CommitError(TreeheadError):
    """A commit failed or its outcome is unknown: nothing more is signed, and the process ends."""


class SigningError(TreeheadError):
    """The signer refuses to sign a head, or failed: no signature was given."""


class SignerAwayError(TreeheadError):
    """No signer answers: it has to be started, or is being started."""


class StoppedError(TreeheadError):
    """The log is closing, or stopped to protect itself; the entry was not acknowledged."""


class ReadOnlyError(TreeheadError):
    """The log takes no more entries: it is served read-only, was ended, or has reached its largest size."""


class NoSpaceError(TreeheadError):
    """The disk of the log has too little free space to take entries."""


class RateError(TreeheadError):
    """An address has submitted more than its share.

    Attributes:
        retry_after: Seconds after which it may submit as much as it wanted to.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        """Keep the wait."""
        super().__init__(message)
        self.retry_after = retry_after


class TooLargeError(TreeheadError):
    """A body, an entry or a batch is beyond its limit; the message names it."""


class KeyReusedError(TreeheadError):
    """An Idempotency-Key came again with another request."""


class DamageError(TreeheadError):
    """What the log was about to serve does not verify, so it is not served."""


class DamageFoundError(TreeheadError):
    """A check found that what is stored is damaged.

    Attributes:
        damages: Each damage, in one line.
    """

    def __init__(self, message: str, *, damages: Sequence[str] = ()) -> None:
        """Keep what was found."""
        super().__init__(message)
        self.damages = tuple(damages)


class CreateError(TreeheadError):
    """A log, a key or a backup could not be created; the message says what to do."""


class UnusableNameError(CreateError):
    """What was asked for cannot be created by that name: it is taken, or breaks its rules."""


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
    INTERRUPTED = 130  # by Ctrl-C, as shells count it
