# SPDX-License-Identifier: Apache-2.0
"""`licplane billing`: periods, what they come to, closing and correcting them."""

from __future__ import annotations

from pathlib import Path

import click

from licplane.cli.changes import change_options
from licplane.cli.framework import json_option, print_json, say, wants_json
from licplane.cli.money import Json, changing_money, reading_money
from licplane.cli.output import show_fields, show_table
from licplane.cli.place import place_options
from licplane.service.requests import Change


@click.group("billing")
def billing() -> None:
    """Show bills, close periods and correct them.

    A period is closed by itself some days after its end, as its plan says. What comes later is
    added by entries of a correction; entries are never changed.
    """


@billing.command("list")
@click.option("--plan", default="", metavar="NAME", help="Only of this plan.")
@place_options
@json_option
def list_(plan: str) -> None:
    """List the periods that were closed."""
    with reading_money() as backend:
        found = backend.periods(plan)
    if wants_json():
        print_json(found)
        return
    show_table(
        ("PERIOD", "START", "END", "CLOSED", "BY", ">PLAN VERSION"),
        [
            (
                one["period"],
                one["start"],
                one["end"],
                one["closed_at"],
                one["closed_by"],
                one["plan_version"],
            )
            for one in found["periods"]
        ],
        empty="No period was closed yet.",
    )


@billing.command()
@click.argument("plan", metavar="PLAN")
@click.option("--period", default="", metavar="LABEL", help="2026-10.  [default: the current one]")
@click.option("--entries", is_flag=True, help="Each entry with its number, for usage --explain.")
@place_options
@json_option
def show(plan: str, period: str, *, entries: bool) -> None:
    """Show what PLAN's period was billed, or comes to so far."""
    with reading_money() as backend:
        found = backend.bill(plan, period)
    if wants_json():
        print_json({"bill": found})
        return
    _show(found, entries=entries)


@billing.command()
@click.argument("plan", metavar="PLAN")
@click.option("--period", required=True, metavar="LABEL", help="A period that is over: 2026-10.")
@change_options
@json_option
def close(change: Change, passphrase_file: Path | None, plan: str, period: str) -> None:
    """Bill PLAN's period now. Closed again, nothing changes."""
    with changing_money(passphrase_file) as backend:
        found = backend.close(change, plan, period)
    _told(found, "Closed")


@billing.command()
@click.argument("period", metavar="PLAN/LABEL")
@change_options
@json_option
def correct(change: Change, passphrase_file: Path | None, period: str) -> None:
    """Add entries for usage that came after the period was closed.

    A running server does this by itself.
    """
    with changing_money(passphrase_file) as backend:
        found = backend.correct(change, period)
    _told(found, "Corrected")


def _told(found: Json, done: str) -> None:
    if wants_json():
        print_json(found)
    elif not found["changed"]:
        say("No change: there is nothing to do.")
    else:
        words = "Dry run, it would write" if found["dry_run"] else f"{done} {found['period']}:"
        say(f"{words} {found['entries']} entries, {found['total']} {found['currency']}.")


def _show(found: Json, *, entries: bool) -> None:
    currency = found["currency"]
    closed = f", closed {found['closed_at']} by {found['closed_by']}" if found["closed_at"] else ""
    show_fields(
        [
            ("period", f"{found['period']}, {found['start']} to {found['end']}"),
            ("state", f"{found['state']}{closed}"),
            ("plan", f"{found['plan']}, version {found['plan_version']}"),
            ("total", f"{found['total']} {currency}"),
        ]
    )
    click.echo()
    if entries and found["entries"]:
        show_table(
            (">ENTRY", ">RUN", "KIND", found["account"].upper(), "ITEM", ">UNITS", "UNIT",
             f">{currency}"),
            [
                (
                    one["entry"],
                    one["run"],
                    one["kind"],
                    one["account"] or "(none)",
                    one["item"],
                    one["units"] or "-",
                    one["unit"] or "-",
                    one["amount"],
                )
                for one in found["entries"]
            ],
        )  # fmt: skip
        return
    show_table(
        (found["account"].upper(), "ITEM", ">UNITS", "UNIT", f">{currency}"),
        [
            (
                one["account"] or "(none)",
                one["item"],
                one["units"] or "-",
                one["unit"] or "-",
                one["amount"],
            )
            for one in found["lines"]
        ],
        empty="Nothing is billed.",
    )
