"""The client and the real server, as processes: everything verifies, and a real fork with the real key is found."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support.server import Server, init_log
from tlog.policy import Policy
from tlog.proof import verify_proof
from tlog_client import AsyncLog, Log
from tlog_client.main import run
from tlog_client.report import ExitCode


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


async def test_64_concurrent_adds_come_back_verified(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    entries = [b"entry %d" % number for number in range(640)]
    with Server(tmp_path / "log") as server:
        async with AsyncLog(url_of(server), vkey, state_dir=tmp_path / "state") as log:
            limit = asyncio.Semaphore(64)

            async def add(entry: bytes) -> int:
                async with limit:
                    added = await log.add(entry)
                verify_proof(added.proof, entry, Policy.of_log(vkey))
                return added.index

            indexes = await asyncio.gather(*map(add, entries))
            assert sorted(indexes) == list(range(1, 641))
            fetched = await asyncio.gather(*map(log.get, indexes))
            assert [one.entry for one in fetched] == entries
            assert (await log.checkpoint()).size == 641


def test_a_forked_log_is_found_and_an_honest_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEHEAD_VKEY", init_log(tmp_path / "log"))
    monkeypatch.setenv("TREEHEAD_STATE_DIR", str(tmp_path / "state"))
    for name, content in (("ours", b"ours\n" * 300), ("theirs", b"theirs\n" * 600)):
        (tmp_path / name).write_bytes(content)
    with Server(tmp_path / "log") as server:
        log = ["--log", url_of(server)]
        assert run(["submit", "--lines", str(tmp_path / "ours"), *log]) == 0
        assert run(["monitor", "--once", *log]) == 0
    shutil.copytree(tmp_path / "log", tmp_path / "fork")
    with Server(tmp_path / "log") as server:
        log = ["--log", url_of(server)]
        assert run(["submit", "--lines", str(tmp_path / "ours"), *log]) == 0
        assert run(["monitor", "--once", *log]) == 0
    with Server(tmp_path / "fork") as server:
        log = ["--log", url_of(server)]
        assert (
            run(["monitor", "--once", *log]) == ExitCode.NOT_FOUND
        )  # it lacks the newer tiles: not checkable, no alarm
        assert run(["submit", "--lines", str(tmp_path / "theirs"), *log, "--state-dir", str(tmp_path / "other")]) == 0
        capsys.readouterr()
        for command in (["monitor", "--once"], ["checkpoint"]):
            assert run([*command, *log, "--json"]) == ExitCode.FORK
            evidence = Path(json.loads(capsys.readouterr().out)["evidence"])
            assert {path.name for path in evidence.iterdir()} == {"first.checkpoint", "second.checkpoint"}


def test_the_sync_log_adds_and_gets(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    with Server(tmp_path / "log") as server, Log(url_of(server), vkey, state_dir=None) as log:
        added = log.add(b"one")
        assert log.get(added.index).entry == b"one"
        assert log.get(0).entry
