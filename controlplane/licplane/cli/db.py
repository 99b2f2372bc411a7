# SPDX-License-Identifier: Apache-2.0
"""`licplane db`: the database's schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from licplane.cli.backend import PAGE_SIZE, Backend
from licplane.cli.changes import change_options, changing
from licplane.cli.framework import json_option, print_json, say, wants_json
from licplane.cli.local import LocalBackend, open_store
from licplane.cli.place import place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.service.foundations import ADVANCE_MAX
from licplane.service.requests import Change, PageRequest
from licplane.store.database import Store
from licplane.store.folder import StateFolder


@click.group()
def db() -> None:
    """Look after the database: its schema's version, and what an old copy of it needs."""


@db.command()
@state_option
@json_option
def current() -> None:
    """Show the schema's version, and the one that this licplane wants."""
    with _store() as store:
        found, newest = store.current(), store.newest()
    if wants_json():
        print_json({"current": found or None, "newest": newest, "is_newest": found == newest})
        return
    click.echo(found or "none")
    if found != newest:
        say(f"This licplane wants {newest}. Bring it there with `licplane db upgrade`.")


@db.command()
@click.argument("revision", metavar="[VERSION]", default="head")
@state_option
@json_option
def upgrade(revision: str) -> None:
    """Bring the schema up to VERSION, or to the newest. Servers of an older licplane must be
    stopped first.

    What `licplane` kept in files of the state folder before it had a database is taken over.
    """
    with _store(create=True) as store:
        before = store.current()
        changed = store.upgrade(revision)
        after = store.current()
    _done(before, after, changed=changed)


@db.command()
@click.argument("revision", metavar="VERSION")
@click.option(
    "--yes",
    is_flag=True,
    help="It drops what the older schema has no place for: say that you know.",
)
@state_option
@json_option
def downgrade(revision: str, *, yes: bool) -> None:
    """Bring the schema down to VERSION, for an older licplane; `base` removes everything."""
    if not yes:
        raise PlaneError(
            ExitCode.REFUSED,
            "A downgrade drops what the older schema has no place for",
            "Back the database up, stop the servers, and say --yes",
        )
    with _store() as store:
        before = store.current()
        changed = store.downgrade(revision)
        after = store.current()
    _done(before, after, changed=changed)


@db.command("import")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@state_option
@json_option
def import_(folder: Path) -> None:
    """Take over keys and licenses that an older licplane kept as files in the state folder DIR.

    Needed for PostgreSQL only: a state folder's own database takes over its files by itself. The
    files are moved to DIR/imported.
    """
    StateFolder(folder).require()
    with open_store(place().check(), create=True) as store:
        changed = store.import_folder(folder)
    if wants_json():
        print_json({"changed": changed})
    elif changed:
        say(f"Took over what was in {folder}; the files are in {folder / 'imported'} now.")
    else:
        say(f"No change: {folder} has no files of an older licplane.")


@db.command()
@click.option(
    "--beyond",
    type=click.IntRange(1),
    metavar="REVISION",
    help="The highest revision that any host holds.  [default: the highest that hosts have shown"
    " since the copy was put back]",
)
@change_options
@json_option
def advance(change: Change, beyond: int | None, passphrase_file: Path | None) -> None:
    """After an old copy of the database was put back: go beyond what the hosts hold.

    Hosts never take a catalog older than theirs, so that nobody can bring back what was taken
    away. Look first at what is missing since the copy (licenses revoked after it must be revoked
    again), let the hosts connect, then run this: they get what this database says, and take it.
    """
    if place().check().remote:
        raise PlaneError(
            ExitCode.USAGE, "Only on the control plane's own machine", "Use --state or --database"
        )
    with changing(passphrase_file) as backend:
        if not isinstance(backend, LocalBackend):
            raise TypeError("a place on this machine has a backend on this machine")
        plane = backend.plane
        plane.refresh()
        before = plane.revision
        wanted = beyond
        if wanted is None:
            wanted, others = _highest_shown(backend, before, before + ADVANCE_MAX)
            for name in others:
                say(f"Left out: {name} shows a revision that this control plane never had.")
        recovered = _recovered(backend)
        put_back = plane.is_put_back
        if not put_back and (wanted < before or (beyond is None and wanted == before)):
            after = before
        else:
            after = plane.advance(backend.actor, change, wanted)
    changed = after != before and not change.dry_run
    if wants_json():
        print_json(
            {"changed": changed, "before": before, "revision": after, "recovered": recovered}
        )
    elif after == before:
        say(f"No change: no host has shown more than the catalog's revision {before}.")
    elif change.dry_run:
        say(f"Dry run: the catalog would go from revision {before} beyond {wanted}.")
    else:
        say(f"The catalog was at revision {before} and is at {after} now; hosts take it anew.")
        if put_back:
            say(f"Hosts remembered {recovered} changes that the backup lacked; see `audit list`.")
            say("Leases are given again, and hosts may join. Make join tokens and administrators")
            say("anew: those of the backup were ended.")
            say("Hosts whose labels were changed since drain: label them, then `host activate`.")
            say("Licenses that were renewed since the backup are refused by hosts, as older ones:")
            say("once all that was revoked since is revoked again, `licplane license renew` them.")


def _recovered(backend: LocalBackend) -> int:
    """Entries of the audit log that hosts remembered, since the copy was made or before."""
    count, after = 0, 0
    while page := backend.list_audit(after, PAGE_SIZE):
        count += sum(
            "remembered_by" in one.detail_json or one.action == "host.remember" for one in page
        )
        after = page[-1].sequence
    return count


def _highest_shown(backend: Backend, least: int, most: int) -> tuple[int, list[str]]:
    """The highest revision that a host holds, as far as they have told; and who tells of more
    than `most`: it is made up, and must hold up nobody else."""
    token, others = "", []
    while True:
        page = backend.list_hosts({}, PageRequest(PAGE_SIZE, token))
        for host in page.items:
            if host.acked_revision <= most:
                least = max(least, host.acked_revision)
            else:
                others.append(f"{host.hostname} ({host.host_id})")
        token = page.next_token
        if not token:
            return least, others


def _done(before: str, after: str, *, changed: bool) -> None:
    if wants_json():
        print_json({"changed": changed, "before": before or None, "current": after or None})
    elif changed:
        say(f"The schema was {before or 'none'} and is {after or 'none'} now.")
    else:
        say(f"No change: the schema is {after or 'none'}.")


@contextmanager
def _store(*, create: bool = False) -> Iterator[Store]:
    """The store as it stands: an old schema is what these commands are about."""
    where = place().check()
    if where.remote:
        raise PlaneError(
            ExitCode.USAGE,
            "A server does not change its own schema",
            "Run this on its machine, with --state or --database",
        )
    if where.database is None:
        folder = StateFolder(where.state_dir)
        if create:
            folder.create()
        else:
            folder.require()
    with Store.open(where.database or str(where.state_dir)) as store:
        yield store
