"""Anchors: a start compares the log with heads that were kept outside, and a served log keeps its newest head there."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from tests.support.grow import create, grow, raise_fatal, replace
from tests.support.operating import add_batches
from tests.support.scrape import scrape
from tests.support.server import Server, run_tlogd
from tests.support.wire import connected, head_of
from tests.support.writing import EMPTY_ROOT
from tlog.checkpoint import Checkpoint
from tlog.note import Signer, parse_skey, sign_note
from tlog.server import anchor as anchors
from tlog.server.config import read_config
from tlog.server.errors import StartRefusedError
from tlog.server.head import stored_head
from tlog.server.log import open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tlog.server.config import Config

pytestmark = pytest.mark.invariant("I11")

REFUSED = 3
TRIES = 400
PAUSE_S = 0.025


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve on a port of this machine; return the address of a head there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/checkpoint"
        finally:
            server.shutdown()
            thread.join()


def giving(note: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(note))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(note)

    return answer


@pytest.fixture
def config(data: Path) -> Config:
    """Return the configuration of a log of 701 entries."""
    return read_config(data / "treehead.toml")


def note_of(config: Config) -> bytes:
    return stored_head(config, config.path(config.checkpoints)).note


def signer_of(data: Path) -> Signer:
    return parse_skey((data / "key").read_text().strip())


def anchored(config: Config, *named: str, file: str = "") -> Config:
    return msgspec.structs.replace(config, anchors=named, anchor_file=file)


def opens(config: Config, *, read_only: bool = False) -> int:
    """Open a log, close it, and return its size."""

    async def run() -> int:
        async with open_log(config, raise_fatal, read_only=read_only) as log:
            return log.head.size

    return asyncio.run(run())


def refusal(config: Config, *, read_only: bool = False) -> str:
    with pytest.raises(StartRefusedError) as refused:
        opens(config, read_only=read_only)
    return str(refused.value)


def older(config: Config, tmp_path: Path) -> Config:
    """Return a copy of a log from before its newest commit."""
    shutil.copytree(config.directory, tmp_path / "older")
    add_batches(config, [[b"one more %d" % number] for number in range(3)])
    return read_config(tmp_path / "older" / "treehead.toml")


# What a start refuses.


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("by", ["anchors", "anchor_file", "url"])
def test_a_log_that_was_taken_back_is_refused(config: Config, tmp_path: Path, by: str, *, read_only: bool) -> None:
    taken_back = older(config, tmp_path)
    outside = tmp_path / "head"
    outside.write_bytes(note_of(config))
    with web(giving(note_of(config))) as url:
        named = {"anchors": [str(outside)], "url": [url], "anchor_file": list[str]()}[by]
        message = refusal(
            anchored(taken_back, *named, file=str(outside) if by == "anchor_file" else ""), read_only=read_only
        )
    assert "the log was taken back" in message
    assert "at size 704, and here it is signed up to 701" in message
    assert "tlogd recover-checkpoints" in message
    assert head_of(outside.read_bytes())[0] == 704
    assert note_of(taken_back) == stored_head(taken_back, taken_back.path("checkpoints.db")).note


@pytest.mark.parametrize("size", [1, 255, 256, 257, 512, 513, 700, 701])
def test_a_head_of_another_history_is_refused_at_every_size_and_kept(config: Config, data: Path, size: int) -> None:
    fork = sign_note(Checkpoint(config.origin, size, bytes(32)).format(), [signer_of(data)])
    (data / "outside").write_bytes(fork)
    for found in (anchored(config, "outside"), anchored(config, file="outside")):
        message = refusal(found)
        assert f"the log has forked: the anchor outside has another root at size {size}" in message
        assert "Both notes are evidence" in message
        assert (data / "outside").read_bytes() == fork


def test_every_head_that_the_log_ever_had_is_no_hindrance(tmp_path: Path) -> None:
    config = create(tmp_path / "log")
    notes = [note_of(config)]
    for size in (2, 255, 256, 257, 511, 512, 513, 700):
        start = head_of(notes[-1])[0]
        grow(config, [[b"%d" % number for number in range(start, size)]])
        notes.append(note_of(config))
    for number, note in enumerate(notes):
        (tmp_path / "log" / f"head{number}").write_bytes(note)
    assert opens(anchored(config, *(f"head{number}" for number in range(len(notes))))) == 700


def test_the_head_of_the_empty_tree_is_no_hindrance(config: Config, data: Path) -> None:
    (data / "outside").write_bytes(sign_note(Checkpoint(config.origin, 0, EMPTY_ROOT).format(), [signer_of(data)]))
    assert opens(anchored(config, "outside")) == 701


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing: the newest head is not known from outside"),
        (b"", "is no head of localhost/x"),
        (b"not a note\n", "is no head of localhost/x"),
        (b"x" * (2 << 20), "is no head of localhost/x: a note of more than 1048576 bytes"),
    ],
    ids=["missing", "empty", "no note", "too large"],
)
def test_an_anchor_that_is_none_is_refused_with_what_to_do(
    config: Config, data: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (data / "outside").write_bytes(content)
    message = refusal(anchored(config, "outside"))
    assert said in message
    assert "take it out of the configuration, or leave the option away" in message


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_an_anchor_that_is_no_file_is_refused_and_not_waited_for(config: Config, data: Path, kind: str) -> None:
    if kind == "folder":
        (data / "outside").mkdir()
    else:
        os.mkfifo(data / "outside")
    assert "the anchor" in refusal(anchored(config, "outside"))


def test_a_head_under_another_key_is_refused(config: Config, data: Path) -> None:
    size, root = head_of(note_of(config))
    stranger = Signer(config.origin, bytes(range(32)))
    (data / "outside").write_bytes(sign_note(Checkpoint(config.origin, size, root).format(), [stranger]))
    assert "is no head of localhost/x: no signature by a known key" in refusal(anchored(config, "outside"))


def test_a_head_of_another_log_is_refused(config: Config, data: Path, tmp_path: Path) -> None:
    other = create(tmp_path / "other", origin="localhost/other")
    (data / "outside").write_bytes(note_of(other))
    assert "no key of a log named 'localhost/other' is trusted" in refusal(anchored(config, "outside"))


def test_a_head_with_one_bit_changed_is_refused(config: Config, data: Path) -> None:
    note = bytearray(note_of(config))
    note[-10] ^= 1
    (data / "outside").write_bytes(bytes(note))
    assert "is no head of localhost/x" in refusal(anchored(config, "outside"))


def test_one_bad_anchor_of_three_refuses(config: Config, data: Path) -> None:
    for name in ("one", "three"):
        (data / name).write_bytes(note_of(config))
    assert "two is missing" in refusal(anchored(config, "one", "two", "three"))


# Anchors behind a URL.


def test_an_anchor_at_a_url_is_asked_for_exactly_that_address(config: Config) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        giving(note_of(config))(handler)

    with web(answer) as url:
        assert opens(anchored(config, f"{url}?log=1")) == 701
    assert asked == ["/checkpoint?log=1"]


@pytest.mark.parametrize("status", [204, 206, 301, 302, 404, 500])
def test_an_anchor_that_answers_anything_but_200_is_refused_and_no_redirect_followed(
    config: Config, status: int
) -> None:
    note = note_of(config)
    with (
        web(giving(note)) as good,
        web(giving(b"" if status == 204 else note, status, Location=good)) as url,
    ):
        assert f"answers {status}; mend that" in refusal(anchored(config, url))


def test_an_anchor_that_nobody_serves_is_refused_with_what_to_do(config: Config) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        message = refusal(anchored(config, f"http://127.0.0.1:{free.getsockname()[1]}/checkpoint"))
    assert "does not answer: " in message
    assert "start without it" in message


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://127.0.0.1:99999/", "https://127.0.0.1:x/"])
def test_an_anchor_whose_url_is_none_is_refused(config: Config, url: str) -> None:
    assert "does not answer" in refusal(anchored(config, url))


def test_an_anchor_that_never_stops_answering_is_refused_in_time(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "ANSWER_S", 0.5)
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not over.wait(0.05):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            over.set()

    with web(drip) as url:
        assert "does not answer: not all of it came within 0.5 s" in refusal(anchored(config, url))
        assert over.wait(20), "the connection is still open"


# What a served log writes.


def size_in(path: Path) -> int:
    return head_of(path.read_bytes())[0] if path.exists() else 0


def wait_for_size(path: Path, size: int) -> None:
    for _ in range(TRIES):
        if size_in(path) == size:
            return
        threading.Event().wait(PAUSE_S)
    raise AssertionError(f"{path} has the head of size {size_in(path)}, and not of {size}")


async def add(port: int, entry: bytes) -> bytes:
    """Add an entry, and return the head that the log shows then."""
    async with connected(port) as connection:
        assert (await connection.request("POST", "/add", entry)).status == 200
        return (await connection.request("GET", "/checkpoint")).body


def configure(data: Path, line: str, *limits: str) -> None:
    text = (data / "treehead.toml").read_text().replace("\n[http]", f"{line}\n\n[http]", 1)
    (data / "treehead.toml").write_text(
        text.replace("[limits]\n", "".join(["[limits]\n", *(f"{x}\n" for x in limits)]))
    )


def test_a_served_log_keeps_its_newest_head_outside_byte_for_byte(data: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "head"
    outside.parent.mkdir()
    configure(data, f'anchor_file = "{outside}"', "anchor_seconds = 0.05")
    before = note_of(read_config(data / "treehead.toml"))
    with Server(data) as server:
        wait_for_size(outside, 701)
        assert outside.read_bytes() == before
        note = uvloop.run(add(server.port, b"one more"))
        wait_for_size(outside, 702)
        assert outside.read_bytes() == note
        samples = uvloop.run(scrape(server.port))
        assert samples["treehead_anchor_size", ("log", "localhost/x")] == 702
        assert samples["treehead_anchor_failures_total", ("log", "localhost/x")] == 0
        assert server.stop() == 0
    assert [path.name for path in outside.parent.iterdir()] == ["head"], "a draft was left"


def test_a_graceful_stop_writes_the_last_head_and_a_start_agrees_with_it(data: Path) -> None:
    configure(data, 'anchor_file = "outside"', "anchor_seconds = 3600.0")
    with Server(data) as server:
        wait_for_size(data / "outside", 701)
        notes = [uvloop.run(add(server.port, b"%d" % number)) for number in range(5)]
        assert size_in(data / "outside") == 701, "it was written more often than it may be"
        assert server.stop() == 0
        assert (data / "outside").read_bytes() == notes[-1]
        server.start()
        assert server.stop() == 0


def test_a_killed_log_starts_again_beside_the_older_head_that_it_wrote(data: Path) -> None:
    configure(data, 'anchor_file = "outside"\nanchors = ["outside"]', "anchor_seconds = 3600.0")
    (data / "outside").write_bytes(note_of(read_config(data / "treehead.toml")))
    with Server(data) as server:
        uvloop.run(add(server.port, b"not in the anchor"))
        server.kill()
        server.start()
        wait_for_size(data / "outside", 702)


def test_what_is_admitted_when_a_log_is_closed_is_in_the_last_head_that_it_writes(config: Config, data: Path) -> None:
    async def run() -> None:
        async with open_log(anchored(config, file="outside"), raise_fatal) as log:
            adding = [asyncio.create_task(log.add(b"admitted %d" % number)) for number in range(50)]
            await asyncio.sleep(0)
        await asyncio.gather(*adding)

    asyncio.run(run())
    assert size_in(data / "outside") == 751
    assert (data / "outside").read_bytes() == note_of(config)


def test_a_read_only_log_writes_no_head(config: Config, data: Path) -> None:
    assert opens(anchored(config, file="outside"), read_only=True) == 701
    assert not (data / "outside").exists()


def test_a_head_that_cannot_be_written_is_told_counted_and_tried_again_while_the_log_goes_on(
    data: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "volume" / "head"
    outside.parent.mkdir()
    configure(data, f'anchor_file = "{outside}"', "anchor_seconds = 0.02")
    key = ("treehead_anchor_failures_total", ("log", "localhost/x"))

    async def failures() -> float:
        return (await scrape(server.port))[key]

    with Server(data) as server:
        wait_for_size(outside, 701)
        outside.parent.rename(tmp_path / "unmounted")
        uvloop.run(add(server.port, b"goes on"))
        server.wait_for("anchor.failed")
        assert uvloop.run(until(failures, 3)) >= 3
        assert len(server.events("anchor.failed")) == 1, "each failure is told, and not each reason"
        (tmp_path / "unmounted").rename(outside.parent)
        wait_for_size(outside, 702)
        assert server.stop() == 0
        assert len(server.events("anchor.written")) == 2, "that it is written again is not told"


def test_an_anchor_file_whose_folder_is_missing_is_no_first_time(data: Path, config: Config, tmp_path: Path) -> None:
    outside = tmp_path / "not mounted" / "head"
    message = refusal(anchored(config, file=str(outside)))
    assert f"the anchor {outside} is missing, and so is its folder" in message
    outside.parent.mkdir()
    assert opens(anchored(config, file=str(outside))) == 701
    assert size_in(outside) == 701
    assert (data / "anchored").read_text() == f"{outside}\n"


@pytest.mark.parametrize("name", ["outside", "another"])
def test_an_anchor_file_that_was_written_once_must_be_there(
    config: Config, data: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "volume").mkdir()
    outside = tmp_path / "volume" / "outside"
    assert opens(anchored(config, file=str(outside))) == 701
    taken_back = older(config, tmp_path)
    outside.rename(tmp_path / "unmounted")
    again = anchored(taken_back, file=str(outside.with_name(name)))
    mark = taken_back.path("anchored")
    for read_only in (False, True):
        message = refusal(again, read_only=read_only)
        assert f"{mark} says that the log has written its head outside before" in message
        assert f"remove {mark}" in message
    assert opens(anchored(taken_back)) == 701, "without it, as the message of an anchor says"
    mark.unlink()
    assert opens(again) == 701
    assert mark.exists()
    assert (data / "anchored").exists()


async def until(value: Callable[[], object], least: float) -> float:
    for _ in range(TRIES):
        found = await value()  # type: ignore[misc]  # a coroutine function, said loosely
        if found >= least:
            return float(found)
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize(("size", "message"), [(700, "the log has forked"), (9000, "the log was taken back")])
def test_a_head_of_another_history_that_somebody_else_wrote_stops_the_log_and_is_kept(
    data: Path, size: int, message: str
) -> None:
    configure(data, 'anchor_file = "outside"', "anchor_seconds = 0.02")
    fork = sign_note(Checkpoint("localhost/x", size, b"x" * 32).format(), [signer_of(data)])
    with Server(data) as server:
        wait_for_size(data / "outside", 701)
        (data / "outside").write_bytes(fork)
        uvloop.run(add(server.port, b"one more"))
        server.wait_for("anchor.failed")
        status, body = uvloop.run(refused(server.port))
        assert (status, message in body.decode()) == (503, True)
        assert server.stop() == 0
    assert (data / "outside").read_bytes() == fork
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert (done.returncode, message in done.stderr) == (REFUSED, True)


async def refused(port: int) -> tuple[int, bytes]:
    """Send an entry to a log that takes none; it still gives its head."""
    async with connected(port) as connection:
        for number in range(TRIES):
            answer = await connection.request("POST", "/add", b"too late %d" % number)
            if answer.status != 200:
                assert (await connection.request("GET", "/checkpoint")).status == 200
                return answer.status, answer.body
            await asyncio.sleep(PAUSE_S)
    raise AssertionError("the log goes on")


@pytest.mark.parametrize("content", [b"", b"no head", b"x" * 100_000, b"another key"])
def test_what_is_no_head_of_the_log_is_left_as_it_is_while_the_log_goes_on(data: Path, content: bytes) -> None:
    if content == b"another key":
        content = sign_note(Checkpoint("localhost/x", 9000, bytes(32)).format(), [Signer("localhost/x", bytes(32))])
    configure(data, 'anchor_file = "outside"', "anchor_seconds = 0.02")
    with Server(data) as server:
        wait_for_size(data / "outside", 701)
        (data / "outside").write_bytes(content)
        uvloop.run(add(server.port, b"one more"))
        server.wait_for("anchor.failed")
        assert "somebody else" in str(server.events("anchor.failed"))
        uvloop.run(add(server.port, b"goes on"))
        assert server.stop() == 0
    assert (data / "outside").read_bytes() == content


def test_an_older_head_of_the_log_that_somebody_else_wrote_is_replaced(data: Path) -> None:
    configure(data, 'anchor_file = "outside"', "anchor_seconds = 0.02")
    before = note_of(read_config(data / "treehead.toml"))
    with Server(data) as server:
        uvloop.run(add(server.port, b"one more"))
        wait_for_size(data / "outside", 702)
        (data / "outside").write_bytes(before)
        uvloop.run(add(server.port, b"two more"))
        wait_for_size(data / "outside", 703)
        assert not server.events("anchor.failed")
        assert server.stop() == 0


# The command line.


def test_the_options_add_anchors_and_name_a_file_in_the_working_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    serve = ("serve", "--config", str(data / "treehead.toml"), "--port", "0")
    done = run_tlogd(*serve, "--anchor", "nothing")
    assert done.returncode == REFUSED
    assert f"the anchor {tmp_path / 'nothing'} is missing" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "nothing").write_bytes(b"no head")
    done = run_tlogd(*serve, "--write-anchor", "nothing")
    assert done.returncode == REFUSED
    assert f"the anchor {tmp_path / 'nothing'} is no head of localhost/x" in done.stderr


def test_the_options_are_refused_for_a_server_of_several_logs(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'version = 1\n[[log]]\nprefix = "/a"\ndata = "{data}"\n')
    for option in ("--anchor", "--write-anchor"):
        done = run_tlogd("serve", "--config", file, option, "x")
        assert done.returncode == 2
        assert "of one log" in done.stderr


def test_the_program_refuses_a_log_that_was_taken_back_with_exit_code_3(data: Path, tmp_path: Path) -> None:
    config = read_config(data / "treehead.toml")
    taken_back = older(config, tmp_path)
    (tmp_path / "head").write_bytes(note_of(config))
    with web(giving(note_of(config))) as url:
        for anchor in (str(tmp_path / "head"), url):
            done = run_tlogd("serve", "--config", taken_back.path("treehead.toml"), "--port", "0", "--anchor", anchor)
            assert done.returncode == REFUSED
            (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
            assert line.startswith(f"tlogd: the log was taken back: the anchor {anchor} has seen it at size 704")
    replace(config.path("log.db"), taken_back.path("log.db"))
    replace(config.path("checkpoints.db"), taken_back.path("checkpoints.db"))
    assert opens(anchored(taken_back, str(tmp_path / "head"))) == 704
