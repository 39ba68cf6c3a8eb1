"""`tlog verify`: offline, so it imports nothing that talks to a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlog.merkle import leaf_hash
from tlog.proof import MAX_PROOF_SIZE, parse_proof, verify_proof
from tlog.tile import MAX_ENTRY_SIZE
from tlog_client.option import FILE, naming, offline_options, read_file
from tlog_client.report import show_json

if TYPE_CHECKING:
    from tlog_client.option import Options


@click.command(short_help="Verify an entry offline, by its proof.")
@click.argument("entry", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.argument("proof", type=FILE)
@offline_options
def verify(options: Options, entry: Path, proof: Path) -> None:
    """Verify offline that the file ENTRY is in the log, by its .tlog-proof file PROOF.

    \b
    Examples:
      tlog verify event.json event.tlog-proof --vkey @log.vkey
      tlog verify - event.tlog-proof --policy log.policy < event.json
    """  # noqa: D301  # \b is click's
    data = read_file(entry, MAX_ENTRY_SIZE)
    with naming(proof):
        proven = parse_proof(read_file(proof, MAX_PROOF_SIZE))
    verify_proof(proven, data, options.policy)
    head = options.policy.open_checkpoint(proven.checkpoint)
    if options.as_json:
        leaf = leaf_hash(data).hex()
        show_json({"index": proven.index, "leaf_hash": leaf, "origin": head.origin, "size": head.size})
    else:
        click.echo(f"verified: entry {proven.index} of {head.origin}, in the tree of size {head.size}")
