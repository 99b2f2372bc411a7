# SPDX-License-Identifier: Apache-2.0
"""What `licagent usage` and `usage verify` show."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from licagent.cli.output import Block, Cell, Fields, Line, Table
from licagent.cli.words import compact, count, cpu_time, safe

_HOUR_MS: Final = 3_600_000
_MARKS: Final = ("estimated", "unsupported")

_COLUMNS: Final = (
    ("cpu_ns", "CPU"),
    ("memory_byte_ms", "MEMORY"),
    ("rx_{}_bytes", "IN"),
    ("tx_{}_bytes", "OUT"),
    ("read_bytes", "READ"),
    ("write_bytes", "WRITE"),
    ("stored_byte_ms", "STORED"),
)
"""Meters and their titles; braces stand for payload or wire."""

NOBODY: Final = {
    "license": "(no license)",
    "unit": "(no unit)",
    "user": "(nobody in particular)",
    "resource": "(no resource)",
    "executable": "(not known)",
    "process": "(short-lived)",
}
"""What has no name, by what is added up by."""


def usage_blocks(result: Mapping[str, Any], *, wire: bool = False) -> Iterator[Block]:
    """The table, its sums, and what one has to know about it."""
    by = str(result.get("by"))
    if result.get("metering") == "off":
        yield Line("metering is off: only what was committed before is shown", "warn")
    elif result.get("metering") == "degraded":
        yield Line("metering is degraded: licagent status says why", "warn")
    if result.get("since"):
        pending = ", and what is not committed yet" if result.get("pending") else ""
        records = count(result.get("records", 0), "record")
        yield Line(f"{result['since']} to {result.get('until')}: {records}{pending}", "dim")
    if result.get("counted_from"):
        yield Line(
            f"the ledger is long: only what was committed since {safe(result['counted_from'])} is "
            "counted; ask for parts of it with --since and --until",
            "warn",
        )
    meters = [(meter.format("wire" if wire else "payload"), title) for meter, title in _COLUMNS]
    rows = _objects(result.get("rows"))
    total = _object(result.get("total"))
    # A meter that nobody used, and that nobody failed to measure, takes no room.
    meters = [
        (meter, title)
        for meter, title in meters
        if meter in ("cpu_ns", "rx_payload_bytes", "tx_payload_bytes")
        or total.get(meter)
        or any(meter in _texts(row.get("unsupported")) for row in rows)
    ]
    table = [_row(by, row, meters) for row in rows]
    rest, lost = _object(result.get("rest")), _object(result.get("unattributed"))
    if rest.get("rows"):
        name = f"({count(rest['rows'], 'row')} more)"
        table.append([Cell(name, "dim"), *_amounts(_object(rest.get("quantities")), meters)])
    if table and _object(lost.get("quantities")):
        found = _object(lost.get("quantities"))
        # What the host has no total of cannot be compared, which is not the same as nothing left.
        amounts = [_amount(meter, found[meter]) if meter in found else "-" for meter, _ in meters]
        table.append([Cell("(unattributed)", "dim"), *amounts])
    if table:
        marks = [{mark for row in rows for mark in _texts(row.get(key))} for key in _MARKS]
        table.append(["total", *_amounts(total, meters, estimated=marks[0], unsupported=marks[1])])
    yield Table(
        (by, *(f">{title}" for _, title in meters)), table, empty="nothing used in this time"
    )
    yield from _decisions(by, rows)
    yield from _notes(table, meters, lost, _objects(result.get("gaps")))


def _row(by: str, row: Mapping[str, Any], meters: Sequence[tuple[str, str]]) -> list[object]:
    name = row.get("name") or Cell(NOBODY.get(by, "-"), "dim")
    return [
        name,
        *_amounts(
            _object(row.get("quantities")),
            meters,
            estimated=_texts(row.get("estimated")),
            unsupported=_texts(row.get("unsupported")),
        ),
    ]


def _amounts(
    quantities: Mapping[str, Any],
    meters: Sequence[tuple[str, str]],
    *,
    estimated: Collection[str] = (),
    unsupported: Collection[str] = (),
) -> list[str]:
    """Each amount in few characters, marked with how far it may be trusted."""
    texts = []
    for meter, _ in meters:
        amount = quantities.get(meter)
        if not isinstance(amount, int) or isinstance(amount, bool):
            texts.append("n/a" if meter in unsupported else "0")
            continue
        text = _amount(meter, amount)
        text = f"~{text}" if meter in estimated and amount else text
        texts.append(f"{text}?" if meter in unsupported else text)
    return texts


def _amount(meter: str, amount: int) -> str:
    if meter == "cpu_ns":
        return cpu_time(amount)
    if meter.endswith("_byte_ms"):
        return f"{compact(amount / _HOUR_MS)}h"
    return compact(amount)


def _decisions(by: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """By license and without a window: what the rights were used for, beside how much."""
    keys = ("sockets", "allowed", "denied")
    counted = [row for row in rows if any(row.get(key) is not None for key in keys)]
    if by == "license" and counted:
        yield Table(
            ("license", ">open sockets", ">allowed", ">denied"),
            [(row.get("name"), *(row.get(key) for key in keys)) for row in counted],
            title="Decisions since the agent's programs were loaded",
        )


def _notes(
    table: Sequence[Sequence[object]],
    meters: Sequence[tuple[str, str]],
    lost: Mapping[str, Any],
    gaps: Sequence[Mapping[str, Any]],
) -> Iterator[Block]:
    amounts = [text for row in table for text in row[1:] if isinstance(text, str)]
    notes = []
    if any(text.startswith("~") for text in amounts):
        notes.append("~ estimated")
    if any(text.endswith("?") for text in amounts):
        notes.append("? not measured for some of the time")
    if "n/a" in amounts:
        notes.append("n/a not measured")
    if amounts and any(meter.endswith("_byte_ms") for meter, _ in meters):
        notes.append("Mh megabytes times hours")
    if notes:
        yield Line("")
        yield Line("; ".join(notes), "dim")
    for detail in _texts(lost.get("details")):
        yield Line(f"unattributed: {safe(detail)}", "dim")
    for gap in gaps:
        lines = f"{gap.get('first')} to {gap.get('last')}"
        yield Line(f"lost: records {lines}: {safe(gap.get('reason'))}", "warn")


def verify_blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    """What `usage verify` found."""
    is_good = result.get("good") is True
    problems = _texts(result.get("problems"))
    words = "holds: every record's hash and signature is right"
    if not is_good:
        words = f"does NOT hold: {count(len(problems), 'problem')}"
    yield Line(f"the ledger {words}", "good" if is_good else "bad")
    for problem in problems:
        yield Line(problem, "bad", indent=2)
    for gap in _objects(result.get("gaps")):
        span = f"records {safe(gap.get('first'))} to {safe(gap.get('last'))}"
        yield Line(f"{span} are lost: {safe(gap.get('reason'))}", "warn", indent=2)
    yield Fields(
        (
            ("folder", result.get("folder")),
            ("records", result.get("records")),
            ("signed batches", result.get("batches")),
        )
    )
    for epoch in _objects(result.get("epochs")):
        acknowledged = epoch.get("acknowledged")
        yield Fields(
            (
                ("records", f"{epoch.get('first')} to {epoch.get('last')}"),
                ("delivered", f"up to {acknowledged}" if acknowledged else "nothing"),
                ("public key", epoch.get("public_key")),
            ),
            title=f"Epoch {epoch.get('epoch')}",
        )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
