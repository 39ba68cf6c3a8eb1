"""Tools of the tiled-log world that others wrote: they read and fill a real `tlogd`, and the core reads theirs."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.conftest import SIZE, SOURCE, served
from tests.support.grow import create, grow, stored
from tests.support.server import Server
from tests.support.skips import CHECKOUT
from tests.support.static import framed
from tests.support.wire import head_of
from tlog.note import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.conftest import Served, Tools

pytestmark = pytest.mark.timeout(600)  # the first test waits until everything is built

LIBRARIES = ["sumdb", "torchwood", "tessera"]
TLOG = str(Path(sys.executable).with_name("tlog"))


def fetch(url: str, body: bytes | None = None, **headers: str) -> bytes:
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=30) as response:
        data: bytes = response.read()
    return data


@contextmanager
def small(folder: Path, size: int) -> Iterator[Served]:
    """Serve a log of its own that has a number of entries."""
    data = folder / f"log-{size}"
    grow(create(data, origin="localhost/small"), [[b"entry %d" % number for number in range(1, size)]])
    with Server(data) as server:
        yield served(data, server)


# Programs of Tessera, as they were published.


def fsck(tools: Tools, url: str, key: Path, *options: str) -> str:
    """Run the checker over a log; it says what it found on standard error, and its exit code is always 0."""
    return tools.run("fsck", f"--storage_url={url}", f"--public_key={key}", "--ui=false", *options).stderr


def found_good(said: str, checkpoint: bytes) -> bool:
    size, root = head_of(checkpoint)
    return f"Successfully fsck'd log with size {size} and root {b64encode(root).decode()}" in said


@pytest.mark.parametrize("size", [1, 255, 256, 257])
def test_tesseras_fsck_finds_no_fault_in_a_small_log(tools: Tools, tmp_path: Path, size: int) -> None:
    with small(tmp_path, size) as log:
        said = fsck(tools, log.url, log.data / "vkey")
        assert found_good(said, fetch(log.url + "/checkpoint")), said


def test_tesseras_fsck_finds_no_fault_in_a_large_log_and_refuses_another_key(tools: Tools, large: Served) -> None:
    said = fsck(tools, large.url, large.data / "vkey", "--N=8")
    assert f"size {SIZE} " in said
    assert found_good(said, fetch(large.url + "/checkpoint")), said
    other = large.data.parent / "other-vkey"
    other.write_text(Signer("localhost/interop", bytes(32)).verifier.vkey)
    said = fsck(tools, large.url, other)
    assert "Successfully" not in said
    assert "fsck failed" in said


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tesseras_mirror_is_the_log_that_tessera_builds_from_the_same_bundles(
    tools: Tools, large: Served, tmp_path: Path
) -> None:
    tools.output("mirror", f"--source_url={large.url}", f"--storage_dir={tmp_path / 'mirror'}")
    assert (tmp_path / "mirror" / "checkpoint").read_bytes() == fetch(large.url + "/checkpoint")
    said = fsck(tools, f"file://{tmp_path / 'mirror'}", large.data / "vkey")
    assert found_good(said, fetch(large.url + "/checkpoint")), said
    tools.output("migrate", f"--source_url={large.url}", f"--storage_dir={tmp_path / 'built'}")
    mirrored = files(tmp_path / "mirror" / "tile")
    assert mirrored == files(tmp_path / "built" / "tile")
    assert len(mirrored) == 2 * 274 + 2 + 1


def test_tesseras_hammer_adds_and_reads_at_once_and_its_duplicates_do_not_grow_the_log(
    tools: Tools, tmp_path: Path
) -> None:
    with small(tmp_path, 1) as log:
        done = tools.run(
            "hammer",
            f"--log_url={log.url}",
            f"--log_public_key={log.vkey}",
            "--max_write_ops=400",
            "--num_writers=16",
            "--dup_chance=0.2",
            "--max_read_ops=400",
            "--num_readers_random=4",
            "--num_readers_full=4",
            "--leaf_write_goal=600",
            "--max_runtime=30s",
            "--show_ui=false",
            "--v=2",
        )
        assert done.returncode == 0, done.stderr
        assert "Reached tree size goal of 601" in done.stderr
        warnings = [line for line in done.stderr.splitlines() if not line.startswith("I")]
        assert all("context canceled" in line for line in warnings), warnings  # what it was at when it reached its goal
        assert done.stderr.count("Wrote leaf at index") > 600
        assert done.stderr.count("LeafReader getting") > 100
        assert found_good(fsck(tools, log.url, log.data / "vkey"), fetch(log.url + "/checkpoint"))
    entries = stored(log.data)
    assert all(re.fullmatch(rb" \d+", entry) for entry in entries[1:])
    assert len(set(entries)) == len(entries) > 600


def test_a_log_below_a_prefix_is_read_and_filled_like_one_at_the_root(tools: Tools, tmp_path: Path) -> None:
    for name, size in (("one", 300), ("two", 1)):
        grow(create(tmp_path / name, origin=f"localhost/{name}"), [[b"%d" % number for number in range(1, size)]])
    (tmp_path / "treehead.toml").write_text(
        'version = 1\n[[log]]\nprefix = "/logs/one"\ndata = "one"\n[[log]]\nprefix = "/two"\ndata = "two"\n'
    )
    with Server(tmp_path) as server:
        for name, prefix in (("one", "/logs/one"), ("two", "/two")):
            log = served(tmp_path / name, server)
            url = log.url + prefix
            index = int(fetch(f"{url}/add", b"to " + name.encode()))
            checkpoint = fetch(f"{url}/checkpoint")
            assert head_of(checkpoint)[0] == index + 1
            said = fsck(tools, url, log.data / "vkey")
            assert found_good(said, checkpoint), said
            for library in LIBRARIES:
                assert json.loads(tools.output("interop", "read", library, url, log.vkey))["head"]["size"] == index + 1


@contextmanager
def tessera(tools: Tools, folder: Path, signer: Signer) -> Iterator[str]:
    """Run Tessera's own server on a free port, with a key of ours."""
    (folder / "key").write_text(signer.skey)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        str(tools.folder / "tessera"),
        f"--storage_dir={folder / 'data'}",
        f"--private_key={folder / 'key'}",
        f"--listen={address}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_size(f"http://{address}", 0)
            yield f"http://{address}"
        finally:
            process.kill()


def wait_for_size(url: str, size: int) -> None:
    """Wait until a log that publishes once a second serves a head of a size."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if head_of(fetch(url + "/checkpoint"))[0] >= size:
                return
        except OSError:  # it does not listen yet, or has no head yet
            pass
        time.sleep(0.05)
    raise TimeoutError(f"no head of size {size}")


def tlog(*arguments: str) -> str:
    done = subprocess.run([TLOG, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_our_commands_read_a_log_that_tessera_serves_and_signs_with_our_key(tools: Tools, tmp_path: Path) -> None:
    signer = Signer("localhost/tessera", bytes(range(32)))
    old = tmp_path / "old.checkpoint"
    found: dict[int, str] = {}
    with tessera(tools, tmp_path, signer) as url, ThreadPoolExecutor(300) as pool:
        options = ["--log", url, "--vkey", signer.verifier.vkey, "--state-dir", str(tmp_path / "state")]
        for known, size in ((0, 300), (300, 310)):
            entries = [f"entry {number}" for number in range(known, size)]
            indexes = pool.map(lambda entry: int(fetch(f"{url}/add", entry.encode())), entries)
            found.update(zip(indexes, entries, strict=True))
            assert sorted(found) == list(range(size))
            wait_for_size(url, size)
            assert tlog("monitor", "--once", *options) == f"verified: size {size}, {size - known} new\n"
            assert str(size) in tlog("checkpoint", *options)
            old.write_bytes(old.read_bytes() if known else fetch(f"{url}/checkpoint"))
        assert tlog("entries", "0", *options) == "".join(f"{found[index]}\n" for index in range(310))
        assert "size 310 grew out of size 300" in tlog("consistency", str(old), "latest", *options)
        assert "size 310" in tlog("fsck", *options)


# Libraries.


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_verifies_the_head_and_every_entry(tools: Tools, large: Served, library: str) -> None:
    found = json.loads(tools.output("interop", "read", library, large.url, large.vkey))
    size, root = head_of(fetch(large.url + "/checkpoint"))
    assert found["head"] == {"origin": "localhost/interop", "size": size, "root": b64encode(root).decode()}
    assert size == SIZE
    assert found["digest"] == hashlib.sha256(framed(stored(large.data))).hexdigest()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_refuses_a_head_that_another_key_has_signed(tools: Tools, large: Served, library: str) -> None:
    other = Signer("localhost/interop", bytes(32)).verifier.vkey
    done = tools.run("interop", "read", library, large.url, other)
    assert done.returncode == 1
    assert "signature" in done.stderr


def questions(count: int) -> list[tuple[str, int, int]]:
    """Return random pairs, and those at the edges of tiles."""
    dice = random.Random(1)
    edges = [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, SIZE - 1, SIZE]
    asked = [("consistency", old, new) for old in edges for new in edges if old <= new]
    asked += [("inclusion", size - 1, size) for size in edges]
    while len(asked) < count:
        size = dice.randrange(1, SIZE + 1)
        asked += [("inclusion", dice.randrange(size), size), ("consistency", dice.randrange(1, size + 1), size)]
    return asked


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_servers_proofs_are_those_that_a_library_makes_from_tiles(
    tools: Tools, large: Served, library: str
) -> None:
    asked = questions(300)
    lines = "".join(f"{kind} {low} {high}\n" for kind, low, high in asked)
    made = tools.output("interop", "prove", library, large.url, large.vkey, lines=lines).splitlines()
    for (kind, low, high), line in zip(asked, made, strict=True):
        answer = json.loads(fetch(f"{large.url}/v1/proofs/{kind}/{low}/{high}"))
        assert answer["proof"] == json.loads(line), (kind, low, high)


def test_proofs_in_one_answer_are_those_that_sumdb_makes_from_tiles(tools: Tools, large: Served) -> None:
    indexes = sorted(random.Random(2).sample(range(SIZE), 256))
    lines = "".join(f"inclusion {index} {SIZE}\n" for index in indexes)
    made = tools.output("interop", "prove", "sumdb", large.url, large.vkey, lines=lines).splitlines()
    body = json.dumps({"indexes": indexes}).encode()
    answer = json.loads(fetch(f"{large.url}/v1/proofs", body, Content_Type="application/json"))
    assert [proof["index"] for proof in answer["proofs"]] == indexes
    assert [proof["proof"] for proof in answer["proofs"]] == [json.loads(line) for line in made]


@pytest.mark.parametrize("index", [0, 1, 2, 65_535, 65_536, SIZE - 1])
def test_torchwood_verifies_a_proof_of_ours_and_refuses_it_for_anything_else(
    tools: Tools, large: Served, tmp_path: Path, index: int
) -> None:
    proof = fetch(f"{large.url}/v1/entries/{index}", Accept="text/x.tlog.proof")
    entry = b64decode(json.loads(fetch(f"{large.url}/v1/entries/{index}"))["entry"])
    (tmp_path / "entry").write_bytes(entry)
    (tmp_path / "other").write_bytes(entry + b" ")
    (tmp_path / "proof").write_bytes(proof)
    tools.output("interop", "verify", large.vkey, tmp_path / "entry", tmp_path / "proof")
    done = tools.run("interop", "verify", large.vkey, tmp_path / "other", tmp_path / "proof")
    assert "verification failed" in done.stderr
    key = Signer("localhost/interop", bytes(32)).verifier.vkey
    assert tools.run("interop", "verify", key, tmp_path / "entry", tmp_path / "proof").returncode == 1


def test_torchwood_verifies_what_our_command_submits(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "entry").write_bytes(b"submitted")
    with small(tmp_path, 300) as log:
        options = ["--log", log.url, "--vkey", log.vkey, "--state-dir", str(tmp_path / "state")]
        tlog("submit", str(tmp_path / "entry"), "-o", str(tmp_path / "proof"), *options)
    tools.output("interop", "verify", log.vkey, tmp_path / "entry", tmp_path / "proof")


def test_go_follows_the_stream_of_checkpoints(tools: Tools, tmp_path: Path) -> None:
    with small(tmp_path, 1) as log, ThreadPoolExecutor(1) as pool:
        following = pool.submit(tools.output, "interop", "follow", log.url, log.vkey, "200")
        for number in range(5_000):
            if following.done():
                break
            fetch(f"{log.url}/add", b"%d" % number)
        sizes = json.loads(following.result(timeout=30))
        assert len(sizes) > 1
        assert sizes[-1] >= 200


def test_the_page_about_this_names_the_versions_that_are_tried_here() -> None:
    page = (CHECKOUT / "docs" / "interoperability.md").read_text()
    pinned = dict(re.findall(r"^\t(\S+) (v\S+)$", (SOURCE / "go.mod").read_text(), re.MULTILINE))
    named = re.findall(r"([a-z.]+/[\w./-]+)@(v[\w.-]+)", page)
    assert {name for name, _ in named} > set(pinned)
    for name, version in named:
        module = next(module for module in pinned if f"{name}/".startswith(f"{module}/"))
        assert version == pinned[module], name


def test_our_own_go_is_formatted_and_vetted(tools: Tools) -> None:
    assert tools.build("vet", ".").stderr == ""
    formatted = subprocess.run(["gofmt", "-l", SOURCE], capture_output=True, text=True, timeout=60, check=True)
    assert formatted.stdout == ""
