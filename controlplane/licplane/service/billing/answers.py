# SPDX-License-Identifier: Apache-2.0
"""Usage and bills as JSON objects and CSV, as docs/reference/billing.md has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any, Final

from licplane.service.billing.bills import Bill
from licplane.service.billing.closing import RunResult
from licplane.service.billing.pricing import decimal_text
from licplane.service.explaining import Explanation, record_document
from licplane.service.usage.export import safe_cell
from licplane.service.usage.query import UsageTable, kind_word
from licplane.store.money_schema import METERS
from lictoken.validity import rfc3339

_PROTOCOLS: Final = {0: "", 1: "icmp", 6: "tcp", 17: "udp", 132: "sctp", 255: "other"}


def usage_document(table: UsageTable) -> dict[str, Any]:
    """A table of usage for JSON."""
    hostnames = table.hostnames or {}
    return {
        "columns": list(table.columns),
        "since_unix_ms": table.since_ms,
        "until_unix_ms": table.until_ms or None,
        "usage": [
            {
                **_cells(table.columns, line.key),
                **(
                    {"hostname": hostnames.get(str(line.key[table.columns.index("host")]), "")}
                    if "host" in table.columns
                    else {}
                ),
                "quantities": line.quantities,
                "records": line.records,
                "first_unix_ms": line.first_ms,
                "last_unix_ms": line.last_ms,
                "estimated": list(line.estimated),
                "unsupported": list(line.unsupported),
                "unattributed": line.unattributed,
            }
            for line in table.lines
        ],
        "totals": table.totals,
        "waiting_batches": table.waiting_batches,
        "notes": list(table.notes),
    }


def _cells(columns: Sequence[str], key: Sequence[str | int]) -> dict[str, object]:
    """A line's key, in words."""
    found: dict[str, object] = {}
    for name, value in zip(columns, key, strict=True):
        if name in ("hour", "day"):
            found[name] = rfc3339(int(value) // 1000)
        elif name == "process_start":
            found["process_start_unix_ms"] = value
        elif name == "kind":
            found[name] = kind_word(int(value))
        elif name == "protocol":
            found[name] = _PROTOCOLS.get(int(value), str(value))
        elif name == "loopback":
            found[name] = bool(value)
        else:
            found[name] = value
    return found


def usage_csv(table: UsageTable) -> str:
    """A table of usage for a spreadsheet."""
    document = usage_document(table)
    file = io.StringIO()
    first: list[str] = list(_cells(table.columns, [0] * len(table.columns)))
    if "host" in first:
        first.insert(first.index("host") + 1, "hostname")
    columns = [*first, *METERS, "records", "estimated", "unsupported", "unattributed"]
    writer = csv.DictWriter(file, columns, restval=0, lineterminator="\r\n")
    writer.writeheader()
    for line in document["usage"]:
        row = {name: safe_cell(str(line[name])) for name in first}
        marks = {name: " ".join(line[name]) for name in ("estimated", "unsupported")}
        marks["unattributed"] = "unattributed" if line["unattributed"] else ""
        writer.writerow({**row, **line["quantities"], "records": line["records"], **marks})
    return file.getvalue()


def bill_document(bill: Bill) -> dict[str, Any]:
    """A bill for JSON."""
    plan = bill.plan
    items = {item.name: item for item in plan.items}

    def units(item: str, quantity: int) -> dict[str, object]:
        found = items.get(item)
        if found is None:
            return {"units": None, "unit": None}
        return {
            "units": decimal_text(Fraction(quantity, found.divisor), 9),
            "unit": found.unit,
        }

    return {
        "period": bill.period,
        "plan": plan.name,
        "plan_version": bill.plan_version,
        "currency": plan.currency,
        "account": plan.account,
        "start": rfc3339(bill.start_ms // 1000),
        "end": rfc3339(bill.end_ms // 1000),
        "state": bill.state,
        "closed_at": rfc3339(bill.closed_at_unix_ms // 1000) if bill.closed_at_unix_ms else None,
        "closed_by": bill.closed_by or None,
        "total": f"{bill.total:f}",
        "lines": [
            {
                "account": line.account,
                "item": line.item,
                "quantity": line.quantity,
                **units(line.item, line.quantity),
                "amount": f"{line.amount:f}",
            }
            for line in bill.lines
        ],
        "runs": [
            {
                "run": run.run,
                "kind": run.kind,
                "at": rfc3339(run.at_unix_ms // 1000),
                "actor": run.actor,
                "sha256": run.digest.hex(),
            }
            for run in bill.runs
        ],
        "entries": [
            {
                "entry": entry.entry,
                "run": entry.run,
                "account": entry.account,
                "item": entry.item,
                "kind": entry.kind,
                "quantity": entry.quantity,
                **units(entry.item, entry.quantity),
                "amount": entry.amount,
                "detail": json.loads(entry.detail),
            }
            for entry in bill.entries
        ],
    }


def explanation_document(found: Explanation) -> dict[str, Any]:
    """An explanation for JSON."""
    entry = found.entry
    return {
        "entry": {
            "entry": entry.entry,
            "run": entry.run,
            "period": entry.period,
            "account": entry.account,
            "item": entry.item,
            "kind": entry.kind,
            "quantity": entry.quantity,
            "amount": entry.amount,
            "currency": found.plan.currency,
            "detail": json.loads(entry.detail),
        },
        "plan": found.plan.name,
        "plan_version": found.period.plan_version,
        "start": rfc3339(found.period.start_ms // 1000),
        "end": rfc3339(found.period.end_ms // 1000),
        "counted": found.counted,
        "adds_up": found.adds_up,
        "complete": found.complete,
        "spans": [
            {
                "host_id": span.host_id,
                "hostname": found.hostnames.get(span.host_id, ""),
                "epoch": span.epoch,
                "first_sequence": span.first_sequence,
                "last_sequence": span.last_sequence,
                "records": span.records,
                "license": span.license,
                "resource": span.resource,
                "binding": span.binding,
                "unit": span.unit,
                "user": span.user,
                "executable": span.executable,
                "kind": kind_word(span.kind),
                "protocol": _PROTOCOLS.get(span.protocol, str(span.protocol)),
                "loopback": bool(span.loopback),
                "first_unix_ms": span.first_ms,
                "last_unix_ms": span.last_ms,
                "counted": amount,
            }
            for span, amount in found.spans
        ],
        "allocations": [
            {
                "license": one.license,
                "resource": one.resource,
                "binding": one.binding,
                "binding_document": json.loads(one.binding_document or "null"),
                "resource_document": json.loads(one.resource_document or "null"),
                "audit": list(one.audit),
                "decisions": list(one.decisions),
            }
            for one in found.allocations
        ],
        "records": [{**record_document(one), "counted": amount} for one, amount in found.records],
        "next_token": found.next_token,
    }


def run_document(result: RunResult) -> dict[str, Any]:
    """What closing or correcting wrote, for JSON."""
    return asdict(result)
