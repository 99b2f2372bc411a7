# SPDX-License-Identifier: Apache-2.0
"""`licplane admin`: who may sign in to a server, and as what. Only on the server's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from licplane.cli.changes import change_options, changing, reading, show_change
from licplane.cli.completion import complete_admin
from licplane.cli.credentials import token_file_text
from licplane.cli.framework import check_out, json_option, print_json, say, wants_json
from licplane.cli.local import LocalBackend, open_store, root_pem
from licplane.cli.output import moment, moment_or_none, show_table
from licplane.cli.parsing import duration_s
from licplane.cli.place import place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.service.answers import AdminView
from licplane.service.requests import Change
from licplane.service.values import Role
from licplane.store.folder import PRIVATE_MODE, write_atomically

ROLES: Final = tuple(role.value for role in Role if role is not Role.HOST)


@click.group()
def admin() -> None:
    """Hand out and end the credentials of administrators (see the roles in the documentation)."""


@admin.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    required=True,
    help="admin: everything; issuer: resources, bindings, licenses; auditor: reads.",
)
@click.option(
    "--token",
    is_flag=True,
    help="A bearer token for the public listener, instead of a client certificate.",
)
@click.option("--expires", default="+90d", show_default=True, metavar="TIME", help="Its end.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to write it (mode 0600), for --identity FILE or --token-file FILE. Shown nowhere"
    " else.",
)
@change_options
@json_option
def create(
    *,
    change: Change,
    passphrase_file: Path | None,
    name: str,
    role: str,
    expires: str,
    out: Path,
    token: bool,
) -> None:
    """Make a credential for NAME: a private key with its client certificate, or a token."""
    ttl_s = duration_s(expires.removeprefix("+"))
    check_out(out)
    with changing(passphrase_file) as backend:
        local = _local(backend)
        made = local.plane.create_admin(
            local.actor,
            change,
            name=name,
            role=Role(role),
            means="token" if token else "certificate",
            ttl_s=ttl_s,
        )
    if not change.dry_run:
        text = made.pem
        if token:
            with open_store(place()) as store:
                text = token_file_text(made.token, root_pem(store).decode())
        write_atomically(out, text.encode(), PRIVATE_MODE)
    option = "--token-file" if token else "--identity"
    if wants_json():
        print_json(
            {"admin": admin_document(made.admin), "out": str(out), "dry_run": change.dry_run}
        )
    if change.dry_run:
        say("Dry run: nothing was done.")
        return
    say(
        f"Wrote the {made.admin.means} of {name} ({role}, until"
        f" {moment(made.admin.expires_at_unix_ms)}) to {out}.\n"
        f"Use it so: licplane --server HOST:PORT {option} {out} host list"
    )


@admin.command("list")
@state_option
@json_option
def list_() -> None:
    """List the credentials that were handed out, those ended too."""
    with reading() as backend:
        local = _local(backend)
        found = local.plane.list_admins(local.actor)
    if wants_json():
        print_json({"admins": [admin_document(one) for one in found]})
        return
    show_table(
        ("NAME", "ROLE", "MEANS", "ID", "CREATED", "EXPIRES", "STATE"),
        [
            (
                one.name,
                one.role,
                one.means,
                one.id[:16],
                moment(one.created_at_unix_ms),
                moment(one.expires_at_unix_ms),
                "revoked" if one.revoked else "active",
            )
            for one in found
        ],
        empty="There are no administrators but this machine's own."
        " `licplane admin create` makes one.",
    )


@admin.command()
@click.argument("name", metavar="NAME", shell_complete=complete_admin)
@change_options
@json_option
def delete(change: Change, passphrase_file: Path | None, name: str) -> None:
    """End all credentials of NAME, at once, on every replica."""
    with changing(passphrase_file) as backend:
        local = _local(backend)
        result = local.plane.revoke_admin(local.actor, change, name)
    show_change(result, f"{name} may no longer sign in.")


def _local(backend: object) -> LocalBackend:
    if isinstance(backend, LocalBackend):
        return backend
    raise PlaneError(
        ExitCode.USAGE,
        "Credentials are not handed out over the network",
        "Run this on the server's machine, with --state or --database",
    )


def admin_document(one: AdminView) -> dict[str, object]:
    """A credential for JSON, without its secret."""
    return {
        "name": one.name,
        "role": one.role,
        "means": one.means,
        "id": one.id,
        "created_at": moment_or_none(one.created_at_unix_ms),
        "expires_at": moment_or_none(one.expires_at_unix_ms),
        "revoked": one.revoked,
    }
