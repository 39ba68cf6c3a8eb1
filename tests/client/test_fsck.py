"""`tlog fsck`: what is wrong or missing is reported, and an interrupted run ends like one without a break."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.bulk import fill
from tests.support.grow import edit
from tests.support.server import Server, init_log
from tests.support.simulated_log import OTHER, SimulatedLog, always, changed, flipped, serving
from tlog.damage import Unread
from tlog.errors import CouldNotCheckError, FormatError
from tlog.fetch import Request, Response
from tlog.fsck import check_range, fetch_each
from tlog.genesis import Genesis
from tlog.note import sign_note
from tlog.policy import Policy
from tlog_client.finding import parse_checked
from tlog_client.fsck import Fsck, Report, Working
from tlog_client.main import run
from tlog_client.pool import ATTEMPTS, Done, GoneError, Patient, Task
from tlog_client.run import AsyncRunner, drive
from tlog_client.state import ForkProvenError, StateError

T = TypeVar("T")

LARGE = 2 * 65_536 + 700
"""Two whole ranges, and one that is not."""

POLL_S = 0.005
DEADLINE_S = 60.0

Json = dict[str, object]


# The command.


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Json:
        """The report, without what differs from run to run."""
        report = json.loads(self.out)
        assert isinstance(report, dict)
        assert report.pop("timing")["seconds"] > 0
        return report


class Command:
    """`tlog fsck` as a process."""

    def __init__(self, url: str, vkey: str, state: Path, *more: str) -> None:
        code = "from tlog_client.main import main; main()"
        options = ["--vkey", vkey, "--state-dir", str(state), "--json", "--workers", "2", *more]
        command = [sys.executable, "-c", code, "fsck", url, *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TREEHEAD_")}
        self.state = state
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> Ended:
        try:
            out, err = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert "Traceback" not in err
        return Ended(self.process.returncode, out, err)

    def checked(self) -> int:
        """Return how many ranges are kept on disk."""
        return sum(len(json.loads(path.read_bytes())["ranges"]) for path in self.state.glob("*.fsck.json"))

    def wait_for_ranges(self, count: int) -> None:
        """Wait until results of that many ranges are kept on disk."""
        end = time.monotonic() + DEADLINE_S
        while self.checked() < count:
            assert self.process.poll() is None, self.wait()
            assert time.monotonic() < end
            time.sleep(POLL_S)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def log() -> SimulatedLog:
    return SimulatedLog.of_size(700)


@pytest.fixture
def url(log: SimulatedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the log, and name its key and a state folder in the environment."""
    with serving(log, zipped=True) as url:
        monkeypatch.setenv("TREEHEAD_LOG", "http://127.0.0.1:1")
        monkeypatch.setenv("TREEHEAD_VKEY", log.vkey)
        monkeypatch.setenv("TREEHEAD_STATE_DIR", str(tmp_path / "state"))
        yield url


@pytest.mark.parametrize("size", [0, 1, 700])
def test_an_honest_log_is_verified(
    log: SimulatedLog, url: str, size: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log.size = size
    assert run(["fsck", url]) == 0
    assert f"verified: every entry and tile of log.example/simulated, size {size}" in capsys.readouterr().out
    assert run(["fsck", "--log", url, "--json", "--workers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["result"] == "verified"
    assert report["genesis"] == "none"
    assert (report["size"], report["bundles"]) == (size, -(-size // 256))
    assert not list((tmp_path / "state").glob("*.fsck.json"))


def test_all_damage_is_reported_and_kept_apart_from_what_is_missing(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lies["tile/entries/000"] = changed(flipped)
    log.lies["tile/0/001"] = changed(flipped)
    log.lies["tile/entries/002.p/188"] = always(500, b'{"title": "cannot"}')
    assert run(["fsck", url, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["result"], report["damaged"], report["missing"]) == ("damaged", 2, 1)
    assert [(each["path"], each["wrong"]) for each in report["damage"]] == [
        ("tile/entries/000", [255]),
        ("tile/0/001", [255]),
    ]
    assert report["damage"][0]["expected"] == log.tree.mth(255, 256).hex()
    assert report["unread"] == [{"path": "tile/entries/002.p/188", "reason": "the log answered 500: cannot"}]
    assert run(["fsck", url]) == 3
    out = capsys.readouterr().out
    assert "damaged: tile/entries/000, entry 255: entries are not those of the tree\n" in out
    assert "not read: tile/entries/002.p/188: the log answered 500: cannot\n" in out
    assert "NOT verified: log.example/simulated, size 700: 2 damaged, 1 not read\n" in out
    assert "\nverified" not in out


def test_what_is_missing_is_not_damage_and_is_read_by_the_next_run(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lies["tile/0/001"] = always(404)
    assert run(["fsck", url, "--json"]) == 8
    report = json.loads(capsys.readouterr().out)
    assert (report["result"], report["damaged"]) == ("incomplete", 0)
    assert report["unread"] == [{"path": "tile/0/001", "reason": "the log answered 404"}]
    log.lies.clear()
    assert run(["fsck", url]) == 0


def test_a_fork_ends_with_4_and_evidence(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["fsck", url]) == 0
    with serving(log.forked(5)) as other:
        assert run(["fsck", other]) == 4
    assert "signed two trees" in capsys.readouterr().err
    assert len(list((tmp_path / "state" / "evidence").glob("*/*/*.checkpoint"))) == 2


def test_a_head_of_another_key_ends_with_3(log: SimulatedLog, url: str) -> None:
    log.lies["checkpoint"] = always(200, sign_note(log.head().format(), [OTHER]))
    assert run(["fsck", url]) == 3


@pytest.mark.parametrize("part", [b"log.example", b"700", b"\n\n", "\u2014 ".encode(), b"simulated "])
def test_a_flipped_bit_anywhere_in_the_checkpoint_ends_with_3(log: SimulatedLog, url: str, part: bytes) -> None:
    at = log.note().rindex(part)
    for offset in (0, len(part) - 1, len(part) + 10):
        log.lies["checkpoint"] = changed(lambda body, place=at + offset: flipped(body, place))  # type: ignore[misc]  # binds
        assert run(["fsck", url]) == 3


def test_damage_on_the_way_to_the_root_is_located_although_trust_cannot_advance(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.size = 600
    assert run(["checkpoint", "--log", url]) == 0
    log.size = 700
    log.lies["tile/0/002.p/188"] = changed(flipped)
    capsys.readouterr()
    assert run(["fsck", url, "--json"]) == 3
    (damage,) = json.loads(capsys.readouterr().out)["damage"]
    assert (damage["path"], damage["wrong"]) == ("tile/0/002.p/188", [187])


def test_a_given_checkpoint_is_checked_instead_of_the_newest(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "old").write_bytes(log.note(300))
    assert run(["fsck", url]) == 0
    log.lies["tile/entries/002"] = always(404)
    assert run(["fsck", url, "--checkpoint", str(tmp_path / "old")]) == 0
    assert "size 300" in capsys.readouterr().out
    (tmp_path / "old").write_bytes(log.forked(5).note(300))
    assert run(["fsck", url, "--checkpoint", str(tmp_path / "old")]) == 4


def test_the_address_is_given_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fsck", url, "--log", url]) == 2
    assert "once" in capsys.readouterr().err
    assert run(["fsck"]) == 8
    assert run(["fsck", "--workers", "0", url]) == 2


def test_a_log_that_is_busy_for_a_moment_is_verified(log: SimulatedLog, url: str) -> None:
    asked = iter([503, 429, 503])
    busy = always(503, retry_after="0")

    def lie(request: Request, response: Response) -> Response:
        return busy(request, response) if next(asked, None) else response

    log.lies["tile/entries/"] = lie
    assert run(["fsck", url]) == 0


def test_a_log_that_goes_away_could_not_be_checked(
    log: SimulatedLog, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.lies["tile/entries/"] = always(503, retry_after="0")

    def lie(_: Request, response: Response) -> Response:
        return response if "tile/entries/000" not in log.asked else Response(503, {}, b"")

    log.lies["checkpoint"] = lie
    assert run(["fsck", url]) == 8
    assert "503" in capsys.readouterr().err


def test_a_wrong_genesis_entry_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting = Genesis("log.example/simulated", SimulatedLog([]).vkey, 0).format()
    for entry, genesis, code in ((fitting, "fits", 0), (fitting.replace(b"log.e", b"log.f"), "wrong", 3)):
        log = SimulatedLog([entry])
        with serving(log) as url:
            monkeypatch.setenv("TREEHEAD_VKEY", log.vkey)
            assert run(["fsck", url, "--json", "--state-dir", str(tmp_path / genesis)]) == code
        assert json.loads(capsys.readouterr().out)["genesis"] == genesis


# Patience.


async def _patiently(log: SimulatedLog, url: str, waits: list[float]) -> set[str]:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with AsyncRunner(url) as runner:
        flow = fetch_each(check_range(log.size, 0, None))
        return {unread.path for unread in (await Patient(runner, sleep=sleep).run(flow)).unread}


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(always(503), id="busy"),
        pytest.param(always(429, retry_after="7"), id="limited"),
        pytest.param(always(200, b"not gzip", content_encoding="gzip"), id="garbled"),
    ],
)
async def test_what_fails_for_good_is_waited_for_once_and_then_unread(
    log: SimulatedLog, lie: Callable[[Request, Response], Response]
) -> None:
    log.lies["tile/0/001"] = lie
    waits: list[float] = []
    with serving(log) as url:
        assert await _patiently(log, url, waits) == {"tile/0/001"}
    assert len(waits) == ATTEMPTS - 1
    assert min(waits) >= (7 if lie(Request("GET", ""), Response(0, {}, b"")).status == 429 else 0)


async def test_a_log_that_answers_little_by_little_is_waited_for(log: SimulatedLog) -> None:
    allowed = iter([False, False, True] * 1000)
    limited = always(429, retry_after="1")

    def lie(request: Request, response: Response) -> Response:
        return response if next(allowed) else limited(request, response)

    log.lies["tile/"] = lie
    waits: list[float] = []
    with serving(log) as url:
        assert await _patiently(log, url, waits) == set()
    assert len(waits) > 1


async def test_a_log_that_answers_nothing_at_all_is_gone(log: SimulatedLog) -> None:
    with serving(log) as url:
        pass
    with pytest.raises(GoneError):
        await _patiently(log, url, [])


# Interrupted and resumed, without processes.


@pytest.fixture(scope="module")
def large() -> SimulatedLog:
    return SimulatedLog.of_size(LARGE)


@pytest.fixture
def honest(large: SimulatedLog) -> Iterator[SimulatedLog]:
    yield large
    large.lies.clear()
    large.tiles = large.bundles = large.tree
    large.size = LARGE


class Checking:
    """A check of a log in this process.

    Attributes:
        read: The ranges that were read.
        told: What was said.
    """

    def __init__(self, log: SimulatedLog, folder: Path, *, note: bytes | None = None) -> None:
        self.read: list[int] = []
        self.told: list[str] = []
        self._log = log
        self._fsck = Fsck(Policy.of_log(log.vkey), folder, note=note, tell=self.told.append)

    def run(self, order: Sequence[int] = (), stop_after: int = 100) -> Report:
        """Check; the ranges in `order` first, and be interrupted after a number of them."""

        def work(tasks: list[Task]) -> Working:
            first = sorted(tasks, key=lambda task: order.index(task.number) if task.number in order else len(order))
            for task in islice(first, stop_after):
                checking = check_range(task.size, task.number, task.expected)
                self.read.append(task.number)
                yield 1
                yield Done(task.number, drive(self._log, fetch_each(checking)))
            if len(first) > stop_after:
                raise KeyboardInterrupt

        start = drive(self._log, self._fsck.begin())
        return drive(self._log, self._fsck.finish(start, self._fsck.check_ranges(start, work)))


def interrupted(log: SimulatedLog, folder: Path, order: Sequence[int], stop_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        Checking(log, folder).run(order, stop_after)


LIES = {
    "honest": {},
    "bundle": {"tile/entries/300": changed(flipped)},
    "edge": {"tile/0/514.p/188": changed(flipped)},
    "missing": {"tile/0/300": always(404), "tile/entries/003": changed(flipped)},
}


@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_run_that_was_interrupted_anywhere_reports_what_one_without_a_break_does(
    honest: SimulatedLog, tmp_path: Path, lies: str, order: Sequence[int]
) -> None:
    honest.lies.update(LIES[lies])
    report = Checking(honest, tmp_path / "whole").run()
    assert (report.damaged > 0) == (lies != "honest")
    folder = tmp_path / "broken"
    resumed = Checking(honest, folder)
    for _ in range(2):
        interrupted(honest, folder, order, 1)
    assert resumed.run(order) == report
    unread = {1} if lies == "missing" else set()
    assert set(resumed.read) == {order[2]} | unread
    assert "going on" in resumed.told[0]


def test_damage_that_was_seen_before_a_break_is_reported_and_checked_anew_by_the_next_run(
    honest: SimulatedLog, tmp_path: Path
) -> None:
    honest.lies.update(LIES["bundle"])
    interrupted(honest, tmp_path, (1, 0, 2), 1)
    honest.lies.clear()
    assert Checking(honest, tmp_path).run().damaged == 1
    again = Checking(honest, tmp_path)
    assert again.run().damaged == 0
    assert again.read == [0, 1, 2]


def test_what_could_not_be_read_is_all_that_the_next_run_reads(honest: SimulatedLog, tmp_path: Path) -> None:
    honest.lies["tile/entries/300"] = always(404)
    report = Checking(honest, tmp_path).run()
    assert report.unread == (Unread("tile/entries/300", "the log answered 404"),)
    honest.lies.clear()
    again = Checking(honest, tmp_path)
    assert again.run().missing == 0
    assert again.read == [1]


def test_whole_ranges_of_an_older_head_need_no_second_check(honest: SimulatedLog, tmp_path: Path) -> None:
    honest.size = 65_536 + 700
    interrupted(honest, tmp_path, (), 1)
    interrupted(honest, tmp_path, (1,), 0)
    honest.size = LARGE
    grown = Checking(honest, tmp_path)
    assert (grown.run().head.size, grown.read) == (LARGE, [1, 2])


def test_a_range_that_was_not_whole_is_checked_again_when_it_has_grown(honest: SimulatedLog, tmp_path: Path) -> None:
    honest.size = 65_536 + 700
    interrupted(honest, tmp_path, (1, 0), 1)
    honest.size = LARGE
    grown = Checking(honest, tmp_path)
    grown.run()
    assert grown.read == [0, 1, 2]


def test_whole_ranges_count_for_a_smaller_head_too(honest: SimulatedLog, tmp_path: Path) -> None:
    interrupted(honest, tmp_path, (0, 1), 2)
    smaller = Checking(honest, tmp_path, note=honest.note(65_536 + 700))
    assert (smaller.run().head.size, smaller.read) == (65_536 + 700, [1])


def test_what_was_checked_of_another_tree_is_a_fork(honest: SimulatedLog, tmp_path: Path) -> None:
    interrupted(honest, tmp_path, (0,), 1)
    for path in tmp_path.glob("*.json"):
        if not path.name.endswith(".fsck.json"):
            path.unlink()  # trust is lost, what was checked is not
    with pytest.raises(ForkProvenError):
        Checking(honest.forked(5), tmp_path).run()


def test_what_cannot_be_compared_with_the_new_head_is_checked_again(honest: SimulatedLog, tmp_path: Path) -> None:
    honest.size = 65_536 + 700
    interrupted(honest, tmp_path, (0,), 1)
    honest.size = LARGE
    honest.lies["tile/2/"] = changed(flipped)
    grown = Checking(honest, tmp_path)
    report = grown.run()
    assert [damage.path for damage in report.damage] == ["tile/2/000.p/2"]
    assert grown.read == [0, 1, 2]
    assert "beginning anew" in grown.told[0]


def test_a_tile_that_is_wrong_only_once_is_read_again(honest: SimulatedLog, tmp_path: Path) -> None:
    masks = iter([1])
    honest.lies["tile/2/"] = changed(lambda body: body[:-1] + bytes([body[-1] ^ next(masks, 0)]))
    assert Checking(honest, tmp_path).run().damaged == 0


def test_a_genesis_entry_that_cannot_be_read_is_no_success(tmp_path: Path) -> None:
    log = SimulatedLog.of_size(10)
    answers = iter([False])
    log.lies["tile/entries/"] = lambda _, response: response if not next(answers, True) else Response(404, {}, b"")
    with pytest.raises(CouldNotCheckError):
        Checking(log, tmp_path).run()


def test_kept_results_that_are_none_are_refused(honest: SimulatedLog, tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"number": 1, "root": "00", "damage": [{}], "damaged": 1}', '{"number": "1"}'):
        with pytest.raises(FormatError):
            parse_checked(text)
    interrupted(honest, tmp_path, (0,), 1)
    (path,) = tmp_path.glob("*.fsck.json")
    path.write_bytes(path.read_bytes().replace(b"damaged", b"damagee"))
    with pytest.raises(StateError):
        Checking(honest, tmp_path).run()


# Real processes.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make a log of 70,000 entries."""
    data = tmp_path_factory.mktemp("logs") / "log"
    vkey = init_log(data)
    fill(data, 70_000, lambda index: b"entry %d " % index + bytes(index % 500))
    return data, vkey


@pytest.fixture
def served(real: tuple[Path, str]) -> Iterator[tuple[str, str]]:
    with Server(real[0]) as server:
        yield f"http://127.0.0.1:{server.port}", real[1]


def test_a_check_that_was_killed_goes_on_and_reports_the_same(served: tuple[str, str], tmp_path: Path) -> None:
    whole = Command(*served, tmp_path / "whole").wait()
    assert whole.code == 0, whole
    assert (whole.report["size"], whole.report["result"], whole.report["genesis"]) == (70_000, "verified", "fits")
    killed = Command(*served, tmp_path / "state")
    killed.wait_for_ranges(1)
    workers = killed.children()
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    killed.wait()
    _wait_until_ended(workers)
    resumed = Command(*served, tmp_path / "state").wait()
    assert (resumed.code, resumed.report) == (0, whole.report)
    assert "going on: 4464 of 70000 entries" in resumed.err


def _wait_until_ended(pids: list[int]) -> None:
    assert len(pids) >= 2
    end = time.monotonic() + DEADLINE_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < end
        time.sleep(POLL_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_told_to_stop_says_how_to_go_on(
    served: tuple[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    stopped = Command(*served, tmp_path)
    stopped.wait_for_ranges(1)
    workers = stopped.children()
    stopped.process.send_signal(number)
    ended = stopped.wait()
    assert (ended.code, ended.out) == (130, "")
    assert "run the same command again to go on" in ended.err
    _wait_until_ended(workers)
    assert stopped.checked() == 1


def test_a_second_check_of_the_same_log_is_refused(served: tuple[str, str], tmp_path: Path) -> None:
    first = Command(*served, tmp_path)
    first.wait_for_ranges(1)
    first.process.send_signal(signal.SIGSTOP)  # it would be done before the second has begun
    second = Command(*served, tmp_path).wait()
    first.process.send_signal(signal.SIGCONT)
    assert second.code == 1
    assert "another check of this log runs" in second.out
    assert first.wait().code == 0


def test_a_server_that_stops_leaves_the_check_unfinished_and_it_goes_on_later(
    real: tuple[Path, str], tmp_path: Path
) -> None:
    with Server(real[0]) as server:
        url = f"http://127.0.0.1:{server.port}"
        command = Command(url, real[1], tmp_path)
        command.wait_for_ranges(1)
        server.kill()
        ended = command.wait()
        assert ended.code == 8
        assert json.loads(ended.out)["error"] == "UnavailableError"
        server.start()
        resumed = Command(url, real[1], tmp_path).wait()
    assert resumed.code == 0
    assert "going on: 4464 of 70000 entries" in resumed.err


def test_what_the_server_finds_damaged_itself_could_not_be_read(real: tuple[Path, str], tmp_path: Path) -> None:
    data, vkey = real
    with Server(data) as server:
        url = f"http://127.0.0.1:{server.port}"
        with closing(sqlite3.connect(data / "tiles.db")) as connection:
            (kept,) = connection.execute("SELECT gzip FROM bundle WHERE id = 3").fetchone()
        try:
            edit(data / "tiles.db", "UPDATE bundle SET gzip = x'00' WHERE id = 3")
            ended = Command(url, vkey, tmp_path).wait()
        finally:
            edit(data / "tiles.db", ("UPDATE bundle SET gzip = ? WHERE id = 3", (kept,)))
    assert ended.code == 8
    (unread,) = json.loads(ended.out)["unread"]
    assert unread["path"] == "tile/entries/003"
    assert "500" in unread["reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_entries_interrupted_three_times_are_reported_as_without_a_break(tmp_path: Path) -> None:
    data = tmp_path / "log"
    vkey = init_log(data)
    fill(data, 1_000_000, lambda index: b"entry %d" % index)
    with Server(data) as server:
        url = f"http://127.0.0.1:{server.port}"
        whole = Command(url, vkey, tmp_path / "whole").wait()
        assert whole.code == 0
        for count, number in ((2, signal.SIGKILL), (6, signal.SIGINT), (10, signal.SIGKILL)):
            command = Command(url, vkey, tmp_path / "state")
            command.wait_for_ranges(count)
            command.process.send_signal(number)
            assert command.wait().code != 0
        resumed = Command(url, vkey, tmp_path / "state").wait()
    assert (resumed.code, resumed.report) == (0, whole.report)
    assert "going on" in resumed.err
