"""`tlogd fsck` and `tlogd status`."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from tlog.server.cli.answer import config_option, entries, json_option, one_log, say, show_json, steps
from tlog.server.errors import Exit

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.server.config import Config
    from tlog.server.status import File, Status
    from tlog.server.verify import Report


@click.command(
    epilog="""\b
Examples:
  tlogd fsck --config log/treehead.toml
  tlogd fsck --deep --json --config log/treehead.toml
"""
)
@click.option("--deep", is_flag=True, help="Hash every entry, and look up every one; else the newest and a sample.")
@config_option
@json_option
def fsck(file: Path, *, deep: bool, as_json: bool) -> int:
    """Check the files of a log that is not served: each against the others, and all against the signed head.

    Nothing is changed. Each damage is told in a line, with what to do; the command then ends with 5. A log that is
    served is checked from outside, with: tlog fsck URL.
    """
    from tlog.server.errors import InUseError
    from tlog.server.verify import check_log

    config = one_log(file)
    with steps(as_json=as_json) as begin:
        try:
            report = check_log(config, begin("checking"), deep=deep)
        except InUseError as error:
            raise InUseError(f"{error}. A log that is served is checked with: tlog fsck URL") from error
    if as_json:
        show_json(_report_fields(report))
    else:
        _show_report(report)
    return Exit.DAMAGED if report.findings.total else Exit.DONE


def _report_fields(report: Report) -> dict[str, object]:
    from tlog.server.verify import REMEDIES

    found = report.findings
    return {
        "origin": report.origin,
        "size": report.head.size if report.head is not None else None,
        "root": report.head.root.hex() if report.head is not None else None,
        "deep": report.is_deep,
        "ok": not found.total,
        "damages": [{"file": one.file, "what": one.what, "remedy": REMEDIES[one.file]} for one in found.damages],
        "found": found.total,
        "notes": found.notes,
        "checked": found.checked,
    }


def _show_report(report: Report) -> None:
    from tlog.server.verify import REMEDIES

    found = report.findings
    for damage in found.damages:
        say(f"damaged: {damage.file}: {damage.what}")
    if found.total > len(found.damages):
        say(f"damaged: and {found.total - len(found.damages)} more")
    for note in found.notes:
        say(f"note: {note}")
    checked = ", ".join(f"{number:,} {what}" for what, number in found.checked.items()) or "nothing"
    say(f"checked: {checked}{'' if report.is_deep else ' (the newest and a sample; everything with --deep)'}")
    for file in dict.fromkeys(damage.file for damage in found.damages):
        say(f"{file}: {REMEDIES[file]}")
    if not found.total and report.head is not None:
        say(f"verified: {report.origin} has all that is signed: {entries(report.head.size)}")


@click.command(
    epilog="""\b
Examples:
  tlogd status --config log/treehead.toml
  tlogd status --json --config log/treehead.toml
"""
)
@config_option
@json_option
def status(file: Path, *, as_json: bool) -> None:
    """Show the state of a log at a glance, while it is served or not."""
    from tlog.server.clock import wall_clock_ms
    from tlog.server.status import look

    config = one_log(file)
    found, now_ms = look(config), wall_clock_ms()
    age_s = None if found.signed_ms is None else max(0, now_ms - found.signed_ms) / 1000
    if as_json:
        show_json(_status_fields(config, file, found, age_s))
    else:
        _show_status(config, file, found, age_s)


def _status_fields(config: Config, file: Path, found: Status, age_s: float | None) -> dict[str, object]:
    head = found.head
    return {
        "origin": config.origin,
        "vkey": config.vkey,
        "config": str(file),
        "running": found.holder is not None,
        "pid": found.holder.pid or None if found.holder else None,
        "url": found.holder.url or None if found.holder else None,
        "signed": head.size if head is not None else None,
        "root": head.root.hex() if head is not None else None,
        "stored": found.stored,
        "derived": found.derived,
        "newest_age_s": age_s,
        "frozen": found.frozen,
        "read_only": found.read_only or None,
        "key": {"file": None if config.signer else str(config.path(config.key)), "state": found.key},
        "files": {
            name: {"path": str(one.path), "bytes": one.size, "free_bytes": one.free}
            for name, one in found.files.items()
        },
        "problems": found.problems,
    }


def _show_status(config: Config, file: Path, found: Status, age_s: float | None) -> None:
    head = found.head
    root = b64encode(head.root).decode() if head is not None else "unknown"
    rows = {
        "origin": config.origin,
        "vkey": config.vkey,
        "running": str(found.holder) if found.holder else "no",
        "signed": _number(head.size if head is not None else None),
        "root": root,
        "stored": _number(found.stored),
        "derived": _number(found.derived),
        "newest": _age(found.signed_ms, age_s),
        "read-only": found.read_only or "no",
        "key": found.key if config.signer else f"{config.path(config.key)}, {found.key}",
        "config": str(file),
        **{name: _file(one) for name, one in found.files.items()},
    }
    for name, value in rows.items():
        say(f"{name:<12} {value}")
    for problem in found.problems:
        say(f"problem: {problem}")


def _number(number: int | None) -> str:
    return "unknown" if number is None else entries(number)


def _age(time_ms: int | None, age_s: float | None) -> str:
    if time_ms is None or age_s is None:
        return "unknown"
    try:
        when = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        when = f"{time_ms} ms"
    return f"{when}, {age_s:,.0f} s ago"


def _file(file: File) -> str:
    size = "missing" if file.size is None else f"{file.size:,} bytes"
    return f"{file.path}, {size}" + ("" if file.free is None else f", {file.free:,} bytes free")
