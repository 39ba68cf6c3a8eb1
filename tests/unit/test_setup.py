"""The set-up: versions, locks, `./dev`, and what the two wheels bring with them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.skips import CHECKOUT, need_tool

LOCKS = sorted((CHECKOUT / "requirements").glob("*.txt"))


def project(folder: str) -> dict[str, object]:
    table = tomllib.loads((CHECKOUT / folder / "pyproject.toml").read_text())["project"]
    assert isinstance(table, dict)
    return table


def names(requirements: object) -> set[str]:
    """Return the distributions that a list of requirements names, in the form that tools compare."""
    assert isinstance(requirements, list)
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def succeed(*command: str | Path) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------ versions and locks


def test_both_distributions_have_one_version() -> None:
    core, client = project("."), project("client")
    assert client["version"] == core["version"]
    assert isinstance(client["dependencies"], list)
    assert f"treehead=={core['version']}" in client["dependencies"]


def test_every_lock_is_there() -> None:
    assert [path.name for path in LOCKS] == ["dev.txt", "run.txt", "uv.txt"]


def pins(lock: Path) -> dict[str, str]:
    """Return what a lock pins, each with its version, after checking that a hash follows every pin."""
    found = {}
    for requirement in re.sub(r"\\\n", " ", lock.read_text()).splitlines():
        if requirement.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)( ;.*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", requirement)
        assert match, requirement
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_hashes_and_names_no_place(lock: Path) -> None:
    assert pins(lock)
    text = lock.read_text()
    assert "./dev lock" in text.splitlines()[1]
    assert "://" not in text
    assert str(CHECKOUT.parent) not in text


def test_the_small_lock_is_part_of_the_large_one() -> None:
    run_lock, dev_lock = (pins(CHECKOUT / "requirements" / name) for name in ("run.txt", "dev.txt"))
    assert run_lock.items() < dev_lock.items()


# ------------------------------------------------------------------------------------------------------------- ./dev


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_dev_is_posix_shell(shell: str) -> None:
    succeed(need_tool(shell), "-n", CHECKOUT / "dev")


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_dev_shows_its_commands(arguments: list[str]) -> None:
    text = succeed(CHECKOUT / "dev", *arguments)
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE) == ["demo", "test", "lint", "bench", "serve", "lock"]


def test_dev_refuses_an_unknown_command() -> None:
    done = run(CHECKOUT / "dev", "tset")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dev: there is no command tset\nusage:")


@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_dev_names_a_python_that_does_not_run(python: str, tmp_path: Path) -> None:
    (tmp_path / "dev").write_bytes((CHECKOUT / "dev").read_bytes())
    done = run("sh", tmp_path / "dev", "demo", PYTHON=python)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"dev: {python} does not run .* python3-venv\)\n", done.stderr)


# ---------------------------------------------------------------------------------------------------------- the wheels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both wheels, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (CHECKOUT, CHECKOUT / "client"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=source,
            capture_output=True,
            check=True,
        )
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def clean(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which only the client was installed, at the versions of the lock."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    uv = str(Path(sys.prefix) / "bin" / "uv")
    succeed(uv, "-q", "venv", "--python", sys.executable, folder)
    install = [uv, "-q", "pip", "install", "--python", str(folder), "-c", "requirements/run.txt", *map(str, wheels)]
    # The set-up has filled uv's cache a moment or a month ago; the registry is asked only for what has gone from it.
    if run(*install, "--offline").returncode:
        succeed(*install)
    return folder / "bin"


def test_the_wheels_are_typed_and_hold_one_package_each(wheels: list[Path]) -> None:
    listings = [succeed(sys.executable, "-m", "zipfile", "-l", wheel) for wheel in wheels]
    packages = [set(re.findall(r"^(\w+)/", listing, re.MULTILINE)) for listing in listings]
    assert packages == [{"tlog"}, {"tlog_client"}]
    assert all("/py.typed " in listing for listing in listings)
    assert all("/METADATA " in listing for listing in listings)


def test_the_client_brings_no_dependency_of_the_server(clean: Path) -> None:
    uv = Path(sys.prefix) / "bin" / "uv"
    installed = names(succeed(uv, "pip", "freeze", "--python", clean / "python").splitlines())
    core, client = project("."), project("client")
    extras = core["optional-dependencies"]
    assert isinstance(extras, dict)
    assert installed >= {"treehead-client"} | names(client["dependencies"]) | names(core["dependencies"])
    server_only = names(extras["server"]) - names(client["dependencies"])
    assert server_only >= {"aiosqlite", "isal", "msgspec", "structlog", "uvloop"}
    assert not installed & server_only


@pytest.mark.parametrize("command", ["init --origin example.org/log --data log", "serve --config pyproject.toml"])
def test_tlogd_says_what_to_install_where_the_server_is_missing(clean: Path, command: str) -> None:
    done = run(clean / "tlogd", *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"tlogd: .*treehead\[server\].*\n", done.stderr)


def test_tlog_runs_without_the_server(clean: Path) -> None:
    assert "verify" in succeed(clean / "tlog", "--help")
