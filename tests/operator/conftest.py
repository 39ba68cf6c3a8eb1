"""Logs for the operator's commands."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.grow import create, grow
from tests.support.operating import Tlogd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a log of 701 entries in commits of 100: two full tiles, and entries above them."""
    data = tmp_path_factory.mktemp("template") / "log"
    config = create(data)
    for end in range(101, 702, 100):
        grow(config, [[b"entry %d" % number for number in range(end - 100, end)]])
    return data


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    """Copy the template."""
    return shutil.copytree(template, tmp_path / "log")


@pytest.fixture
def tlogd(capsys: pytest.CaptureFixture[str]) -> Tlogd:
    """Run commands in this process."""
    return Tlogd(capsys)
