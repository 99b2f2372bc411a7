# SPDX-License-Identifier: Apache-2.0
"""`licplane token`: join tokens, with which hosts enrol."""

from __future__ import annotations

from pathlib import Path

import click

from licplane.cli.changes import change_options, changing, count, reading, show_change
from licplane.cli.completion import complete_token
from licplane.cli.framework import check_out, json_option, print_json, say, wants_json
from licplane.cli.output import labels_text, moment, moment_or_none, show_table
from licplane.cli.parsing import duration_s, labels_of
from licplane.cli.place import place_options
from licplane.service.answers import JoinTokenView
from licplane.service.requests import Change
from licplane.store.folder import PRIVATE_MODE, write_atomically


@click.group()
def token() -> None:
    """Make, list and delete the tokens that hosts join with."""


@token.command()
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="A label of the hosts that join with it; org, project, environment and region say what"
    " they see (repeatable).",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many hosts may join with it.",
)
@click.option(
    "--expires",
    default="+1h",
    show_default=True,
    metavar="TIME",
    help="How long it holds: +15m, +12h, +30d at most.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the token to FILE (mode 0600) instead of standard output.",
)
@change_options
@json_option
def create(
    *,
    change: Change,
    passphrase_file: Path | None,
    labels: tuple[str, ...],
    uses: int,
    expires: str,
    out: Path | None,
) -> None:
    """Make a join token and print it: it is shown this once.

    It holds the server's addresses and its CA, so that a host needs nothing else. On the host:
    `licagent enroll JOIN`.
    """
    wanted = labels_of(labels)
    ttl_s = duration_s(expires.removeprefix("+"))
    check_out(out)
    with changing(passphrase_file) as backend:
        made = backend.create_join_token(change, wanted, uses, ttl_s)
    if out is not None and made.join:
        write_atomically(out, f"{made.join}\n".encode(), PRIVATE_MODE)
    if wants_json():
        shown = None if out else made.join
        print_json({"token": token_document(made.token), "join": shown, "dry_run": change.dry_run})
        return
    if change.dry_run:
        say("Dry run: nothing was done.")
        return
    say(
        f"Token {made.token.id}: for {count(made.token.uses_max, 'host')}, until"
        f" {moment(made.token.expires_at_unix_ms)}. On the host: licagent enroll JOIN"
    )
    if out is None:
        click.echo(made.join)


@token.command("list")
@place_options
@json_option
def list_() -> None:
    """List the join tokens, those used up or ended too."""
    with reading() as backend:
        found = backend.list_join_tokens()
    if wants_json():
        print_json({"tokens": [token_document(one) for one in found]})
        return
    show_table(
        ("ID", ">USED", ">OF", "EXPIRES", "LABELS", "BY"),
        [
            (
                one.id,
                one.uses,
                one.uses_max,
                moment(one.expires_at_unix_ms),
                labels_text(one.labels.items()),
                one.created_by,
            )
            for one in found
        ],
        empty="There are no join tokens. `licplane token create` makes one.",
    )


@token.command()
@click.argument("token_id", metavar="ID", shell_complete=complete_token)
@change_options
@json_option
def delete(change: Change, passphrase_file: Path | None, token_id: str) -> None:
    """Delete a join token. Hosts that joined with it stay."""
    with changing(passphrase_file) as backend:
        result = backend.delete_join_token(change, token_id)
    show_change(result, f"Deleted the token {token_id}.")


def token_document(one: JoinTokenView) -> dict[str, object]:
    """A join token for JSON, without its secret."""
    return {
        "id": one.id,
        "labels": dict(sorted(one.labels.items())),
        "uses": one.uses,
        "uses_max": one.uses_max,
        "expires_at": moment_or_none(one.expires_at_unix_ms),
        "created_by": one.created_by,
    }
