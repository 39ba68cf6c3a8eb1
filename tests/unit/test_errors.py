"""The exception tree: "proven bad" and "could not check" never share a branch."""

from tlog import errors
from tlog.errors import CouldNotCheckError, ForkError, FormatError, PushbackError, RefusedError, TreeheadError

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TreeheadError)]


def test_every_error_is_in_one_branch() -> None:
    branches = (FormatError, errors.VerificationError, CouldNotCheckError)
    for error in set(ALL) - {TreeheadError}:
        assert [issubclass(error, branch) for branch in branches].count(True) == 1


def test_a_fork_keeps_both_notes() -> None:
    error = ForkError("split view", first=b"one", second=b"other")
    assert (str(error), error.first, error.second) == ("split view", b"one", b"other")


def test_pushback_and_refusal_keep_what_the_log_said() -> None:
    assert PushbackError("later").retry_after is None
    assert PushbackError("later", retry_after=3).retry_after == 3
    assert RefusedError("no", status=403).status == 403
