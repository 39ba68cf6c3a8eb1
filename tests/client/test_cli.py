"""The command: every kind of end has its code, one line says what happened, and there is never a traceback."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.simulated_log import OTHER, Lie, SimulatedLog, always, changed, entry_of, flipped, serving
from tlog.note import Signer, sign_note
from tlog.policy import Policy
from tlog.proof import parse_proof, verify_proof
from tlog_client import cli, patience, submit
from tlog_client.main import run
from tlog_client.report import MEANINGS, ExitCode


@pytest.fixture
def log() -> SimulatedLog:
    return SimulatedLog.of_size(300)


@pytest.fixture(autouse=True)
def url(log: SimulatedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the log, and name it in the environment."""
    with serving(log) as url:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TREEHEAD_LOG", url)
        monkeypatch.setenv("TREEHEAD_VKEY", log.vkey)
        monkeypatch.setenv("TREEHEAD_STATE_DIR", str(tmp_path / "state"))
        yield url


def start(*arguments: str, **options: object) -> "subprocess.Popen[bytes]":
    code = "from tlog_client.main import main; main()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes)  # type: ignore[call-overload,no-any-return]  # options vary


# What goes well.


def test_submit_get_and_verify_go_together(
    log: SimulatedLog, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    entry = bytes(range(256))
    (tmp_path / "entry").write_bytes(entry)
    assert run(["submit", "entry", "-o", "entry.tlog-proof"]) == 0
    assert capfdbinary.readouterr() == (b"300\n", b"")
    verify_proof(parse_proof((tmp_path / "entry.tlog-proof").read_bytes()), entry, Policy.of_log(log.vkey))
    assert run(["verify", "entry", "entry.tlog-proof"]) == 0
    assert b"verified: entry 300 of log.example/simulated" in capfdbinary.readouterr().out
    assert run(["get", "300"]) == 0
    assert capfdbinary.readouterr().out == entry
    assert run(["get", "300", "-o", "copy"]) == 0
    assert (tmp_path / "copy").read_bytes() == entry
    assert capfdbinary.readouterr() == (b"", b"")
    assert run(["checkpoint"]) == 0
    assert capfdbinary.readouterr().out == log.head().format()


def test_json_is_one_object_a_line(log: SimulatedLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert run(["submit", "a", "a", "--json", "--lines"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [300, 301]
    assert all(line.keys() == {"index", "leaf_hash", "size", "is_new"} for line in lines)
    assert run(["get", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entry"] == "ZW50cnkgNQ=="
    assert run(["checkpoint", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == log.size
    assert run(["monitor", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new"] == log.size


@pytest.mark.parametrize(
    ("data", "entries"), [(b"", []), (b"\n", [b""]), (b"a\n\nb\r\nc", [b"a", b"", b"b\r", b"c"]), (b"a\n", [b"a"])]
)
def test_lines_are_entries_without_their_line_feed(log: SimulatedLog, data: bytes, entries: list[bytes]) -> None:
    out, err = start("submit", "--lines", "-").communicate(data)
    assert err == b""
    indexes = [int(line) for line in out.split()]
    assert [log.tree.entries[index] for index in indexes] == entries


def test_stdin_is_one_entry_without_lines(log: SimulatedLog) -> None:
    out, _ = start("submit").communicate(b"a\nb\n")
    assert out == b"300\n"
    assert log.tree.entries[300] == b"a\nb\n"


def test_many_lines_are_all_appended_and_reported_in_order(log: SimulatedLog) -> None:
    lines = [b"line %d" % number for number in range(1000)]
    out, _ = start("submit", "--lines").communicate(b"\n".join(lines))
    assert [log.tree.entries[int(index)] for index in out.split()] == lines


def test_a_line_is_reported_while_stdin_stays_open() -> None:
    process = start("submit", "--lines")
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"a\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"300\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    said = process.communicate()[1].strip()
    assert said.startswith(b"tlog: stopped; 1 indexes were printed, and 0 more")
    assert said.endswith(b"--skip 1")
    assert b"\n" not in said


def test_a_busy_log_is_asked_again_as_it_wishes(
    log: SimulatedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(patience, "FIRST_DELAY", 0)
    answers = iter([503, 429, 201])

    def busy(request: object, response: object) -> object:
        status = next(answers)
        return response if status == 201 else always(status, retry_after="0")(request, response)  # type: ignore[arg-type]  # passed on

    log.lies["v1/entries"] = busy  # type: ignore[assignment]  # passes on what it is given
    assert run(["submit", "a"]) == 0
    assert log.tree.entries[300:] == [b"a"]
    assert capsys.readouterr().err.count("trying again") == 1
    log.lies["v1/entries"] = always(503)
    log.asked.clear()
    assert run(["submit", "a"]) == ExitCode.UNAVAILABLE
    assert log.asked == ["checkpoint", *["v1/entries/batch"] * submit.MAX_TRIES]


def test_nothing_is_submitted_to_a_log_of_another_key(log: SimulatedLog) -> None:
    other = Signer(log.vkey.partition("+")[0], bytes(32)).verifier.vkey
    for lines in ([], ["--lines"]):
        out, err = start("submit", *lines, "--vkey", other).communicate(b"mine\n")
        assert (out, b"do not rely on this" in err) == (b"", True)
    assert (len(log.tree.entries), "v1/entries/batch" in log.asked) == (300, False)


def test_an_empty_stdin_is_no_entry_and_an_empty_file_is_one(log: SimulatedLog) -> None:
    process = start("submit")
    assert b"stdin is empty" in process.communicate(b"")[1]
    assert (process.returncode, len(log.tree.entries)) == (ExitCode.USAGE, 300)
    assert run(["submit", os.devnull]) == 0
    assert log.tree.entries[300:] == [b""]


def test_where_nobody_listens_nothing_may_have_been_appended() -> None:
    said = start("submit", "--lines", "--log", "http://127.0.0.1:1").communicate(b"a\nb\n")[1]
    assert b"; 0 indexes were printed, and 0 more entries may have been appended; " in said


@pytest.mark.parametrize("arguments", [["checkpoint"], ["verify", "-", "none"], ["submit"], ["get", "0"], ["--help"]])
def test_closed_standard_streams_are_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    code = "import sys; sys.stdin = sys.stdout = None; from tlog_client.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60, check=False)
    assert (done.returncode in set(ExitCode), b"Traceback" in done.stderr) == (True, False)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_is_asked_for_only_where_one_helps(
    log: SimulatedLog, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    log.lies["checkpoint"] = always(status)
    assert run(["checkpoint"]) == ExitCode.NOT_AUTHORISED
    assert ("--token-file" in capsys.readouterr().err) == (status == 401)


def test_a_key_that_is_a_file_without_its_sign_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.vkey").touch()
    assert run(["checkpoint", "--vkey", "log.vkey"]) == ExitCode.USAGE
    assert "(@log.vkey reads that file)" in capsys.readouterr().err
    assert run(["checkpoint", "--vkey", "PRIVATE+KEY+secret"]) == ExitCode.USAGE
    assert "secret" not in capsys.readouterr().err


def test_a_file_that_is_none_of_its_format_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "a").write_bytes(b"a")
    for command in (["verify", "a", "junk"], ["consistency", "junk", "latest"]):
        assert run(command) == ExitCode.VERIFICATION
        assert capsys.readouterr().err.startswith("tlog: junk: ")


def test_a_key_is_read_from_a_file_and_the_command_line_goes_first(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "vkey").write_text(log.vkey + "\n")
    (tmp_path / "policy").write_text(f"log {log.vkey}\nquorum none\n")
    assert run(["checkpoint", "--vkey", "@vkey"]) == 0
    assert run(["checkpoint", "--policy", "policy"]) == 0
    assert run(["checkpoint", "--policy", "policy", "--vkey", "@vkey"]) == ExitCode.USAGE


def test_a_token_is_sent(log: SimulatedLog, tmp_path: Path) -> None:
    seen: list[object] = []

    def look(request: object, response: object) -> object:
        seen.append(dict(request.headers)["Authorization"])  # type: ignore[attr-defined]  # a Request
        return response

    log.lies["checkpoint"] = look  # type: ignore[assignment]  # passes on what it is given
    (tmp_path / "token").write_text("secret\n")
    assert run(["checkpoint", "--token-file", "token"]) == 0
    assert seen == ["Bearer secret"]


# What goes wrong.


def wrong_key(log: SimulatedLog) -> Lie:
    return always(200, sign_note(log.head().format(), [OTHER]))


@pytest.mark.parametrize(
    ("arguments", "lie", "code"),
    [
        pytest.param(["checkpoint"], always(500), ExitCode.UNAVAILABLE, id="500"),
        pytest.param(["checkpoint"], always(503), ExitCode.UNAVAILABLE, id="503"),
        pytest.param(["checkpoint"], always(301), ExitCode.UNAVAILABLE, id="redirect"),
        pytest.param(["checkpoint"], always(404), ExitCode.NOT_FOUND, id="404"),
        pytest.param(["checkpoint"], always(401), ExitCode.NOT_AUTHORISED, id="401"),
        pytest.param(["checkpoint"], always(403), ExitCode.NOT_AUTHORISED, id="403"),
        pytest.param(["checkpoint"], always(400), ExitCode.OTHER, id="400"),
        pytest.param(["checkpoint"], always(200, b"<html>"), ExitCode.VERIFICATION, id="garbage"),
        pytest.param(["checkpoint"], changed(flipped), ExitCode.VERIFICATION, id="changed"),
        pytest.param(["monitor", "--once"], always(404), ExitCode.NOT_FOUND, id="monitor 404"),
        pytest.param(["monitor", "--once"], always(200, b"<html>"), ExitCode.UNAVAILABLE, id="monitor garbage"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_every_failure_has_its_code_and_one_line(
    log: SimulatedLog,
    arguments: list[str],
    lie: Lie,
    code: ExitCode,
    capsys: pytest.CaptureFixture[str],
    *,
    as_json: bool,
) -> None:
    log.lies["checkpoint"] = lie
    assert run([*arguments, *["--json"] * as_json]) == code
    out, err = capsys.readouterr()
    if as_json:
        assert err == ""
        assert {"error", "message", "evidence"} <= json.loads(out).keys()
    else:
        assert out == ""
        assert err.startswith("tlog: ")
        assert err.count("\n") == 1


def test_a_fork_is_4_and_names_its_evidence(
    log: SimulatedLog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["checkpoint"]) == 0
    assert run(["monitor", "--once"]) == 0
    with serving(log.forked(7)) as forked:
        monkeypatch.setenv("TREEHEAD_LOG", forked)
        capsys.readouterr()
        for command in (["checkpoint"], ["monitor", "--once"], ["get", "3"]):
            assert run([*command, "--json"]) == ExitCode.FORK
            fields = json.loads(capsys.readouterr().out)
            assert fields["error"] == "ForkError"
            assert Path(fields["evidence"], "first.checkpoint").read_bytes() == log.note()
            assert run(command) == ExitCode.FORK
            assert fields["evidence"] in capsys.readouterr().err


def test_a_bad_entry_is_an_alarm_of_3(log: SimulatedLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.bundles = log.forked(7).tree
    assert run(["monitor", "--once"]) == ExitCode.VERIFICATION
    assert "ALARM (bad entry): entry 7 " in capsys.readouterr().err
    assert run(["monitor", "--once", "--json"]) == ExitCode.VERIFICATION
    assert json.loads(capsys.readouterr().out)["alarm"] == "bad entry"


def test_what_the_log_does_not_have_is_7() -> None:
    assert run(["get", "300"]) == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["get"],
        ["get", "-1"],
        ["get", "x"],
        ["get", "0", "--vkey", "x"],
        ["get", "0", "--vkey", "@missing"],
        ["get", "0", "--policy", "missing"],
        ["get", "0", "--policy", "empty"],
        ["get", "0", "--log", "ftp://x"],
        ["get", "0", "--log", "http://user:secret@x"],
        ["get", "0", "--token-file", "empty"],
        ["submit", "missing"],
        ["submit", "long"],
        ["submit", "--lines", "long"],
        ["submit", "empty", "empty", "-o", "proof"],
        ["verify", "empty"],
        ["verify", "long", "empty"],
        ["monitor", "--interval", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(bytes(65536))
    assert run(arguments) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "secret" not in err


def test_without_a_key_nothing_is_done(log: SimulatedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREEHEAD_VKEY")
    assert run(["checkpoint"]) == ExitCode.USAGE
    assert log.asked == []


def test_a_proof_is_refused_for_any_flipped_byte(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "entry").write_bytes(entry_of(5))
    proof = log.answer(5).tlog_proof().format()
    path = tmp_path / "proof"
    path.write_bytes(proof)
    assert run(["verify", "entry", "proof"]) == 0
    for at in range(len(proof)):
        path.write_bytes(flipped(proof, at))
        assert run(["verify", "entry", "proof"]) == ExitCode.VERIFICATION
    path.write_bytes(proof)
    (tmp_path / "entry").write_bytes(entry_of(6))
    assert run(["verify", "entry", "proof"]) == ExitCode.VERIFICATION


def test_damaged_state_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint"]) == 0
    (state,) = (tmp_path / "state").glob("*.json")
    state.write_bytes(b"{}")
    capsys.readouterr()
    assert run(["checkpoint"]) == ExitCode.OTHER
    assert str(state) in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_2_and_nothing_is_sent(log: SimulatedLog) -> None:
    assert run(["get", "0", "-o", "missing/folder"]) == ExitCode.USAGE
    assert run(["submit", __file__, "-o", "missing/folder"]) == ExitCode.USAGE
    assert log.asked == []


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("checkpoint", stdout=write)
    os.close(write)
    _, err = process.communicate()
    assert process.returncode == ExitCode.OTHER
    assert b"Traceback" not in err


# The monitor as a process.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_monitor_ends_cleanly_and_only_one_runs(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    process = start("monitor", "--interval", "0.2")
    assert process.stdout
    assert process.stdout.readline() == b"verified: size 300, 300 new\n"
    assert run(["monitor", "--once"]) == ExitCode.OTHER
    assert "another monitor" in capsys.readouterr().err
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.communicate() == (b"", b"")


def test_a_monitor_that_raised_an_alarm_ends_with_its_code_and_says_it_once(log: SimulatedLog) -> None:
    log.bundles = log.forked(7).tree
    process = start("monitor", "--interval", "0.1", "--json", stderr=subprocess.STDOUT)
    assert process.stdout
    assert json.loads(process.stdout.readline())["alarm"] == "bad entry"
    asked = len(log.asked)
    while len(log.asked) < 3 * asked:
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == ExitCode.VERIFICATION
    assert process.communicate()[0] == b""


# How it looks.


def test_help_shows_the_exit_codes_and_every_command_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for code, meaning in MEANINGS.items():
        assert f"{int(code)} {meaning}" in shown
    assert list(MEANINGS) == list(ExitCode)
    for command in cli.COMMANDS:
        assert run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"tlog {command}" in shown.partition("Examples:\n    ")[2]
        assert "--json" in shown or command == "trust"
    for command in ("show", "add", "remove"):
        assert run(["trust", command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"tlog trust {command}" in shown.partition("Examples:\n    ")[2]
        assert "--json" in shown


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert "tlog" in capsys.readouterr().out


def test_verifying_offline_imports_no_network_no_asyncio_and_no_progress_bar(log: SimulatedLog, tmp_path: Path) -> None:
    (tmp_path / "entry").write_bytes(entry_of(5))
    (tmp_path / "proof").write_bytes(log.answer(5).tlog_proof().format())
    program = """
import sys
import tlog_client
from tlog_client.main import run
assert run(["verify", "entry", "proof"]) == 0
unwanted = {"aiohttp", "urllib3", "http", "http.client", "rich", "asyncio", "ssl", "socket", "tlog.server"}
print(sorted(unwanted & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_colour_and_progress_are_for_terminals_only(log: SimulatedLog) -> None:
    log.lies["checkpoint"] = always(500)
    _, err = start("checkpoint").communicate()
    assert b"\x1b" not in err
    main, terminal = pty.openpty()
    start("checkpoint", stderr=terminal).communicate()
    assert b"\x1b[31mtlog: " in os.read(main, 1000)
    start("checkpoint", stderr=terminal, env={**os.environ, "NO_COLOR": "1"}).communicate()
    assert b"\x1b" not in os.read(main, 1000)
    os.close(main)
    os.close(terminal)
