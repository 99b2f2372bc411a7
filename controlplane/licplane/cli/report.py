# SPDX-License-Identifier: Apache-2.0
"""`licplane report` and `licplane export`: for auditors, and for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from licplane.cli.framework import check_out, print_json, say
from licplane.cli.money import FIRST_PAGE, reading_money
from licplane.cli.place import place_options
from licplane.cli.usage import Times
from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import PageRequest
from licplane.store.folder import PUBLIC_MODE, write_atomically

_OUT: Final = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


def _out_option(command: Any) -> Any:
    return click.option(
        "--out", type=_OUT, metavar="FILE", help="Write to FILE instead of standard output."
    )(command)


def _window(command: Any) -> Any:
    command = click.option(
        "--until", "until_ms", type=Times(), metavar="TIME", help="Up to then.  [default: now]"
    )(command)
    return click.option(
        "--since",
        "since_ms",
        type=Times(),
        default="-30d",
        show_default=True,
        metavar="TIME",
        help="From then on: 2026-10-01, 2026-10-01T12:00:00Z or -24h.",
    )(command)


@click.command("report")
@_window
@click.option("--organization", default="", metavar="NAME", help="Only of this one.")
@click.option("--format", "form", type=click.Choice(["json", "csv", "html"]), default="html",
    show_default=True, help="html is one page to read and to print.")  # fmt: skip
@_out_option
@place_options
def report(
    since_ms: int, until_ms: int | None, organization: str, form: str, out: Path | None
) -> None:
    """Make the compliance report: what ran under which license, what under none, what differed
    from what is wanted since when, and which usage was lost."""
    check_out(out)
    with reading_money() as backend:
        found = backend.report(since_ms, until_ms or 0, organization, form)
    if form == "json" and out is None:
        print_json(found)
        return
    _deliver(_as_json(found) if form == "json" else found["text"], out)


@click.command("export")
@click.argument("form", type=click.Choice(["cloudevents", "focus"]))
@_window
@click.option("--plan", default="", metavar="NAME", help="focus: the price plan.")
@click.option("--period", default="", metavar="LABEL", help="focus: 2026-10.  [default: current]")
@_out_option
@place_options
def export(
    form: str,
    *,
    since_ms: int,
    until_ms: int | None,
    plan: str,
    period: str,
    out: Path | None,
) -> None:
    """Give usage to other programs.

    \b
    cloudevents  single records as CloudEvents 1.0, one JSON object a line
    focus        a bill as CSV with the columns of FOCUS 1.2 (--plan, --period)
    """
    check_out(out)
    if form == "focus" and not plan:
        raise click.UsageError("focus needs --plan NAME.")
    parts: list[str] = []
    to_file = out is not None and str(out) != "-"
    with reading_money() as backend:
        page = FIRST_PAGE
        while True:
            found = backend.export(
                form,
                since_ms=since_ms,
                until_ms=until_ms or 0,
                plan=plan,
                period=period,
                page=page,
            )
            if to_file:
                parts.append(found["text"])
            else:
                click.echo(found["text"], nl=False)
            if not found["next_token"]:
                break
            page = PageRequest(FIRST_PAGE.size, found["next_token"])
    if to_file:
        _deliver("".join(parts), out)


def _as_json(document: dict[str, Any]) -> str:
    return json.dumps({"schema_version": 1, **document}, indent=2, ensure_ascii=False) + "\n"


def _deliver(text: str, out: Path | None) -> None:
    if out is None or str(out) == "-":
        click.echo(text, nl=False)
        return
    try:
        write_atomically(out, text.encode(), PUBLIC_MODE)
    except OSError as error:
        raise PlaneError(
            ExitCode.INTERNAL, f"{out} cannot be written: {error.strerror}", "Choose another --out"
        ) from error
    say(f"Wrote {out}.")
