"""The skip policy keeps its word."""

from pathlib import Path

import pytest

from tests.support import skips


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")


def test_a_tool_that_is_there_is_found() -> None:
    assert Path(skips.need_tool("sh")).is_file()


@pytest.mark.usefixtures("at_home")
def test_a_missing_tool_skips_and_is_named() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^missing tool: no-such-tool$"):
        skips.need_tool("no-such-tool")


@pytest.mark.usefixtures("under_ci")
def test_a_missing_tool_fails_under_ci() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^missing tool: no-such-tool"):
        skips.need_tool("no-such-tool")


@pytest.mark.usefixtures("at_home")
def test_missing_root_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match=r"^missing root$"):
        skips.need_root()


@pytest.mark.usefixtures("under_ci")
def test_missing_root_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match=r"^missing root"):
        skips.need_root()


@pytest.mark.usefixtures("under_ci")
def test_absent_vectors_skip_even_under_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TLOG_VECTORS", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="TLOG_VECTORS"):
        skips.vectors("merkle")
    (tmp_path / "merkle").mkdir()
    assert skips.vectors("merkle") == tmp_path / "merkle"
