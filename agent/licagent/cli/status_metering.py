# SPDX-License-Identifier: Apache-2.0
"""Metering as `licagent status` shows it: one line or two, and all of it with --verbose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from licagent.cli.words import compact, count, safe

if TYPE_CHECKING:
    from licagent.cli.output import Block

Row = Mapping[str, Any]

_STYLE: Final = {"on": "", "off": "warn", "degraded": "bad"}


def metering_fields(metering: Row) -> Iterator[tuple[str, object]]:
    """For the summary; nothing of a daemon that knows no metering."""
    from licagent.cli.output import Cell

    if not metering:
        return
    state = str(metering.get("state"))
    text = state
    if state != "off":
        text += f", every {metering.get('interval_s')} s"
        text += f", last commit {metering.get('last_commit') or 'never'}"
    lost = metering.get("unattributed_ratio")
    if isinstance(lost, int | float):
        text += f", {lost:.1%} of CPU unattributed"
    yield "metering", Cell(text, _STYLE.get(state, "bad"))
    spool = metering.get("spool")
    if not isinstance(spool, Mapping):
        return
    text = f"{compact(spool.get('bytes'))} of {compact(spool.get('max_bytes'))}"
    gaps = spool.get("gaps") or ()
    if metering.get("delivery"):
        text += f", {count(spool.get('unacknowledged'), 'record')} to deliver"
    if gaps:
        text += f", {count(len(gaps), 'gap')}"
    yield "usage spool", Cell(text, "warn" if gaps else "")


def metering_details(metering: Row) -> Iterator[Block]:
    """With --verbose: meters, delivery, footprints, gaps."""
    from licagent.cli.output import Cell, Fields, Line, Table

    meters = metering.get("meters") or {}
    if not meters:
        return
    yield Table(
        ("meter", "quality", "from"),
        [
            (
                name,
                Cell(how.get("quality"), "" if how.get("quality") == "exact" else "warn"),
                how.get("source"),
            )
            for name, how in meters.items()
        ],
        title="Meters",
    )
    delivery = metering.get("delivery") or {}
    if delivery:
        yield Fields(
            (
                ("connected", "yes" if delivery.get("connected") else "no"),
                ("acknowledged", f"{delivery.get('acknowledged')} records"),
                ("last at", delivery.get("acknowledged_at")),
                ("set aside", delivery.get("refused") or None),
                ("why", delivery.get("last_refusal")),
                ("last error", delivery.get("last_error")),
                ("alarm", delivery.get("alarm")),
            ),
            title="Delivery of usage",
        )
    footprints = metering.get("footprints") or ()
    if footprints:
        yield Table(
            ("footprint", "path", "resource", ">stored", ">files", "measured", "by"),
            [
                (
                    row.get("name"),
                    row.get("path"),
                    row.get("resource"),
                    compact(row.get("stored_bytes")),
                    row.get("inodes"),
                    row.get("measured_at"),
                    row.get("source"),
                )
                for row in footprints
            ],
            title="Storage footprints",
        )
    for gap in (metering.get("spool") or {}).get("gaps") or ():
        span = f"{safe(gap.get('first'))} to {safe(gap.get('last'))}"
        yield Line(f"usage records {span} are lost: {safe(gap.get('reason'))}", "warn")
