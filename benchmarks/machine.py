"""What a result was measured with: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from pathlib import Path
from typing import TypedDict

_ROOT = Path(__file__).parents[1]


class Machine(TypedDict):
    """Python build, commit and machine."""

    python: str
    pgo: bool
    commit: str
    cpu: str
    cores: int
    memory_gib: float
    system: str


def describe() -> Machine:
    """Return what this run is measured with."""
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        pgo=is_profile_guided(),
        commit=_commit(),
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def is_profile_guided() -> bool:
    """Return whether Python was built with profile-guided optimization, which makes it up to a fifth faster.

    Debian's build passes the flags itself and leaves the name of the second step empty, which no other build does.
    """
    names = ("CONFIG_ARGS", "PY_CORE_CFLAGS", "CFLAGS_NODIST", "PGO_PROF_GEN_FLAG", "PGO_PROF_USE_FLAG")
    configured, core, nodist, generate, use = (str(sysconfig.get_config_var(name) or "") for name in names)
    is_debian = generate != "" and use == ""
    return "--enable-optimizations" in configured or "-fprofile-use" in core + nodist or is_debian


def _commit() -> str:
    """Return the commit, with a plus sign where files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
