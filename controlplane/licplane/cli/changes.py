# SPDX-License-Identifier: Apache-2.0
"""What all changing commands share: their options, and how a change's result is shown."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from licplane.cli.backend import Backend, open_backend
from licplane.cli.framework import passphrase_option, print_json, say, wants_json
from licplane.cli.output import age, show_diff, show_table
from licplane.cli.passphrase import passphrase
from licplane.cli.place import place, place_options
from licplane.service.answers import ChangeResult, Impact
from licplane.service.requests import Change

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_DIFFERENT = 10
"""`--exit-code`: something changed, or in a dry run would."""


def change_options(command: Command) -> Command:
    """Add --dry-run, --reason, --request-id and --etag, given to the command as `change`.

    And those of the place and the passphrase, given as `passphrase_file`.
    """

    @functools.wraps(command)
    def with_change(
        *, dry_run: bool, reason: str, request_id: str | None, etag: str, **rest: Any
    ) -> Any:
        chosen = request_id or f"cli-{secrets.token_hex(12)}"
        return command(change=Change(chosen, dry_run, etag, reason), **rest)

    changed: Any = place_options(passphrase_option(with_change))
    changed = click.option(
        "--etag",
        default="",
        metavar="ETAG",
        help="Refuse unless the thing is as it was when it had this etag (from --json).",
    )(changed)
    changed = click.option(
        "--request-id",
        metavar="ID",
        help="Made again with the same id, the command answers the first result and does nothing"
        " (for 7 days).",
    )(changed)
    changed = click.option("--reason", default="", metavar="TEXT", help="Why, for the audit log.")(
        changed
    )
    dry_run = click.option(
        "--dry-run",
        is_flag=True,
        help="Show what would change and which hosts, workloads and live sockets it would cut;"
        " do nothing.",
    )
    return cast("Command", dry_run(changed))


@contextmanager
def reading() -> Iterator[Backend]:
    """The backend for commands that change nothing."""
    with open_backend(place()) as backend:
        yield backend


@contextmanager
def changing(passphrase_file: Path | None) -> Iterator[Backend]:
    """The backend for commands that change something."""
    with open_backend(place(), lambda: passphrase(passphrase_file)) as backend:
        yield backend


def change_document(result: ChangeResult) -> dict[str, object]:
    """A change's result for JSON."""
    return {
        "changed": result.changed,
        "dry_run": result.dry_run,
        "revision": result.revision,
        "differences": [
            {
                "action": one.action,
                "kind": one.kind,
                "name": one.name,
                "lines": list(one.lines),
            }
            for one in result.differences
        ],
        "impact": [impact_document(one) for one in result.impact],
        "etag": result.etag,
        "tokens": list(result.tokens),
    }


def impact_document(one: Impact) -> dict[str, object]:
    """One line of what a change cuts."""
    return {
        "host_id": one.host_id,
        "hostname": one.hostname,
        "license": one.license,
        "resource": one.resource,
        "selector": one.selector,
        "sockets": one.sockets,
        "report_age_ms": one.report_age_ms,
    }


def show_change(result: ChangeResult, done: str, **more: object) -> None:
    """The result: one JSON object with `more`, or the diff, what it cuts, and `done` in words."""
    if wants_json():
        print_json({**change_document(result), **more})
        return
    for one in result.differences:
        if one.action != "none":
            click.echo(f"{one.action} {one.kind} {one.name}")
            show_diff(one.lines)
    show_impact(result)
    if not result.changed:
        say("No change: there is nothing to do.")
    elif result.dry_run:
        say("Dry run: nothing was done.")
    else:
        say(done)


def show_impact(result: ChangeResult) -> None:
    """Hosts, workloads and sockets that a change cuts, as of the hosts' last reports."""
    if not result.impact:
        return
    sockets = sum(one.sockets for one in result.impact)
    hosts = len({one.host_id for one in result.impact})
    verb = "would cut" if result.dry_run else "cuts"
    say(f"It {verb} {count(sockets, 'live socket')} on {count(hosts, 'host')}:")
    show_table(
        ("HOST", "LICENSE", "RESOURCE", "WORKLOAD", ">SOCKETS", ">REPORTED"),
        [
            (
                one.hostname or one.host_id,
                one.license,
                one.resource,
                one.selector,
                one.sockets,
                f"{age(one.report_age_ms)} ago",
            )
            for one in result.impact
        ],
    )


def count(number: int, what: str) -> str:
    """ "1 host", "2 hosts"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
