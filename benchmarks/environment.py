"""The environment of the peers: apart from ours, made once, from versions and hashes that are pinned."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from benchmarks.contestant import Peer
from benchmarks.process import BIN

_PEERS = Path(__file__).parent / "peers"
_LOCK = _PEERS / "requirements.txt"
_FOLDER = BIN.parent / "peers"


_MAX_SIZE = 1_000_000


def make_peers(folder: Path, size: int) -> list[Peer]:
    """Return the peers that this program starts.

    Args:
        folder: Where their databases are.
        size: Size of the tree that is read; a million at most, for they fill it anew each time.

    Raises:
        subprocess.CalledProcessError: The environment cannot be made.
    """
    python = _make()
    size = min(size, _MAX_SIZE)
    return [
        Peer("naive", [python, _PEERS / "naive.py"], {"add"}, folder, size),
        Peer("pymerkle", [python, _PEERS / "pymerkle_log.py"], {"add", "proof"}, folder, size),
    ]


def _make() -> Path:
    """Make the environment unless it is there, and return its interpreter; a stamp is written last."""
    stamp, python = _FOLDER / "stamp", _FOLDER / "bin" / "python"
    wanted = sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = str(BIN / "uv")
    subprocess.run([uv, "-q", "venv", "--clear", "--python", sys.executable, str(_FOLDER)], check=True)
    install = [uv, "-q", "pip", "install", "--python", str(python), "--require-hashes", "-r", str(_LOCK)]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)
    return python
