# SPDX-License-Identifier: Apache-2.0
"""`licplane audit`: what was done, by whom, and whether the log is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from licplane.cli.backend import PAGE_SIZE, Backend
from licplane.cli.changes import changing, reading
from licplane.cli.framework import json_option, passphrase_option, print_json, say, wants_json
from licplane.cli.local import LocalBackend
from licplane.cli.output import moment, moment_or_none, safe, show_table
from licplane.cli.passphrase import is_given
from licplane.cli.place import place_options, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.service.answers import AuditView
from licplane.store.folder import PUBLIC_MODE, write_atomically

_HEAD_MAX_BYTES = 64 * 1024


@click.group()
def audit() -> None:
    """Read the audit log, and check that nobody changed it."""


@audit.command("list")
@click.option(
    "--after",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="SEQUENCE",
    help="Only entries after this one.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most the first N of them.")
@place_options
@json_option
def list_(after: int, limit: int | None) -> None:
    """List what was done: when, by whom, to what, and why. Oldest first."""
    with reading() as backend:
        found = list(_entries(backend, after, limit))
    if wants_json():
        print_json({"entries": [entry_document(one) for one in found]})
        return
    show_table(
        (">SEQUENCE", "TIME", "ACTOR", "ROLE", "ACTION", "TARGET", "REASON"),
        [
            (
                one.sequence,
                moment(one.at_unix_ms),
                one.actor,
                one.role,
                one.action,
                one.target,
                one.reason or "-",
            )
            for one in found
        ],
        empty="There are no entries." if not after else f"There is nothing after {after}.",
    )


@audit.command()
@click.option(
    "--head",
    "head",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A head that `licplane audit head` exported earlier: the log must still contain it.",
)
@passphrase_option
@place_options
@json_option
@click.pass_context
def verify(context: click.Context, head: Path | None, passphrase_file: Path | None) -> None:
    """Check the whole log: any edit, deletion, truncation or reordering is found.

    With the passphrase, only signatures by keys that it opens count; without, those by the keys
    that the database calls trusted. Somebody who can write there and has the keys could make the
    whole log anew: a head that was exported to another machine shows that too.
    """
    exported = _read_head(head) if head is not None else None
    with changing(passphrase_file) if is_given(passphrase_file) else reading() as backend:
        if exported is None:
            found = backend.verify_audit()
        elif isinstance(backend, LocalBackend):
            found = backend.plane.verify_audit(backend.actor, exported)
        else:
            raise PlaneError(
                ExitCode.USAGE,
                "A server does not take a head",
                "Use --head on its machine, with --state or --database",
            )
    if wants_json():
        print_json(
            {"intact": found.intact, "entries": found.entries, "problems": list(found.problems)}
        )
    for problem in found.problems:
        say(f"Problem: {safe(problem)}")
    if found.intact:
        say(f"The audit log is intact: {found.entries} entries.")
        return
    say(
        f"Error: The audit log is not intact ({found.entries} entries). Keep this database as"
        " evidence and restore a backup."
    )
    context.exit(int(ExitCode.REFUSED))


@audit.command("head")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it to FILE instead of standard output.",
)
@state_option
@json_option
def head_(out: Path | None) -> None:
    """Export the newest signed head, to keep on another machine for `audit verify --head`."""
    with reading() as backend:
        if not isinstance(backend, LocalBackend):
            raise PlaneError(
                ExitCode.USAGE,
                "A server does not export its head",
                "Run this on its machine, with --state or --database",
            )
        data = backend.plane.audit_head(backend.actor)
    if out is not None:
        write_atomically(out, data, PUBLIC_MODE)
        say(f"Wrote the head to {out}. Keep it where this machine's administrators cannot write.")
    elif wants_json():
        print_json({"head": json.loads(data)})
    else:
        click.echo(data.decode().rstrip("\n"))


def _entries(backend: Backend, after: int, limit: int | None) -> Iterator[AuditView]:
    left = limit
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(left, PAGE_SIZE)
        page = backend.list_audit(after, size)
        if not page:
            return
        yield from page
        after = page[-1].sequence
        left = None if left is None else left - len(page)


def _read_head(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            data = source.read(_HEAD_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PlaneError(
            ExitCode.NOT_FOUND, f"There is no file {file}", "Check the path after --head"
        ) from error
    if len(data) > _HEAD_MAX_BYTES:
        raise PlaneError(
            ExitCode.REFUSED, f"{file} is too large for a head", "Give what `audit head` wrote"
        )
    return data


def entry_document(one: AuditView) -> dict[str, object]:
    """An entry for JSON."""
    return {
        "sequence": one.sequence,
        "at": moment_or_none(one.at_unix_ms),
        "at_unix_ms": one.at_unix_ms,
        "actor": one.actor,
        "role": one.role,
        "action": one.action,
        "target": one.target,
        "reason": one.reason,
        "request_id": one.request_id,
        "detail": json.loads(one.detail_json) if one.detail_json else {},
        "previous_hash": one.previous_hash.hex(),
        "hash": one.hash.hex(),
    }
