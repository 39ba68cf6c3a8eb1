"""`tlog consistency`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlog.errors import ForkError
from tlog.note import MAX_NOTE_SIZE
from tlog_client.option import FILE, naming, output_options, perhaps_online_options, read_file
from tlog_client.report import show_json

if TYPE_CHECKING:
    from tlog.checkpoint import Checkpoint
    from tlog_client.flow import Flows
    from tlog_client.option import Options, Output
    from tlog_client.run import SyncRunner
    from tlog_client.state import Signed


@click.command(short_help="Verify that one head grew out of another.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--proof", "proof_file", type=FILE, metavar="FILE", help="Check by this proof, without the log's tiles.")
@output_options("Write the consistency proof, for --proof.")
@perhaps_online_options
def consistency(options: Options, old: str, new: str, proof_file: Path | None, output: Output | None) -> None:
    """Verify that the log's head NEW grew out of its head OLD: nothing was changed, dropped or reordered in between.

    OLD and NEW are files with signed checkpoints, or `trusted` (the head that tlog trusts), or `latest` (what the log
    serves now). Both signatures are verified. Two heads that exclude each other are a fork: exit code 4, and both are
    saved as evidence.

    Without --proof the log's tiles are read. With it, two files are checked offline; FILE holds what -o wrote, or what
    the log answers to GET /v1/proofs/consistency/OLD-SIZE/NEW-SIZE.

    \b
    Examples:
      tlog consistency monday.checkpoint latest
      tlog consistency monday.checkpoint friday.checkpoint -o proof.json
      tlog consistency monday.checkpoint friday.checkpoint --proof proof.json
    """  # noqa: D301  # \b is click's
    from contextlib import ExitStack

    from tlog_client.flow import Flows
    from tlog_client.run import SyncRunner
    from tlog_client.state import ForkProvenError, prove_fork

    if proof_file and output:
        raise click.UsageError("-o writes a proof and --proof reads one: give one of the two")
    flows = Flows(options.policy, options.state_dir)
    try:
        with ExitStack() as stack:
            runner = stack.enter_context(SyncRunner(options.url, token=options.token)) if options.url else None
            first, second = _resolve(flows, runner, (old, new))
            proof = _check(flows, runner, (first, second), proof_file)
    except ForkProvenError:
        raise
    except ForkError as error:
        heads = [options.policy.open_checkpoint(note) for note in (error.first, error.second)]
        raise prove_fork(error, options.state_dir, heads) from error
    if output:
        output.write(proof)
    _show(first.head, second.head, as_json=options.as_json)


def _show(old: Checkpoint, new: Checkpoint, *, as_json: bool) -> None:
    if as_json:
        show_json({"consistent": True, "origin": new.origin, "old_size": old.size, "new_size": new.size})
    else:
        click.echo(f"consistent: size {new.size} grew out of size {old.size}")


def _resolve(flows: Flows, runner: SyncRunner | None, names: tuple[str, str]) -> list[Signed]:
    """Return the signed heads that the words or files name, in order of size."""
    trusted = flows.trust.trusted
    heads: list[Signed] = []
    for name in names:
        if name == "latest":
            if runner is None:
                raise click.UsageError("latest is asked of the log: give its address with --log")
            heads.append(runner.run(flows.signed_checkpoint()))
        elif name == "trusted":
            if trusted is None:
                raise click.UsageError("no head of this log is trusted yet; tlog checkpoint begins with the newest")
            heads.append(trusted)
        else:
            with naming(Path(name)):
                heads.append(flows.trust.open(read_file(Path(name), MAX_NOTE_SIZE)))
    if runner:
        runner.run(flows.close())
    if heads[0].head.size > heads[1].head.size:
        sizes = f"{heads[0].head.size} and {heads[1].head.size}"
        raise click.UsageError(f"OLD is larger than NEW ({sizes}): exchange them; an older head by itself is no alarm")
    return heads


def _check(flows: Flows, runner: SyncRunner | None, pair: tuple[Signed, Signed], proof_file: Path | None) -> bytes:
    """Check two heads by a file, by themselves, or through the log, and return the proof as a file."""
    from tlog_client.consistency import (
        MAX_PROOF_FILE_SIZE,
        check_pair,
        format_consistency,
        parse_consistency,
        verify_pair,
    )

    old, new = pair
    if proof_file:
        data = read_file(proof_file, MAX_PROOF_FILE_SIZE)
        with naming(proof_file):
            proof = parse_consistency(data)
        verify_pair(old, new, proof)
        return data
    if old.head.size in (0, new.head.size):
        verify_pair(old, new, None)
        return format_consistency(old.head.size, new.head.size, [])
    if runner is None:
        raise click.UsageError("give a proof with --proof, or the address of the log with --log")
    return format_consistency(old.head.size, new.head.size, runner.run(check_pair(flows.trust, old, new)))
