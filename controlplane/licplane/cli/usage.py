# SPDX-License-Identifier: Apache-2.0
"""`licplane usage`: what was used, by whom and where; and what a bill is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from licplane.cli.changes import change_options, count, show_change
from licplane.cli.framework import json_option, now_s, print_json, say, wants_json
from licplane.cli.money import changing_money, reading_money
from licplane.cli.output import show_fields
from licplane.cli.parsing import moment_s
from licplane.cli.place import place_options
from licplane.cli.usage_output import show_explanation, show_usage
from licplane.errors import ExitCode
from licplane.service.requests import Change, PageRequest
from licplane.service.usage.query import FILTERS, SPLITS

_HOUR_S: Final = 3_600


class Times(click.ParamType[int] if TYPE_CHECKING else click.ParamType):  # type: ignore[misc]
    """A moment: RFC 3339, a day, `now`, or -24h; in milliseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The milliseconds."""
        del param, ctx
        text = str(value)
        if len(text) == 10 and text[4:5] == text[7:8] == "-":
            text += "T00:00:00Z"
        return moment_s(text, now_s()) * 1000


@click.group("usage", invoke_without_command=True)
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(list(SPLITS)),
    metavar="WHAT",
    help=f"Split by this (repeatable): {', '.join(SPLITS)}.  [default: license]",
)
@click.option("--since", "since_ms", type=Times(), metavar="TIME",
    help="From then on: 2026-10-01, 2026-10-01T12:00:00Z or -24h.  [default: the full hour 24 h"
    " ago]")  # fmt: skip
@click.option("--until", "until_ms", type=Times(), metavar="TIME",
    help="Up to then.  [default: all that came]")  # fmt: skip
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=PATTERN",
    help=f"Only this; * and ? stand for any characters (repeatable). NAME: {', '.join(FILTERS)}.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, quantities in the meters' units.")
@click.option(
    "--explain",
    type=click.IntRange(1),
    metavar="ENTRY",
    help="Take an entry of a bill apart, down to hosts, workloads and decisions.",
)
@click.option("--records", is_flag=True, help="With --explain: its single records too.")
@place_options
@json_option
@click.pass_context
def usage(
    context: click.Context,
    *,
    by: tuple[str, ...],
    since_ms: int | None,
    until_ms: int | None,
    where: tuple[str, ...],
    as_csv: bool,
    explain: int | None,
    records: bool,
) -> None:
    """Show what was used, by license or whatever else, in any window.

    A record counts in the window that holds its last millisecond. What cannot be attributed to a
    process is in the kind `unattributed`; use under no license has an empty license.

    \b
    licplane usage --by organization --by region --since 2026-10-01 --until 2026-11-01
    licplane usage --by process --where license=acme-orders --since -1h
    licplane usage --explain 17 --records
    """
    if context.invoked_subcommand is not None:
        return
    if explain is not None:
        _explain(explain, with_records=records)
        return
    if records:
        raise click.UsageError("--records goes with --explain.")
    filters = [_filter(one) for one in where]
    since = since_ms if since_ms is not None else (now_s() // _HOUR_S - 24) * _HOUR_S * 1000
    form = "csv" if as_csv else "json"
    with reading_money() as backend:
        found = backend.usage(by or ("license",), since, until_ms or 0, filters, form)
    if as_csv:
        click.echo(found["text"], nl=False)
    elif wants_json():
        print_json(found)
    else:
        show_usage(found)


@usage.command()
@click.option("--host", "host_id", default="", metavar="ID", help="Only the chain of this host.")
@place_options
@json_option
@click.pass_context
def verify(context: click.Context, host_id: str) -> None:
    """Check that what is billed is what hosts signed.

    Each record against the chain of hashes and the host's signature, each row against its record,
    rollups against their rows, entries of bills against the audit log, and the audit log itself.
    """
    with reading_money() as backend:
        found = backend.verify(host_id)
    if wants_json():
        print_json(found)
    else:
        for problem in found["problems"]:
            click.echo(problem)
        if found["untold"]:
            click.echo(f"and {found['untold']} more")
        for note in found["notes"]:
            say(f"{note}.")
        if found.get("unlicensed"):
            say(
                f"{count(found['unlicensed'], 'record')} under no license: the one that was named"
                " was not issued for the host."
            )
        say(
            f"{'Intact' if found['intact'] else 'NOT intact'}: {count(found['chains'], 'chain')},"
            f" {count(found['records'], 'record')}, {count(found['gaps'], 'gap')},"
            f" {count(found['entries'], 'billed line')}."
        )
    if not found["intact"]:
        context.exit(ExitCode.REFUSED)


@usage.command()
@click.option("--records", "records_days", type=int, metavar="DAYS", help="Single records.")
@click.option("--hourly", "hourly_days", type=int, metavar="DAYS", help="Sums of hours.")
@click.option("--daily", "daily_days", type=int, metavar="DAYS", help="Sums of days.")
@change_options
@json_option
def retention(change: Change, passphrase_file: Any, **days: int | None) -> None:
    """Show or set how many days records and sums are kept for; 0 is for ever.

    Records of a period that is still to be billed are never deleted.
    """
    wanted = {name: value for name, value in days.items() if value is not None}
    if not wanted:
        with reading_money() as backend:
            found = backend.retention()
        if wants_json():
            print_json({"retention": found})
        else:
            show_fields((name, value or "for ever") for name, value in found.items())
        return
    with changing_money(passphrase_file) as backend:
        result = backend.set_retention(change, wanted)
    show_change(result, "Set the retention.")


def _filter(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not equals or name not in FILTERS:
        raise click.UsageError(
            f"--where {text!r} is not NAME=PATTERN with a NAME of {', '.join(FILTERS)}."
        )
    return name, pattern


def _explain(entry: int, *, with_records: bool) -> None:
    with reading_money() as backend:
        found = backend.explain(entry, PageRequest(1_000) if with_records else None)
        token = found.get("next_token", "")
        while token:
            more = backend.explain(entry, PageRequest(1_000, token))
            found["records"] += more["records"]
            token = more["next_token"]
    found.pop("next_token", None)
    if wants_json():
        print_json(found)
    else:
        show_explanation(found)
