"""The commands that read ranges, follow, compare heads, and change what is pinned; and what no input can do to them."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.simulated_log import ORIGIN, OTHER, SimulatedLog, always, entry_of, serving
from tlog.note import Signer, sign_note
from tlog_client import Log
from tlog_client.cli import COMMANDS, cli
from tlog_client.main import run
from tlog_client.monitor import Monitor
from tlog_client.report import ExitCode
from tlog_client.state import state_path


@pytest.fixture
def log() -> SimulatedLog:
    return SimulatedLog.of_size(600)


@pytest.fixture(autouse=True)
def url(log: SimulatedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the log, and name it in the environment."""
    with serving(log) as url:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TREEHEAD_LOG", url)
        monkeypatch.setenv("TREEHEAD_VKEY", log.vkey)
        monkeypatch.setenv("TREEHEAD_STATE_DIR", str(tmp_path / "state"))
        yield url


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    code = "from tlog_client.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Ranges.


def test_entries_are_printed_each_with_a_line_feed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["entries", "254", "258"]) == 0
    assert capfdbinary.readouterr() == (b"entry 254\nentry 255\nentry 256\nentry 257\n", b"")
    assert run(["entries", "598"]) == 0
    assert capfdbinary.readouterr() == (b"entry 598\nentry 599\n", b"")
    assert run(["entries", "7", "7"]) == 0
    assert capfdbinary.readouterr() == (b"", b"")


def test_entries_in_json_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["entries", "5", "7", "--json"]) == 0
    lines = printed(capsys)
    assert [line["index"] for line in lines] == [5, 6]
    assert [base64.b64decode(str(line["entry"])) for line in lines] == [entry_of(5), entry_of(6)]


def test_entries_go_into_a_folder_and_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert run(["entries", "0", "300", "-o", "copy"]) == 0
    assert sorted(int(path.name) for path in (tmp_path / "copy").iterdir()) == list(range(300))
    assert (tmp_path / "copy" / "299").read_bytes() == entry_of(299)
    (tmp_path / "copy" / "3").write_bytes(b"mine")
    assert run(["entries", "0", "10", "-o", "copy"]) == ExitCode.USAGE
    assert (tmp_path / "copy" / "3").read_bytes() == b"mine"
    assert run(["entries", "0", "10", "-o", "copy", "--force"]) == 0
    assert (tmp_path / "copy" / "3").read_bytes() == entry_of(3)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["0", "601"], ExitCode.NOT_FOUND),
        (["601"], ExitCode.NOT_FOUND),
        (["7", "6"], ExitCode.USAGE),
        (["-1"], ExitCode.USAGE),
        (["0", "1", "-o", "missing"], ExitCode.USAGE),
    ],
)
def test_ranges_that_are_none_have_their_code(arguments: list[str], code: ExitCode) -> None:
    assert run(["entries", *arguments]) == code


def test_an_entry_that_is_not_in_the_tree_is_3(log: SimulatedLog) -> None:
    log.bundles = log.forked(300).tree
    assert run(["entries", "299"]) == ExitCode.VERIFICATION


def test_tiles_that_the_log_lacks_are_8_and_not_7(log: SimulatedLog) -> None:
    assert run(["checkpoint"]) == 0
    log.lies["tile/"] = always(404)
    assert run(["entries", "0"]) == ExitCode.UNAVAILABLE
    log.size = 500
    assert run(["checkpoint"]) == ExitCode.UNAVAILABLE
    assert run(["monitor", "--once"]) == ExitCode.UNAVAILABLE


# Following.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tail_prints_entries_and_ends_cleanly(number: signal.Signals) -> None:
    process = start("tail", "--from", "598")
    assert process.stdout
    assert process.stdout.readline() == b"entry 598\n"
    assert process.stdout.readline() == b"entry 599\n"
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.communicate() == (b"", b"")


def test_a_tail_ends_after_as_many_entries_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tail", "--from", "0", "--count", "3", "--json"]) == 0
    assert [line["index"] for line in printed(capsys)] == [0, 1, 2]


def test_a_tail_says_once_that_the_log_is_away(log: SimulatedLog) -> None:
    process = start("tail", "--from", "599")
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"entry 599\n"
    log.lies["checkpoint"] = always(500)
    assert process.stderr.readline() == b"tlog: the log answered 500; trying again\n"
    del log.lies["checkpoint"]
    with Log(os.environ["TREEHEAD_LOG"], log.vkey, state_dir=None) as client:
        client.add(b"new")
    assert process.stdout.readline() == b"new\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.communicate() == (b"", b"")


def test_heads_are_followed_one_a_line(log: SimulatedLog) -> None:
    process = start("checkpoint", "--follow")
    assert process.stdout
    root = base64.b64encode(log.head().root).decode()
    assert process.stdout.readline() == f"600 {root}\n".encode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.communicate() == (b"", b"")


@pytest.mark.parametrize("command", [["tail"], ["checkpoint", "--follow"]])
def test_following_where_nobody_is_is_8(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--log", "http://127.0.0.1:1"]) == ExitCode.UNAVAILABLE
    assert capsys.readouterr().err.startswith("tlog: nothing listens at 127.0.0.1:1; ")


# Two heads.


def test_two_heads_are_consistent_online_and_then_offline(
    log: SimulatedLog, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.size = 300
    assert run(["checkpoint", "-o", "old"]) == 0
    assert (tmp_path / "old").read_bytes() == log.note(300)
    assert capsys.readouterr().out == ""
    log.size = 600
    assert run(["consistency", "trusted", "latest"]) == 0
    assert run(["checkpoint", "-o", "new"]) == 0
    assert run(["consistency", "old", "new", "-o", "proof"]) == 0
    monkeypatch.delenv("TREEHEAD_LOG")
    assert run(["consistency", "old", "new", "--proof", "proof"]) == 0
    assert run(["consistency", "old", "old"]) == 0
    assert run(["consistency", "old", "trusted", "--proof", "proof", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "consistent: size 600 grew out of size 300"
    assert json.loads(lines[-1]) == {"consistent": True, "origin": ORIGIN, "old_size": 300, "new_size": 600}
    value = json.loads((tmp_path / "proof").read_bytes())
    assert [base64.b64decode(item) for item in value["proof"]] == log.tree.proof(300, 600)


def test_a_proof_that_does_not_hold_is_3_and_no_fork(log: SimulatedLog, tmp_path: Path) -> None:
    for size in (300, 500, 600):
        (tmp_path / str(size)).write_bytes(log.note(size))
    assert run(["consistency", "300", "600", "-o", "proof"]) == 0
    whole = json.loads((tmp_path / "proof").read_bytes())
    assert run(["consistency", "300", "500", "--proof", "proof"]) == ExitCode.VERIFICATION
    for change in (
        {"proof": whole["proof"][:-1]},
        {"proof": [*whole["proof"], whole["proof"][0]]},
        {"proof": whole["proof"][::-1]},
        {"proof": [1]},
        {"proof": ["AA=="]},
        {"from": True},
        {"to": "600"},
        {"from": 301},
    ):
        (tmp_path / "bad").write_text(json.dumps({**whole, **change}))
        assert run(["consistency", "300", "600", "--proof", "bad"]) == ExitCode.VERIFICATION
    for content in (b"", b"[]", b"\xff", b"[" * 10_000):
        (tmp_path / "bad").write_bytes(content)
        assert run(["consistency", "300", "600", "--proof", "bad"]) == ExitCode.VERIFICATION


@pytest.mark.parametrize("case", ["the larger is served", "the smaller is served", "equal sizes", "equal, offline"])
def test_a_fork_between_two_heads_is_4_with_both_as_evidence(
    log: SimulatedLog, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = log.forked(3, 500)
    old, new = {
        "the larger is served": (fork.note(400), log.note(600)),
        "the smaller is served": (log.note(300), fork.note(500)),
        "equal sizes": (log.note(500), fork.note(500)),
        "equal, offline": (log.note(500), fork.note(500)),
    }[case]
    if case == "equal, offline":
        monkeypatch.delenv("TREEHEAD_LOG")
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    assert run(["consistency", "old", "new", "--json"]) == ExitCode.FORK
    (line,) = printed(capsys)
    notes = [path.read_bytes() for path in sorted(Path(str(line["evidence"])).iterdir())]
    if case == "the smaller is served":
        assert notes == [new, log.note(600)]  # what the log serves now proves which of the two is the fork
    else:
        assert notes == [old, new]


def test_heads_of_nobody_or_in_another_order_are_refused(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(log.note(300))
    (tmp_path / "new").write_bytes(log.note(600))
    (tmp_path / "foreign").write_bytes(sign_note(log.head().format(), [OTHER]))
    (tmp_path / "junk").write_bytes(b"junk")
    for arguments, code in (
        (["new", "old"], ExitCode.USAGE),
        (["trusted", "new"], ExitCode.USAGE),
        (["missing", "new"], ExitCode.USAGE),
        (["old", "foreign"], ExitCode.VERIFICATION),
        (["old", "junk"], ExitCode.VERIFICATION),
        (["old", "latest", "--log", ""], ExitCode.USAGE),
        (["old", "new", "--log", ""], ExitCode.USAGE),
    ):
        assert run(["consistency", *arguments]) == code, arguments
    log.lies["tile/"] = always(404)
    assert run(["consistency", "old", "new"]) == ExitCode.UNAVAILABLE


# What is pinned.


def test_a_key_is_added_on_purpose_and_the_head_is_kept(
    log: SimulatedLog, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["checkpoint"]) == 0
    assert run(["monitor", "--once"]) == 0
    vkey = OTHER.verifier.vkey
    log.signer = OTHER
    assert run(["checkpoint", "--vkey", vkey]) == ExitCode.OTHER
    assert "tlog trust add" in capsys.readouterr().err
    (tmp_path / "new.vkey").write_text(vkey + "\n")
    assert run(["trust", "add", "@new.vkey"]) == 0
    assert run(["trust", "add", vkey]) == 0
    capsys.readouterr()
    assert run(["trust", "show", "--json"]) == 0
    (shown,) = printed(capsys)
    assert shown["vkeys"] == [os.environ["TREEHEAD_VKEY"], vkey]
    assert shown["origin"] == ORIGIN
    assert {name: shown[name]["size"] for name in ("trust", "monitor")} == {"trust": 600, "monitor": 600}  # type: ignore[index]  # objects
    assert run(["checkpoint", "--vkey", vkey]) == 0
    assert run(["monitor", "--once", "--vkey", vkey]) == 0
    with serving(log.forked(3)) as forked:
        monkeypatch.setenv("TREEHEAD_LOG", forked)
        assert run(["checkpoint"]) == ExitCode.FORK
    capsys.readouterr()
    assert run(["trust", "show"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{ORIGIN}\n  key      ")
    assert "FORK     evidence in " in out


def test_a_key_of_a_log_that_nobody_knows_is_not_added(tmp_path: Path) -> None:
    assert run(["trust", "add", OTHER.verifier.vkey]) == ExitCode.NOT_FOUND
    assert run(["trust", "add", "junk"]) == ExitCode.USAGE
    assert run(["trust", "add", "@missing"]) == ExitCode.USAGE
    assert run(["trust", "show", "elsewhere"]) == ExitCode.NOT_FOUND
    assert run(["trust", "show"]) == 0
    assert not list((tmp_path / "state").glob("*.json"))


def test_a_log_is_forgotten_only_where_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint"]) == 0
    assert run(["monitor", "--once"]) == 0
    path = state_path(tmp_path / "state", ORIGIN, ".json")
    assert run(["trust", "remove", ORIGIN]) == ExitCode.USAGE
    assert "--yes" in capsys.readouterr().err
    assert path.exists()
    assert run(["trust", "remove", "elsewhere", "--yes"]) == ExitCode.NOT_FOUND
    assert run(["trust", "remove", ORIGIN, "--yes"]) == 0
    assert not list((tmp_path / "state").glob("*.json"))
    assert run(["checkpoint"]) == 0


@pytest.mark.parametrize(("typed", "is_there"), [(ORIGIN, False), ("elsewhere", True), ("", True)])
def test_on_a_terminal_the_origin_has_to_be_typed(
    tmp_path: Path, typed: str, *, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["checkpoint"]) == 0
    path = state_path(tmp_path / "state", ORIGIN, ".json")
    monkeypatch.setattr("tlog_client.cli.trust.is_terminal", lambda: True)
    CliRunner().invoke(cli, ["trust", "remove", ORIGIN], input=f"{typed}\n")
    assert path.exists() == is_there


def test_what_is_damaged_is_shown_as_an_error(tmp_path: Path) -> None:
    assert run(["checkpoint"]) == 0
    state_path(tmp_path / "state", ORIGIN, ".json").write_bytes(b"{}")
    assert run(["trust", "show"]) == ExitCode.OTHER
    assert run(["trust", "add", OTHER.verifier.vkey]) == ExitCode.OTHER
    assert run(["trust", "remove", ORIGIN, "--yes"]) == 0


def test_a_key_is_not_added_under_a_running_monitor() -> None:
    process = start("monitor", "--interval", "60")
    assert process.stdout
    assert process.stdout.readline()
    assert run(["trust", "add", OTHER.verifier.vkey]) == ExitCode.OTHER
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)


# Files that are there already, and what is stale.


@pytest.mark.parametrize(
    "command", [["get", "3"], ["checkpoint"], ["submit", "entry"], ["consistency", "old", "latest"]]
)
def test_a_file_is_replaced_only_with_force(
    log: SimulatedLog, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "entry").write_bytes(b"x")
    (tmp_path / "old").write_bytes(log.note(300))
    (tmp_path / "result").write_bytes(b"precious")
    assert run([*command, "-o", "result"]) == ExitCode.USAGE
    assert "--force" in capsys.readouterr().err
    assert log.asked == []
    assert (tmp_path / "result").read_bytes() == b"precious"
    assert run([*command, "-o", "result", "--force"]) == 0
    assert (tmp_path / "result").read_bytes() != b"precious"
    assert run([*command, "-o", "/dev/null"]) == 0


def test_a_log_that_does_not_grow_is_stale_after_as_long_as_is_said(
    log: SimulatedLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(Monitor.__init__, "__defaults__", (lambda *_: None, lambda: now))
    command = ["monitor", "--once", "--max-idle", "2h"]
    assert run(command) == 0
    now += 7200
    assert run(command) == 0
    now += 1
    assert run(command) == ExitCode.STALE
    assert "STALE: no larger head for 7201 s" in capsys.readouterr().out
    assert run([*command, "--json"]) == ExitCode.STALE
    (line,) = printed(capsys)
    assert (line["stale"], line["idle_seconds"]) == (True, 7201)
    log.size = 500
    assert run(command) == ExitCode.STALE
    log.tree.entries.append(b"new")  # type: ignore[attr-defined]  # a list
    log.size = 601
    assert run(command) == 0


@pytest.mark.parametrize("text", ["", "0", "0h", "-1", "1.5", "h", "1w", "٣", "9999999999"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    assert run(["monitor", "--once", "--max-idle", text]) == ExitCode.USAGE


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1h"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    assert run(["monitor", "--once", "--interval", text]) == ExitCode.USAGE


def test_a_policy_of_several_logs_is_a_usage_error_before_anything_is_asked(
    log: SimulatedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Signer("elsewhere", bytes(32)).verifier.vkey
    (tmp_path / "policy").write_text(f"log {log.vkey}\nlog {other}\nquorum none\n")
    monkeypatch.delenv("TREEHEAD_VKEY")
    assert run(["checkpoint", "--policy", "policy"]) == ExitCode.USAGE
    assert "names 2 logs" in capsys.readouterr().err
    assert log.asked == []


def test_skipping_goes_on_where_a_submission_ended(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"".join(b"line %d\n" % number for number in range(50)))
    assert run(["submit", "--lines", "--skip", "48", "lines"]) == 0
    assert log.tree.entries[600:] == [b"line 48", b"line 49"]
    log.lies["v1/entries"] = always(403)
    result = start("submit", "--lines", "--skip", "3", "lines").communicate()[1]
    assert re.search(rb"add --skip 3\b", result)


# No input makes a traceback, and verifying stays light.

WORDS = [
    "-",
    "--",
    "--json",
    "--lines",
    "-o",
    "--proof",
    "--from",
    "--count",
    "--vkey",
    "--policy",
    "--max-idle",
    "--once",
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from([*sorted(COMMANDS.keys() - {"fsck"}), "trust show", "trust add", "trust remove"]),
    st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=5),
    st.binary(max_size=64),
)
def test_no_arguments_and_no_files_make_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], content: bytes
) -> None:
    if "-" in arguments or "\0" in "".join(arguments):
        return  # stdin is not there; and no argument holds a NUL
    nowhere = [] if command.startswith(("verify", "trust")) else ["--log", "http://127.0.0.1:1"]
    once = ["--once"] if command == "monitor" else []  # or it would wait for a log to come
    monkeypatch.setenv("TREEHEAD_STATE_DIR", str(tmp_path / "fuzzed"))
    (tmp_path / "file").write_bytes(content)
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert run([*command.split(), *nowhere, *once, *arguments]) in list(ExitCode)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["proof", "entry", "policy", "vkey", "consistency"]))
def test_no_content_of_a_file_makes_a_traceback(tmp_path: Path, log: SimulatedLog, content: bytes, where: str) -> None:
    for name, honest in (
        ("entry", entry_of(5)),
        ("proof", log.answer(5).tlog_proof().format()),
        ("policy", f"log {log.vkey}\nquorum none\n".encode()),
        ("vkey", log.vkey.encode()),
        ("consistency", b"{}"),
    ):
        (tmp_path / name).write_bytes(content if name == where else honest)
    codes = (ExitCode.DONE, ExitCode.VERIFICATION, ExitCode.USAGE)
    assert run(["verify", "entry", "proof", "--policy", "policy"]) in codes
    assert run(["verify", "entry", "proof", "--vkey", "@vkey"]) in codes
    assert run(["consistency", "proof", "entry", "--proof", "consistency"]) in codes


HEAVY = {
    *("aiohttp", "urllib3", "http", "rich", "asyncio", "ssl", "socket", "select", "selectors", "multiprocessing"),
    *("concurrent", "logging", "unittest", "xml", "email", "sqlite3", "tlog.server", "msgspec", "yarl", "multidict"),
    *("tlog_client.log", "tlog_client.flow", "tlog_client.monitor", "tlog_client.fsck", "tlog_client.submit"),
}
ALLOWED = {"click", "nacl", "_cffi_backend", "cffi", "cbor2", "_cbor2", "tlog", "tlog_client"}


def test_verifying_imports_few_modules_and_none_that_is_heavy(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "entry").write_bytes(entry_of(5))
    (tmp_path / "proof").write_bytes(log.answer(5).tlog_proof().format())
    code = "from tlog_client.main import main; main()"
    command = [sys.executable, "-I", "-X", "importtime", "-c", code, "verify", "entry", "proof"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("verified: entry 5 of ")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "tlog.proof" in imported
    assert imported.isdisjoint(HEAVY)
    known = {*sys.stdlib_module_names, *ALLOWED, "imported package", "org"}  # pickle looks for org.python.core
    assert {name for name in imported if name.partition(".")[0] not in known} <= {"__editable__", "sitecustomize"}
    assert len(imported) < 220
