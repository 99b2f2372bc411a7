# SPDX-License-Identifier: Apache-2.0
"""`licagent events`: decisions and changes, oldest first."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from licagent.cli.exits import INTERRUPTED
from licagent.cli.session import Session, with_session
from licagent.cli.words import Moment
from licagent.local.methods import VERDICTS
from licagent.local.wire import SCHEMA_VERSION


@click.command(short_help="Decisions and changes, oldest first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come.")
@click.option("--since", type=Moment(), metavar="WHEN", help="10m, or 2026-01-02T03:04:05Z.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0, 1_000_000),
    default=100,
    show_default=True,
    help="At most so many of the past, the latest.",
)
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only this verdict.")
@click.option("--license", "license_id", metavar="ID", help="Only of this license.")
@click.option("--resource", metavar="NAME", help="Only about this resource.")
@click.option("--pid", type=click.IntRange(1, 2**22), help="Only of this process.")
@with_session()
def events(session: Session, follow: bool, license_id: str | None, **given: Any) -> None:
    """Decisions and changes, oldest first, one a line.

    Each line says when, the verdict, who, what, why and by which license; repeated denials
    are one line with a count. With --json each line is one JSON object.
    """
    items = session.client().stream(
        "events", {"follow": follow, "license": license_id, **given}, endless=follow
    )
    try:
        for item in items:
            _print(item, as_json=session.as_json)
            sys.stdout.flush()  # a pipe's reader sees each event when it happens
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def _print(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, **event}) + "\n")
        return
    from licagent.cli.sentences import VERDICT_STYLE, sentence

    line = sentence(event)
    if sys.stdout.isatty():
        colours = {"good": "green", "bad": "red", "warn": "yellow"}
        style = VERDICT_STYLE.get(str(event.get("verdict")).lower(), "")
        line = click.style(line, fg=colours.get(style))
    click.echo(line)
