"""Every command of `tlogd`: help with examples, one line for an error, the right code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from contextlib import chdir
from typing import TYPE_CHECKING

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.grow import create
from tests.support.server import TLOGD, run_tlogd
from tests.support.serving import limit
from tests.support.skips import need_root
from tlog.server.cli import cli
from tlog.server.cli.answer import MEANINGS
from tlog.server.cli.settings import reasons
from tlog.server.errors import Exit
from tlog.server.limit import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operating import Tlogd

COMMANDS = [
    "keygen",
    "init",
    "serve",
    "status",
    "fsck",
    "backup",
    "restore",
    "freeze",
    "signer init",
    "signer serve",
    "repair",
    "recover-checkpoints",
    "config check",
    "config show",
]


def test_every_command_is_known_to_these_tests() -> None:
    names = []
    for name, command in cli.commands.items():
        names += [f"{name} {inner}" for inner in command.commands] if isinstance(command, click.Group) else [name]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_what_they_name_exists(command: str, tlogd: Tlogd) -> None:
    done = tlogd(*command.split(), "--help")
    assert done.code == 0
    examples = [line for line in done.out.partition("Examples:\n")[2].splitlines() if f"tlogd {command}" in line]
    assert examples
    for option in {word for line in examples for word in line.split() if word.startswith("--")}:
        assert option in done.out.partition("Examples:")[0]
    assert command == "serve" or "--json" in done.out


def test_the_help_has_examples_and_every_exit_code(tlogd: Tlogd) -> None:
    done = tlogd("--help")
    assert "tlogd init --origin example.com/log" in done.out
    assert set(MEANINGS) == set(Exit)
    for code, text in MEANINGS.items():
        assert f"{int(code):3}  {text}" in done.out


def test_without_arguments_the_help_is_shown_and_that_is_wrong_usage(tlogd: Tlogd) -> None:
    assert tlogd().code == 2
    assert tlogd("config").code == 2


def test_ctrl_c_is_130(data: Path) -> None:
    script = "import os, signal, sys; from tlog.server import verify; from tlog.server.cli import run\n"
    script += "verify.check_log = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
    script += "run(['fsck', '--config', sys.argv[1]])"
    command = [TLOGD[0].replace("tlogd", "python"), "-c", script, str(data / "treehead.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


def test_a_reader_that_goes_away_is_no_traceback(data: Path) -> None:
    command = [*TLOGD, "config", "show", str(data / "treehead.toml")]
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (1, b"")


def test_closed_standard_streams_are_no_traceback(data: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *TLOGD, "status", "--config", str(data / "treehead.toml")]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# Errors.


@pytest.mark.parametrize("command", ["fsck", "status", "backup F", "restore F", "freeze --yes x"])
def test_an_error_in_json_is_one_object_on_standard_output(command: str, tmp_path: Path, tlogd: Tlogd) -> None:
    done = tlogd(*command.split(), "--config", tmp_path / "nowhere.toml", "--json")
    said = json.loads(done.out)
    assert (done.code, said["exit"], said["error"], done.err) == (2, 2, "ConfigError", "")
    assert "tlogd init" in said["message"]


def test_wrong_usage_in_json_is_one_object_too(tlogd: Tlogd) -> None:
    done = tlogd("fsck", "--json", "--nonsense")
    assert (done.code, json.loads(done.out)["error"], done.err) == (2, "NoSuchOption", "")


def test_init_ends_with_2_for_a_taken_folder_and_a_bad_origin(tmp_path: Path, tlogd: Tlogd) -> None:
    (tmp_path / "taken").mkdir()
    assert tlogd("init", "--origin", "a", "--data", tmp_path / "taken").code == 2
    assert tlogd("init", "--origin", "a b", "--data", tmp_path / "new").code == 2
    assert "leave out the scheme" in tlogd("init", "--origin", "https://a/b", "--data", tmp_path / "new").err
    assert tlogd("init", "--origin", "a", "--data", tmp_path / "new", "--checkpoints", tmp_path / "taken").code == 2
    assert not (tmp_path / "new").exists()


CONFIGS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "not TOML": b"[[[",
    "deep": b"a = " + b"[" * 100_000,
    "a long number": b"version = " + b"9" * 10_000,
    "a long text": b'origin = "' + b"x" * 2_000_000,
    "a date": b"version = 2024-13-01",
    "another version": b'version = 2\norigin = "x"\nvkey = "y"\n',
    "no vkey": b'version = 1\norigin = "x"\n',
    "a broken vkey": b'version = 1\norigin = "x"\nvkey = "y"\n',
    "an unknown setting": b'version = 1\norigin = "x"\nvkey = "y"\nflavour = 1\n',
    "a NUL": b'version = 1\norigin = "x"\nvkey = "y"\nkey = "a\\u0000b"\n',
    "a passphrase": b'version = 1\norigin = "x"\nvkey = "y"\npassphrase = "secret"\n',
    "a limit": b'version = 1\norigin = "x"\nvkey = "y"\n[limits]\nlag = -1\n',
    "no logs": b"version = 1\nlog = []\n",
    "logs that are none": b"version = 1\nlog = 7\n",
    "a log that is nowhere": b'version = 1\n[[log]]\nprefix = "/a"\ndata = "nowhere"\n',
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_cannot_be_used_is_wrong_usage_everywhere(case: str, tmp_path: Path, tlogd: Tlogd) -> None:
    file = tmp_path / "treehead.toml"
    file.write_bytes(CONFIGS[case])
    for command in ("config check", "config show", "status --config", "fsck --config", "backup F --config"):
        if (command, case) == ("config show", "a broken vkey"):
            continue
        done = tlogd(*command.split(), file)
        assert done.code == 2, (command, done)
        assert len(done.err.splitlines()) == 1, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["treehead.toml"]


def test_a_configuration_that_is_no_file_is_wrong_usage(tmp_path: Path, tlogd: Tlogd) -> None:
    for path in (tmp_path, tmp_path / "nowhere", "\udcff", ""):
        done = tlogd("config", "check", path)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    arguments=st.lists(
        st.one_of(
            st.sampled_from(
                [*(word for command in COMMANDS if command != "serve" for word in command.split()), "--json", "--deep"]
            ),
            st.sampled_from(["--config", "--data", "--origin", "--yes", "-o", "--key", "--checkpoints", "--reason"]),
            st.text(max_size=8).filter(lambda text: not {"/", "\0"} & set(text) and "serve" not in text),
            st.sampled_from(["\udcff", "/dev/null", "/", "/nowhere/x", ""]),  # no NUL: no process can be given one
        ),
        max_size=6,
    )
)
def test_any_arguments_end_with_a_documented_code(arguments: list[str], tmp_path: Path, tlogd: Tlogd) -> None:
    with chdir(tmp_path):
        assert tlogd(*arguments).code in set(Exit)


@pytest.mark.parametrize("junk", ["missing", "empty", "folder", "binary", "unreadable"])
@pytest.mark.parametrize("name", ["log.db", "checkpoints.db", "tiles.db", "key", "lock", "treehead.toml"])
def test_junk_in_the_place_of_any_file_is_no_traceback(data: Path, tlogd: Tlogd, name: str, junk: str) -> None:
    path = data / name
    path.unlink(missing_ok=True)
    if junk == "empty":
        path.touch()
    if junk == "folder":
        path.mkdir()
    if junk == "binary":
        path.write_bytes(bytes(range(256)) * 64)
    if junk == "unreadable":
        path.symlink_to(path)  # nobody, not even root, can open it
    config = data / "treehead.toml"
    commands: tuple[list[str | Path], ...] = (
        ["status", "--config", config],
        ["fsck", "--config", config],
        ["backup", data.parent / "backup", "--config", config],
        ["restore", data.parent / "backup", "--config", config],
        ["config", "check", config],
    )
    for command in commands:
        done = tlogd(*command)
        assert done.code in set(Exit)
        assert done.code == 0 or done.err or "damaged:" in done.out
    if junk == "missing" and name in ("log.db", "checkpoints.db"):
        served = run_tlogd("serve", "--config", config, "--port", "0")
        assert served.returncode == 3
        assert served.stderr == f"tlogd: {path} is missing; tlogd fsck --config FILE says what can be done\n"


def test_a_folder_that_cannot_be_written_is_told(data: Path, tlogd: Tlogd) -> None:
    need_root()
    done = tlogd("backup", "/proc/backup", "--config", data / "treehead.toml")
    assert (done.code, len(done.err.splitlines())) == (1, 1), done
    assert tlogd("keygen", "--origin", "a", "-o", "/proc/key").code == 1
    assert tlogd("init", "--origin", "a", "--data", "/proc/log").code == 1


# The settings.


def test_what_is_shown_is_a_configuration_that_says_the_same(data: Path, tlogd: Tlogd) -> None:
    limit(data, rate=77)
    shown = tlogd("config", "show", data / "treehead.toml")
    assert shown.code == 0
    assert "rate = 77  # instead of 0" in shown.out
    table = tomllib.loads(shown.out)
    assert table["limits"]["rate"] == 77
    assert set(table["limits"]) == set(Limits.__struct_fields__)
    (data / "again.toml").write_text(shown.out)
    assert tlogd("config", "check", data / "again.toml").code == 0
    assert tlogd("config", "show", data / "again.toml").out == shown.out


def test_every_limit_has_a_reason() -> None:
    found = reasons()
    for name in Limits.__struct_fields__:
        assert len(found[name]) > 20, name


def test_the_settings_in_json_have_value_default_and_reason(data: Path, tlogd: Tlogd) -> None:
    shown = json.loads(tlogd("config", "show", "--json", data / "treehead.toml").out)
    assert shown["origin"] == "localhost/x"
    assert shown["limits"]["rate"] == {"value": 0, "default": 0, "reason": reasons()["rate"]}


def test_a_server_of_several_logs_is_checked_and_shown(tmp_path: Path, tlogd: Tlogd) -> None:
    for name in ("one", "two"):
        create(tmp_path / name, origin=f"localhost/{name}")
    file = tmp_path / "server.toml"
    file.write_text("version = 1\n" + "".join(f'[[log]]\nprefix = "/{n}"\ndata = "{n}"\n' for n in ("one", "two")))
    done = tlogd("config", "check", file)
    assert (done.code, "localhost/one, localhost/two" in done.out) == (0, True)
    shown = tlogd("config", "show", file)
    assert [log["prefix"] for log in tomllib.loads(shown.out)["log"]] == ["/one", "/two"]
    assert len(json.loads(tlogd("config", "show", "--json", file).out)["log"]) == 2
