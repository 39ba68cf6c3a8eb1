"""The exception tree of the core; every error that crosses a public boundary is one of these.

    TreeheadError
    ├── FormatError            bytes that break the specification of their format
    ├── VerificationError      well formed, and wrong: proven bad
    │   ├── ForkError          two signed heads of one log that cannot both be true
    │   └── PolicyError        signed, and not by enough of those that the policy asks for
    └── CouldNotCheckError     nothing was proven, neither good nor bad
        ├── NotFoundError      the log says that it has no such thing
        ├── PushbackError      the log asks to try later
        ├── RefusedError       the log says that the request is wrong, or not allowed
        └── UnavailableError   the log could not be reached, or answered with an error

"Proven bad" and "could not check" never share a branch, so that no caller can mistake one for the other.
"""

from __future__ import annotations


class TreeheadError(Exception):
    """The root of the tree; never raised itself."""


class FormatError(TreeheadError):
    """Bytes that break the specification of their format."""


class VerificationError(TreeheadError):
    """Something well formed that is wrong: a proof, a signature or an entry that does not hold."""


class ForkError(VerificationError):
    """Two validly signed heads of one log that cannot both be true.

    Attributes:
        first: One signed note, as received.
        second: The other signed note, as received.
    """

    def __init__(self, message: str, *, first: bytes, second: bytes) -> None:
        """Keep both notes: they are the evidence."""
        super().__init__(message)
        self.first = first
        self.second = second


class PolicyError(VerificationError):
    """A note without the signatures that the policy asks for."""


class CouldNotCheckError(TreeheadError):
    """Nothing was proven: an answer is missing, not wrong."""


class NotFoundError(CouldNotCheckError):
    """The log answered that it does not have what was asked for."""


class PushbackError(CouldNotCheckError):
    """The log asks to try again later.

    Attributes:
        retry_after: Seconds to wait, or None where the log gave no number.
    """

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """Keep the number of seconds that the log asked for."""
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(CouldNotCheckError):
    """The log answered that the request is wrong, or not allowed.

    Attributes:
        status: The HTTP status, 400 to 499.
    """

    def __init__(self, message: str, *, status: int) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status


class UnavailableError(CouldNotCheckError):
    """The log could not be reached, or answered with an error of its own."""
