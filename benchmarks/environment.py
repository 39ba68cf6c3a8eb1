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


def make_peers(folder: Path) -> list[Peer]:
    """Return the peers that this program starts; their databases are in the folder.

    Raises:
        subprocess.CalledProcessError: The environment cannot be made.
    """
    python = _make()
    return [Peer("naive", "naive.py", python, folder), Peer("pymerkle", "pymerkle_log.py", python, folder)]


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
