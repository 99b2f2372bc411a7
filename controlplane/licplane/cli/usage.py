# SPDX-License-Identifier: Apache-2.0
"""`licplane usage`: what was used, by whom and where; and what a bill is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import click

from licplane.cli.changes import change_options, count, show_change
from licplane.cli.framework import json_option, now_s, print_json, say, wants_json
from licplane.cli.money import Json, changing_money, reading_money
from licplane.cli.output import moment, show_fields, show_table
from licplane.cli.parsing import moment_s
from licplane.cli.place import place_options
from licplane.errors import ExitCode
from licplane.service.pricing import decimal_text
from licplane.service.requests import Change, PageRequest
from licplane.service.usage_query import FILTERS, SPLITS

_HOUR_S: Final = 3_600
_SHOWN: Final = (
    ("CPU", ("cpu_ns",)),
    ("SENT", ("tx_payload_bytes",)),
    ("RECEIVED", ("rx_payload_bytes",)),
    ("READ", ("read_bytes",)),
    ("WRITTEN", ("write_bytes",)),
    ("MEMORY", ("memory_byte_ms",)),
    ("STORED", ("stored_byte_ms",)),
)
_SCALES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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
        _show(found)


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


def amount(meter: str, quantity: int) -> str:
    """A quantity for people: `1.5 core-h`, `3.2 GiB`, `12 GiB-h`."""
    if not quantity:
        return "-"
    if meter == "cpu_ns":
        for size, unit in ((3_600 * 10**9, "core-h"), (10**9, "core-s"), (10**6, "core-ms")):
            if quantity >= size:
                return f"{decimal_text(Fraction(quantity, size), 2)} {unit}"
        return f"{quantity} core-ns"
    if meter.endswith("_byte_ms"):
        return f"{decimal_text(Fraction(quantity, 2**30 * 3_600_000), 3)} GiB-h"
    if not meter.endswith("_bytes"):
        return str(quantity)
    step = min(max(0, (quantity.bit_length() - 1) // 10), len(_SCALES) - 1)
    return f"{decimal_text(Fraction(quantity, 1 << 10 * step), 1)} {_SCALES[step]}"


def _filter(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not equals or name not in FILTERS:
        raise click.UsageError(
            f"--where {text!r} is not NAME=PATTERN with a NAME of {', '.join(FILTERS)}."
        )
    return name, pattern


def _show(found: Json) -> None:
    names = [
        "process_start_unix_ms" if name == "process_start" else name for name in found["columns"]
    ]
    shown = [name for name in names if name != "process_start_unix_ms"]
    meters = [
        (title, several)
        for title, several in _SHOWN
        if any(found["totals"].get(meter) for meter in several)
    ]
    rows = [
        (
            *(_cell(line, name) for name in shown),
            *_amounts(meters, line["quantities"]),
            _marks(line),
        )
        for line in found["usage"]
    ]
    if rows:
        blank = [""] * (len(shown) - 1)
        rows.append(("total", *blank, *_amounts(meters, found["totals"]), ""))
    show_table(
        (*(name.upper() for name in shown), *(f">{title}" for title, _ in meters), "MARKS"),
        rows,
        empty="Nothing was used.",
    )
    for note in found["notes"]:
        say(f"{note}.")


def _cell(line: Mapping[str, Any], name: str) -> str:
    if name == "host":
        return str(line["hostname"] or line["host"])
    value = line[name]
    if name == "license" and not value:
        return "(unattributed)" if line["unattributed"] else "(none)"
    return str(value) if value not in ("", None) else "-"


def _amounts(
    meters: Sequence[tuple[str, Sequence[str]]], quantities: Mapping[str, int]
) -> list[str]:
    return [
        amount(several[0], sum(quantities.get(one, 0) for one in several)) for _, several in meters
    ]


def _marks(line: Mapping[str, Any]) -> str:
    parts = []
    if line["unattributed"]:
        parts.append("unattributed")
    if line["estimated"]:
        parts.append("estimated")
    if line["unsupported"]:
        parts.append("incomplete")
    return " ".join(parts)


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
        return
    one = found["entry"]
    detail = one["detail"]
    show_fields(
        [
            ("entry", f"{one['entry']} ({one['kind']}, run {one['run']})"),
            ("period", f"{one['period']}, {found['start']} to {found['end']}"),
            ("account", one["account"] or "(none)"),
            ("item", one["item"]),
            ("amount", f"{one['amount']} {one['currency']}"),
            ("quantity", f"{one['quantity']} ({', '.join(detail.get('meters', ['-']))})"),
            ("plan", f"{found['plan']}, version {found['plan_version']}"),
        ]
    )
    for step in detail.get("steps", ()):
        click.echo(f"              {step['units']} {detail['unit']} at {step['price']}")
    click.echo()
    show_table(
        ("HOST", "WORKLOAD", "USER", "PROGRAM", "RESOURCE", "BINDING", "RECORDS", ">COUNTED"),
        [
            (
                span["hostname"] or span["host_id"],
                span["unit"] or "-",
                span["user"] or "-",
                span["executable"] or "-",
                span["resource"] or "-",
                span["binding"] or "-",
                f"{span['epoch']}:{span['first_sequence']}-{span['last_sequence']}",
                span["counted"],
            )
            for span in found["spans"]
        ],
    )
    for why in found["allocations"]:
        click.echo(
            f"\nlicense {why['license'] or '(none)'}, resource {why['resource'] or '(none)'},"
            f" binding {why['binding'] or '(none)'}"
        )
        for line in why["audit"]:
            reason = f": {line['reason']}" if line["reason"] else ""
            at = moment(line["at_unix_ms"])
            click.echo(f"  {at} {line['actor']} {line['action']} {line['target']}{reason}")
        for line in why["decisions"]:
            click.echo(
                f"  host {line['host_id']}: {line['verdict']} ({line['reason']})"
                f" {count(line['count'], 'time')}"
            )
    if found["records"]:
        click.echo()
        show_table(
            ("RECORD", "PID", "FROM", "TO", "RECEIVED", ">COUNTED"),
            [
                (
                    line["id"],
                    line["pid"] or "-",
                    moment(line["start_unix_ms"]),
                    moment(line["end_unix_ms"]),
                    moment(line["received_unix_ms"]),
                    line["counted"],
                )
                for line in found["records"]
            ],
        )
    if found["adds_up"]:
        say("The records add up to the entry.")
    elif one["item"] == "minimum":
        say("This line lifts the account to the plan's minimum; it is of no records.")
    elif not found["complete"]:
        say(f"Records were deleted as old: {found['counted']} of it are still there.")
    else:
        say(f"The records come to {found['counted']}, NOT what the entry says: run verify.")
