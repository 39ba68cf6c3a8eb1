"""The client and the real server, as processes: everything verifies, and a real fork with the real key is found."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support.server import Server, init_log
from tlog.policy import Policy
from tlog.proof import verify_proof
from tlog_client import Added, AsyncLog, Log
from tlog_client.main import run
from tlog_client.report import ExitCode
from tlog_client.submit import Submission


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
    for name, count in (("ours", 300), ("theirs", 600), ("more", 300)):
        (tmp_path / name).write_text("".join(f"{name} {number}\n" for number in range(count)))
    with Server(tmp_path / "log") as server:
        log = ["--log", url_of(server)]
        assert run(["submit", "--lines", str(tmp_path / "ours"), *log]) == 0
        assert run(["monitor", "--once", *log]) == 0
    shutil.copytree(tmp_path / "log", tmp_path / "fork")
    with Server(tmp_path / "log") as server:
        log = ["--log", url_of(server)]
        assert run(["submit", "--lines", str(tmp_path / "more"), *log]) == 0
        assert run(["monitor", "--once", *log]) == 0
    with Server(tmp_path / "fork") as server:
        log = ["--log", url_of(server)]
        assert run(["monitor", "--once", *log]) == ExitCode.UNAVAILABLE  # it lacks newer tiles: not checkable, no alarm
        assert run(["submit", "--lines", str(tmp_path / "theirs"), *log, "--state-dir", str(tmp_path / "other")]) == 0
        capsys.readouterr()
        for command in (["monitor", "--once"], ["checkpoint"]):
            assert run([*command, *log, "--json"]) == ExitCode.FORK
            evidence = Path(json.loads(capsys.readouterr().out)["evidence"])
            assert {path.name for path in evidence.iterdir()} == {"first.checkpoint", "second.checkpoint"}


async def test_batches_come_back_verified_and_duplicates_keep_their_index(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    entries = [b"entry %d" % (number % 3000) for number in range(4096)]
    with Server(tmp_path / "log") as server:
        async with AsyncLog(url_of(server), vkey, state_dir=None) as log:
            await log.checkpoint()
            added = await log.add_many(entries)
            assert [one.index for one in added] == [1 + number % 3000 for number in range(4096)]
            assert [one.is_new for one in added] == [number < 3000 for number in range(4096)]
            for entry, one in zip(entries[::97], added[::97], strict=True):
                verify_proof(one.proof, entry, Policy.of_log(vkey))
            assert not (await log.add(b"entry 7")).is_new
            largest = [bytes([number]) * 65535 for number in range(63)]
            assert [one.index for one in await log.add_many(largest)] == list(range(3001, 3064))
            assert [one.entry async for one in log.entries(3001)] == largest


async def test_a_stream_of_lines_is_appended_once_each_whenever_the_server_is_killed(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    config = tmp_path / "log" / "treehead.toml"
    config.write_text("dedup = false\n" + config.read_text())
    entries = [b"same line" if number % 2 else b"line %d" % number for number in range(30_000)]
    added: list[Added] = []
    notices: list[Exception] = []
    with Server(tmp_path / "log") as server:
        async with AsyncLog(url_of(server), vkey, state_dir=None) as log:
            submission = Submission(log, added.append, notices.append)
            running = asyncio.create_task(submission.run(iter(entries)))
            for reported in (1, 8_000, 16_000):
                while submission.reported < reported:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await running
            assert (await log.checkpoint()).size == 30_001
            assert sorted(one.index for one in added) == list(range(1, 30_001))
            published = [one.entry async for one in log.entries(1)]
    assert [published[one.index - 1] for one in added] == entries
    assert 1 <= len(notices) <= 3


def test_the_sync_log_adds_and_gets(tmp_path: Path) -> None:
    vkey = init_log(tmp_path / "log")
    with Server(tmp_path / "log") as server, Log(url_of(server), vkey, state_dir=None) as log:
        added = log.add(b"one")
        assert log.get(added.index).entry == b"one"
        assert log.get(0).entry
