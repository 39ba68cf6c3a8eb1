"""When a test may be skipped, and when it must not be.

A missing tool or missing root skips a test on a developer's machine. Under CI (`CI=true`) it fails the test instead:
what CI leaves out nobody checks. Absent vectors skip everywhere, because they are not part of the project. The summary
lists every skip with its reason (`-ra` in pyproject.toml).
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds pyproject.toml."""


def need_tool(name: str) -> str:
    """Return the path of a program, or skip the test where it is missing.

    Raises:
        pytest.skip.Exception: It is missing.
        pytest.fail.Exception: It is missing, under CI.
    """
    return shutil.which(name) or go_without(f"missing tool: {name}")


def need_root() -> None:
    """Skip the test unless root runs it.

    Raises:
        pytest.skip.Exception: Somebody else runs it.
        pytest.fail.Exception: Somebody else runs it, under CI.
    """
    if os.geteuid() != 0:
        go_without("missing root")


def vectors(folder: str) -> Path:
    """Return a folder of the vectors, such as `merkle`, or skip the test where it is absent.

    They are in `$TLOG_VECTORS`, else in `../shared/vectors` beside the checkout.

    Raises:
        pytest.skip.Exception: It is absent.
    """
    path = Path(os.environ.get("TLOG_VECTORS") or CHECKOUT.parent / "shared" / "vectors") / folder
    if not path.is_dir():
        pytest.skip(f"no vectors in {path}; TLOG_VECTORS may name their folder", allow_module_level=True)
    return path


def go_without(reason: str) -> NoReturn:
    """Skip the test, or fail it under CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI skips nothing", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
