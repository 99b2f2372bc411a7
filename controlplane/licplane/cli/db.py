# SPDX-License-Identifier: Apache-2.0
"""`licplane db`: the database's schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from licplane.cli.framework import json_option, print_json, say, wants_json
from licplane.cli.local import open_store
from licplane.cli.place import place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.store.database import Store
from licplane.store.folder import StateFolder


@click.group()
def db() -> None:
    """Show and change the version of the database's schema."""


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
