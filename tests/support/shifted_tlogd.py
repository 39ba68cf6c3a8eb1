"""`tlogd` on a machine whose wall clock is moved: for the tests only.

python shifted_tlogd.py FILE serve --config …

FILE     holds by how many milliseconds the wall clock is wrong; it is read at every look
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tlog.server.main import main


def shift(file: Path) -> None:
    """Make the wall clock wrong; nothing that is not set by anybody is touched."""
    honest = time.time_ns

    def time_ns() -> int:
        return honest() + int(file.read_text()) * 1_000_000

    time.time_ns = time_ns


if __name__ == "__main__":
    shift(Path(sys.argv.pop(1)))
    main()
