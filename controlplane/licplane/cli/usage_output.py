# SPDX-License-Identifier: Apache-2.0
"""Usage, and an entry of a bill taken apart, as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import click

from licplane.cli.changes import count
from licplane.cli.framework import say
from licplane.cli.money import Json
from licplane.cli.output import moment, show_fields, show_table
from licplane.service.billing.pricing import decimal_text

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


def show_usage(found: Json) -> None:
    """A table of usage, with its totals."""
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


def show_explanation(found: Json) -> None:
    """An entry of a bill, taken apart."""
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
