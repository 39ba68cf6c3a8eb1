"""A file system whose power can be cut: what was not made durable is gone, as on a disk. Only root may mount one."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from typing import TYPE_CHECKING

from tests.support.skips import go_without, need_root, need_tool

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

SIZE = 1 << 30

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WITHOUT_LOG = struct.pack("I", 2)  # the journal is not flushed either


class Volume:
    """An ext4 file system in a file.

    Attributes:
        root: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        """Make it in a folder; it is mounted as a context."""
        need_root()
        self.root = folder / "volume"
        self._image = folder / "volume.img"
        self._is_mounted = False

    def __enter__(self) -> Self:
        self.root.mkdir()
        with self._image.open("xb") as file:
            file.truncate(SIZE)
        subprocess.run([need_tool("mkfs.ext4"), "-qF", "-m", "0", "-b", "4096", self._image], check=True, timeout=60)
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_mounted:
            self.unmount("-l")  # whatever a test that failed has left open

    def mount(self) -> None:
        """Mount it; the file system is mended as after a power failure."""
        command = [need_tool("mount"), "-o", "loop", str(self._image), str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            go_without(f"root may not mount here: {done.stderr.strip()}")
        self._is_mounted = True

    def unmount(self, *options: str) -> None:
        """Unmount it, and let go of the image."""
        subprocess.run([need_tool("umount"), *options, self.root], check=True, timeout=60)
        self._is_mounted = False

    def cut(self) -> None:
        """Cut the power: from now on nothing reaches the disk, and what was under way does not either."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_LOG)
        finally:
            os.close(descriptor)
