"""Small volumes of their own, which can be filled without harm. Only root may mount them."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.support.skips import go_without, need_root, need_tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def volume(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """Mount a fresh volume, and unmount it afterwards.

    Args:
        folder: Where it is mounted, and its image kept.
        kind: "tmpfs", or "ext4" and the bytes of a block: "ext4-4096".
        size: Its bytes.
    """
    need_root()
    mount = [need_tool("mount"), "-t", "tmpfs", "-o", f"size={size},mode=700", "none"]
    if kind != "tmpfs":
        image = folder / f"{kind}.img"
        with image.open("xb") as file:
            file.truncate(size)
        block = kind.removeprefix("ext4-")
        subprocess.run([need_tool("mkfs.ext4"), "-qF", "-m", "0", "-b", block, image], check=True, timeout=60)
        mount = [need_tool("mount"), "-o", "loop", str(image)]
    place = folder / kind
    place.mkdir()
    done = subprocess.run([*mount, place], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        go_without(f"root may not mount here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([need_tool("umount"), place], check=True, timeout=60)


def free(place: Path) -> int:
    """Return the free bytes of a volume."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def fill(file: Path) -> None:
    """Let a file take all the space that its volume has."""
    with file.open("ab", buffering=0) as junk:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while junk.write(bytes(size)):
                    pass
        os.fsync(junk.fileno())


def release(file: Path, size: int) -> None:
    """Give back some of what a file took."""
    os.truncate(file, file.stat().st_size - size)
    os.sync()  # some file systems give back what is freed with the next transaction
