# SPDX-License-Identifier: Apache-2.0
"""Usage and money as one object: everything its API and its commands can ask for.

Answers are JSON objects (docs/reference/billing.md), the same on this machine and over the
network. Money is decimal text; quantities are whole numbers in the meter's unit.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any, Final

from licplane.service.access import PERMISSIONS, Permission, require
from licplane.service.answers import ChangeResult
from licplane.service.auditing import Auditing
from licplane.service.billing import Bill, Billing, RunResult
from licplane.service.billing_documents import BillingDocuments
from licplane.service.budgets import Budgets, state_document
from licplane.service.compliance import Compliance, report_csv, report_html
from licplane.service.core import Core
from licplane.service.explaining import Explaining, Explanation, record_document
from licplane.service.pricing import decimal_text
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.texts import one_of
from licplane.service.usage_export import UsageExport, safe_cell
from licplane.service.usage_keeper import UsageKeeper
from licplane.service.usage_query import UsageQueries, UsageQuery, UsageTable, kind_word
from licplane.service.usage_retention import UsageRetention
from licplane.service.usage_verify import Read, UsageVerify
from licplane.service.values import Actor
from licplane.store.money_schema import METERS
from lictoken.validity import rfc3339

DELIVERIES_MAX: Final = 1_000
_PROTOCOLS: Final = {0: "", 1: "icmp", 6: "tcp", 17: "udp", 132: "sctp", 255: "other"}


class Money:
    """Made by Plane. Threads may share it, but for `keep`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._documents = BillingDocuments(core)
        self._billing = Billing(core)
        self._queries = UsageQueries(core)
        self._explaining = Explaining(core)
        self._verify = UsageVerify(core)
        self._budgets = Budgets(core)
        self._export = UsageExport(core)
        self._compliance = Compliance(core)
        self._retention = UsageRetention(core)
        self._keeper = UsageKeeper(core, self._billing)

    def keep(self) -> bool:
        """The regular work; to be called every few seconds by each worker, which take turns."""
        return self._keeper.keep()

    # ----------------------------------------------------------------------------- usage
    def usage(self, actor: Actor, query: UsageQuery, form: str = "json") -> dict[str, Any]:
        """Usage in a window; `form` csv puts the table into `text`."""
        one_of(form, "The form", ("json", "csv"))
        table = self._queries.ask(actor, query)
        return {"text": _usage_csv(table)} if form == "csv" else usage_document(table)

    def explain(self, actor: Actor, entry: int, page: PageRequest | None) -> dict[str, Any]:
        """An entry of a bill, taken apart; with `page` down to its records."""
        return explanation_document(self._explaining.explain(actor, entry, page))

    def verify(self, actor: Actor, read: Read, host: str = "") -> dict[str, Any]:
        """Whether what is billed is what hosts signed."""
        check = self._verify.verify(actor, read, host)
        if not host and Permission.READ_AUDIT in PERMISSIONS[actor.role]:
            for problem in Auditing(self._core).verify(actor, None).problems:
                check.wrong(f"audit log: {problem}")
        return {"intact": not check.problems, **asdict(check)}

    # ------------------------------------------------------------------------- documents
    def documents(self, actor: Actor, kind: str) -> tuple[Document, ...]:
        """Price plans, triggers and budgets in force; secrets are left out."""
        return self._documents.list(actor, kind)

    def apply(
        self, actor: Actor, change: Change, documents: Sequence[Document], *, delete: bool
    ) -> ChangeResult:
        """Put them in force, or take them out; all or none."""
        return self._documents.apply(actor, change, documents, delete=delete)

    # --------------------------------------------------------------------------- billing
    def periods(self, actor: Actor, plan: str) -> dict[str, Any]:
        """Closed periods, newest first."""
        found = self._billing.periods(actor, plan)
        return {
            "periods": [
                {
                    "period": one.period,
                    "plan": one.plan,
                    "plan_version": one.plan_version,
                    "start": rfc3339(one.start_ms // 1000),
                    "end": rfc3339(one.end_ms // 1000),
                    "closed_at": rfc3339(one.closed_at_unix_ms // 1000),
                    "closed_by": one.closed_by,
                }
                for one in reversed(found)
            ]
        }

    def bill(self, actor: Actor, plan: str, label: str) -> dict[str, Any]:
        """A plan's period: what was billed, or what it comes to so far."""
        return bill_document(self._billing.bill(actor, plan, label))

    def close(self, actor: Actor, change: Change, plan: str, label: str) -> RunResult:
        """Bill a period that is over."""
        return self._billing.close(actor, change, plan, label)

    def correct(self, actor: Actor, change: Change, period: str) -> RunResult:
        """Write entries for what came since into a closed period (PLAN/LABEL)."""
        return self._billing.correct(actor, change, period)

    # ------------------------------------------------------- budgets, triggers, retention
    def budgets(self, actor: Actor, name: str) -> dict[str, Any]:
        """How budgets stand."""
        return {"budgets": [state_document(one) for one in self._budgets.states(actor, name)]}

    def deliveries(self, actor: Actor, state: str, name: str) -> dict[str, Any]:
        """What triggers and budgets told, or are trying to, newest first."""
        require(actor, Permission.READ_USAGE)
        if state:
            one_of(state, "The state", ("waiting", "delivered", "failed"))
        with self._core.store.reading() as reader:
            found = reader.deliveries(state=state, name=name, limit=DELIVERIES_MAX)
        return {
            "deliveries": [
                {
                    "id": one.delivery,
                    "kind": one.kind,
                    "name": one.name,
                    "channel": one.channel,
                    "target": one.target,
                    "state": one.state,
                    "created_at": rfc3339(one.created_at_unix_ms // 1000),
                    "attempts": one.attempts,
                    "next_at": rfc3339(one.next_at_unix_ms // 1000)
                    if one.state == "waiting"
                    else None,
                    "done_at": None
                    if one.done_at_unix_ms is None
                    else rfc3339(one.done_at_unix_ms // 1000),
                    "problem": one.problem,
                    "event": json.loads(one.event),
                }
                for one in found
            ]
        }

    def retention(self, actor: Actor) -> dict[str, Any]:
        """Days that records and sums are kept for."""
        return asdict(self._retention.get(actor))

    def set_retention(self, actor: Actor, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """Change some of them."""
        return self._retention.set(actor, change, days)

    # ----------------------------------------------------------------- reports and exports
    def report(
        self, actor: Actor, since_ms: int, until_ms: int, org: str, form: str
    ) -> dict[str, Any]:
        """The compliance report; `form` csv and html put it into `text`."""
        one_of(form, "The form", ("json", "csv", "html"))
        report = self._compliance.report(actor, since_ms, until_ms, org)
        if form == "json":
            return report
        return {"text": report_csv(report) if form == "csv" else report_html(report)}

    def export_events(
        self, actor: Actor, since_ms: int, until_ms: int, page: PageRequest
    ) -> dict[str, Any]:
        """Records as CloudEvents, one a line in `text`."""
        found = self._export.events(actor, since_ms, until_ms, page)
        return {"text": found.text, "next_token": found.next_token}

    def export_focus(self, actor: Actor, plan: str, label: str) -> dict[str, Any]:
        """A bill with the columns of FOCUS, CSV in `text`."""
        return {"text": self._export.focus(actor, plan, label).text, "next_token": ""}


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


def _usage_csv(table: UsageTable) -> str:
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
