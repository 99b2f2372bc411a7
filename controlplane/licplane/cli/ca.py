# SPDX-License-Identifier: Apache-2.0
"""`licplane ca`: the certification authorities, and changing from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from licplane.cli.backend import open_backend
from licplane.cli.changes import change_options, changing, reading
from licplane.cli.framework import json_option, print_json, say, wants_json
from licplane.cli.local import LocalBackend, open_store, root_pem
from licplane.cli.output import moment, moment_or_none, show_table
from licplane.cli.passphrase import passphrase
from licplane.cli.place import place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.service.authorities import RootView
from licplane.service.requests import Change
from licplane.store.folder import PUBLIC_MODE, write_atomically

_ANYWAY = "Although some are not ready: they will have to enrol, or be made, again."


@click.group()
def ca() -> None:
    """Show and change the certification authority, without an outage.

    In this order, each when `licplane ca list` shows that every host is ready: create makes the
    next one and lets hosts trust it, promote lets it issue, retire ends the trust in the old one.
    """


@ca.command("list")
@state_option
@json_option
def list_() -> None:
    """List the authorities, and who is not ready for the next step."""
    with _local_reading() as backend:
        found = backend.plane.authorities.views(backend.actor)
    if wants_json():
        print_json({"authorities": [_document(one) for one in found]})
        return
    show_table(
        ("AUTHORITY", "STATUS", "CREATED", "UNTIL", ">HOSTS", "NOT READY"),
        [
            (
                one.fingerprint[:16],
                one.status.value,
                moment(one.created_unix_ms),
                moment(one.not_after_unix_ms),
                one.hosts,
                ", ".join(one.missing) or "-",
            )
            for one in found
        ],
        empty="There is no authority yet: the first `licplane serve` makes one.",
    )


@ca.command()
@change_options
@json_option
def create(change: Change, passphrase_file: Path | None) -> None:
    """Make the next authority, under the passphrase of the other keys.

    Hosts that are connected take its certificate within minutes; it issues nothing yet. Make a
    backup then: a control plane that is put back without this key has to begin anew.
    """
    _check_here()
    words = passphrase(passphrase_file)
    with open_backend(place(), lambda: words) as opened:
        backend = _local(opened)
        name = backend.plane.authorities.create(backend.actor, change, words)
    _done(
        change,
        name,
        f"Made the authority {name[:16]}. Back the control plane up, and go on with `licplane ca"
        " promote` when `licplane ca list` names nobody beside it.",
    )


@ca.command()
@click.option("--anyway", is_flag=True, help=_ANYWAY)
@change_options
@json_option
def promote(change: Change, passphrase_file: Path | None, *, anyway: bool) -> None:
    """Let the authority that is coming issue certificates from now on.

    Refused while a host, a join token or an administrator's file knows only the old one.
    """
    with _local_changing(passphrase_file) as backend:
        name = backend.plane.authorities.promote(backend.actor, change, anyway=anyway)
    _done(
        change,
        name,
        f"The authority {name[:16]} issues now. Go on with `licplane ca retire OLD` when `licplane"
        " ca list` names nobody beside it.",
    )


@ca.command()
@click.argument("authority", metavar="AUTHORITY")
@click.option("--anyway", is_flag=True, help=_ANYWAY)
@change_options
@json_option
def retire(change: Change, passphrase_file: Path | None, authority: str, *, anyway: bool) -> None:
    """End the trust in AUTHORITY (its first characters do), which must not be the one that issues.

    Refused while a host has no certificate of the new one.
    """
    with _local_changing(passphrase_file) as backend:
        name = backend.plane.authorities.retire(backend.actor, change, authority, anyway=anyway)
    _done(change, name, f"The authority {name[:16]} is trusted no more.")


@ca.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, in one step, instead of standard output.",
)
@state_option
def export(out: Path | None) -> None:
    """Print the certificates of the authorities that are trusted now (PEM)."""
    with open_store(place().check()) as store:
        text = root_pem(store)
    if out is None:
        click.echo(text.decode(), nl=False)
    else:
        write_atomically(out, text, PUBLIC_MODE)


def _done(change: Change, name: str, words: str) -> None:
    if wants_json():
        print_json({"authority": name, "changed": not change.dry_run, "dry_run": change.dry_run})
    elif change.dry_run:
        say("Dry run: nothing was done.")
    else:
        say(words)


def _document(one: RootView) -> dict[str, object]:
    return {
        "fingerprint": one.fingerprint,
        "status": one.status.value,
        "created_at": moment_or_none(one.created_unix_ms),
        "not_after": moment_or_none(one.not_after_unix_ms),
        "hosts_ready": one.hosts,
        "not_ready": list(one.missing),
    }


@contextmanager
def _local_changing(passphrase_file: Path | None) -> Iterator[LocalBackend]:
    _check_here()
    with changing(passphrase_file) as backend:
        yield _local(backend)


@contextmanager
def _local_reading() -> Iterator[LocalBackend]:
    _check_here()
    with reading() as backend:
        yield _local(backend)


def _check_here() -> None:
    if place().check().remote:
        raise PlaneError(
            ExitCode.USAGE, "Only on the control plane's own machine", "Use --state or --database"
        )


def _local(backend: object) -> LocalBackend:
    if not isinstance(backend, LocalBackend):
        raise TypeError("a place on this machine has a backend on this machine")
    return backend
