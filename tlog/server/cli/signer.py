"""`tlogd signer init` and `tlogd signer serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, Unpack

import click

from tlog.server.cli.answer import config_option, entries, json_option, one_log, say, show_json

_FILE = click.Path(path_type=Path)

_state = click.option(
    "--state", required=True, type=_FILE, metavar="FILE", help="Where the signer keeps the newest head that it signed."
)


class _Options(TypedDict):
    key: Path
    passphrase_file: Path | None
    state: Path
    socket: Path
    mode: str
    users: tuple[str, ...]
    allow_freeze: bool


@click.group()
def signer() -> None:
    """Sign in a process of its own, which refuses to sign two histories, whoever asks."""


@signer.command(
    epilog="""\b
Examples:
  tlogd signer init --config log/treehead.toml --state /var/lib/treehead-signer/state.db
"""
)
@config_option
@_state
@json_option
def init(file: Path, state: Path, *, as_json: bool) -> None:
    """Make the state of a signer for an existing log, which is not served meanwhile. It goes on from its signed head.

    A key has one state, for ever: beside it, KEY.state says where. Then give all three to the signer's own user, and
    set in the log's treehead.toml:  signer = "unix:SOCKET"
    """
    from tlog.server.claim import claimed
    from tlog.server.head import stored_head
    from tlog.server.lock import LOCK_NAME, Lock
    from tlog.server.signer.process import create_state
    from tlog.server.stray import check_strays

    config = one_log(file)
    with Lock(config.path(LOCK_NAME)):
        check_strays(config)
        head = stored_head(config, config.path(config.checkpoints))
        with claimed(config, state):
            create_state(state, head)
    if as_json:
        show_json({"origin": head.origin, "size": head.size, "root": head.root.hex(), "state": str(state)})
        return
    say(f"The state {state} begins at the signed head of {head.origin}, with {entries(head.size)}.")
    key = config.path(config.key)
    say(f"Move the key {key} to the signer's user, with {key.name}.used and {key.name}.state, and start it with:\n")
    say(f"  tlogd signer serve --key KEY --state {state} --socket SOCKET")


@signer.command(
    epilog="""\b
Examples:
  tlogd signer serve --key key --state state.db --socket /run/treehead/signer
  tlogd signer serve --key key --state state.db --socket /run/treehead/signer --mode 660 --user treehead
"""
)
@click.option("--key", required=True, type=_FILE, metavar="KEY", help="The private key of the log.")
@click.option("--passphrase-file", type=_FILE, metavar="F", help="The passphrase of an encrypted key.")
@_state
@click.option("--socket", required=True, type=_FILE, metavar="SOCKET", help="Where the log asks for signatures.")
@click.option("--mode", default="600", metavar="MODE", help="Mode of the socket, octal; 600 unless told.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="Answer this user only; may be given again.")
@click.option("--allow-freeze", is_flag=True, help="Also sign the entry that ends the log for ever: tlogd freeze.")
@json_option
def serve(*, as_json: bool, **options: Unpack[_Options]) -> None:
    """Sign heads until SIGTERM or SIGINT: only the newest one again, or one that is proven to grow out of it."""
    import asyncio

    from tlog.server.api.journal import configure_logging
    from tlog.server.key import read_key, read_passphrase
    from tlog.server.secrecy import forbid_core_dumps
    from tlog.server.signer.process import Door, run_signer

    mode, passphrase_file = options["mode"], options["passphrase_file"]
    if not mode.isascii() or not mode.isdigit() or len(mode) not in (3, 4) or set(mode) & set("89"):
        raise click.UsageError(f"{mode!r} is no mode such as 660")
    forbid_core_dumps()
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    private = read_key(options["key"], passphrase)
    configure_logging()
    asyncio.run(
        run_signer(
            private,
            options["state"],
            Door(options["socket"], int(mode, 8), options["users"]),
            may_freeze=options["allow_freeze"],
        )
    )
    if as_json:
        show_json({"stopped": True, "origin": private.verifier.name})
