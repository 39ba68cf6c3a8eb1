"""`tlogd repair` and `tlogd recover-checkpoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from tlog.server.cli.answer import config_option, confirm, entries, json_option, one_log, say, show_json, steps

if TYPE_CHECKING:
    from pathlib import Path

    from tlog.server.discard import Discarded
    from tlog.server.repair import Repaired


UNSEEN = """\
No anchor, no signer process and no tile here has seen a larger head than {size}. If a client or a mirror has one, do
not start the log: bring the newest checkpoints.db, and the old log.db back."""


@click.command(
    epilog="""\b
Examples:
  tlogd repair --from https://mirror.example/log --config log/treehead.toml
  tlogd repair --from /mnt/backup/log.backup --config log/treehead.toml
  tlogd repair --discard-unsigned --config log/treehead.toml
"""
)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Where entries come from: the URL of the log or a mirror, a folder with tiles or a log.db, or a backup.",
)
@click.option(
    "--discard-unsigned",
    "discard",
    is_flag=True,
    help="Remove the commit behind the signed head, if it can never be signed.",
)
@config_option
@json_option
def repair(source: str | None, file: Path, *, discard: bool, as_json: bool) -> None:
    """Bring damaged or missing entries of log.db back, or remove a commit that cannot be signed. Stop the log first.

    Only entries that lead to the signed head are taken, wherever they come from, and only one commit behind it is
    removed, where nothing here has seen it signed: look for a newer head with clients and mirrors first. All is checked
    before log.db is replaced, and the old one is kept under another name.
    """
    from tlog.server.discard import discard_unsigned
    from tlog.server.repair import repair as repair_from

    config = one_log(file)
    if source is None and not discard:
        raise click.UsageError("say what to do: --from SOURCE, --discard-unsigned, or both")
    if source is None:
        with steps(as_json=as_json) as begin:
            discarded = discard_unsigned(config, begin)
        _show_discarded(discarded, file, as_json=as_json)
        return
    with steps(as_json=as_json) as begin:
        repaired = repair_from(config, source, begin, discard=discard)
    _show_repaired(repaired, file, as_json=as_json)


def _show_discarded(done: Discarded, file: Path, *, as_json: bool) -> None:
    if as_json:
        fields = {"origin": done.head.origin, "size": done.head.size, "root": done.head.root.hex()}
        show_json({**fields, "discarded": done.count, "reason": done.reason, "aside": str(done.aside)})
        return
    what = entries(done.count) if done.count else "a segment that cannot be read"
    say(f"Discarded {what} behind the signed head of {done.head.origin}: {done.reason}.")
    say(f"The log has {entries(done.head.size)}. {UNSEEN.format(size=done.head.size)}")
    say(f"The old log.db, with what was discarded, is now {done.aside}.")
    say(f"Start the log with:\n\n  tlogd serve --config {file}")


def _show_repaired(done: Repaired, file: Path, *, as_json: bool) -> None:
    head, aside = done.head, str(done.aside) if done.aside else None
    if as_json:
        counts = {"fetched": done.fetched, "rebuilt": done.rebuilt, "kept": done.kept}
        fields = {"origin": head.origin, "size": head.size, "root": head.root.hex(), "whole": done.is_whole}
        show_json({**fields, **counts, "discarded": done.discarded or None, "aside": aside})
        return
    if done.is_whole:
        say(f"log.db is whole: it has all that is signed, {entries(head.size)}. Nothing was changed.")
        return
    say(f"Repaired {head.origin}: it has all that is signed, {entries(head.size)}, checked against its signed head.")
    say(f"{entries(done.fetched)} fetched; segments: {done.kept:,} kept as they were, {done.rebuilt:,} made anew.")
    if done.discarded:
        say(f"The commit behind the signed head was discarded: {done.discarded}.\n{UNSEEN.format(size=head.size)}")
    if aside:
        say(f"What was there before is now {aside}; remove it when nobody needs it any more.")
    say(f"Start the log with:\n\n  tlogd serve --config {file}")


RISK = """\
This makes the checkpoint store of {origin} anew, from a signed head that was kept outside. The log goes on from the end
of log.db, or from that head where log.db ends before it. If anybody has seen a newer head than that, the log will FORK:
clients will prove it with both heads, and nobody can undo that. Bring the newest head that clients, mirrors, monitors
and witnesses have."""


@click.command(
    "recover-checkpoints",
    epilog="""\b
Examples:
  tlogd recover-checkpoints --from newest.checkpoint --config log/treehead.toml
  curl -s https://mirror.example/log/checkpoint |
    tlogd recover-checkpoints --from - --yes example.com/log --config log/treehead.toml
""",
)
@click.option(
    "--from",
    "note",
    required=True,
    type=click.File("rb"),
    metavar="NOTE",
    help="The newest signed head that anybody has, as GET /checkpoint answers with it; - reads standard input.",
)
@config_option
@click.option(
    "--yes", metavar="ORIGIN", help="The log's origin: yes, that one. Needed where there is no terminal to ask."
)
@json_option
def recover_checkpoints(note: BinaryIO, file: Path, yes: str | None, *, as_json: bool) -> None:
    """Make a LOST checkpoint store anew, from a signed head that was kept outside. Stop the log first.

    A store that can be read is never replaced. If anybody has seen a newer head than log.db holds, the log forks, and
    clients will prove it: so look for the newest head first, with clients, mirrors, monitors and witnesses.
    """
    from tlog.note import MAX_NOTE_SIZE
    from tlog.server.clock import wall_clock_ms
    from tlog.server.recover import recover_checkpoints as recover

    config = one_log(file)
    text = note.read(MAX_NOTE_SIZE + 1)
    confirm(config.origin, yes, "this makes the checkpoint store anew", RISK.format(origin=config.origin))
    with steps(as_json=as_json) as begin:
        done = recover(config, text, wall_clock_ms(), begin)
    head, aside = done.head, str(done.aside) if done.aside else None
    if as_json:
        fields = {"origin": head.origin, "size": head.size, "root": head.root.hex(), "start": done.start.size}
        show_json({**fields, "stored": done.stored, "aside": aside})
        return
    say(f"The checkpoint store of {head.origin} is new: its signed head has {entries(head.size)}.")
    if aside:
        say(f"What was there before is now {aside}.")
    if done.stored < head.size:
        say(f"log.db holds {entries(done.stored)} of them. Bring the others back with one of:\n")
        say(f"  tlogd repair --from URL|DIR --config {file}\n  tlogd restore BACKUP --config {file}")
        return
    say(f"Start the log with:\n\n  tlogd serve --config {file}")
