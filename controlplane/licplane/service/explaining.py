# SPDX-License-Identifier: Apache-2.0
"""From a billed figure down to its records, their hosts and processes, and why it was allocated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from licplane.service import paging
from licplane.service.access import Permission, require
from licplane.service.billing.bills import plan_version
from licplane.service.billing.pricing import MINIMUM, Item, Plan, Subject
from licplane.service.core import Core
from licplane.service.reports import kept
from licplane.service.requests import PageRequest
from licplane.service.usage.query import kind_word, meters_in
from licplane.service.values import Actor, Kind
from licplane.store.billed_usage import Span
from licplane.store.billing_records import BillingEntry, ClosedPeriod
from licplane.store.reader import Reader
from licplane.store.usage_evidence import Evidence
from licplane.store.usage_sums import Window

_AUDIT_PAGE: Final = 1_000
_AUDIT_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Allocation:
    """Why use was charged to a license: the decision, and who brought it about."""

    license: str
    resource: str
    binding: str
    binding_document: str  # JSON, as it is now; "" where it is gone
    resource_document: str
    audit: tuple[Mapping[str, object], ...]  # who put license, binding and resource in force
    decisions: tuple[Mapping[str, object], ...]  # counted by the hosts, as of their last reports


@dataclass(frozen=True, slots=True)
class Explanation:
    """An entry of a bill, taken apart."""

    entry: BillingEntry
    period: ClosedPeriod
    plan: Plan
    spans: tuple[tuple[Span, int], ...]  # with what of each was counted for the entry
    counted: int
    adds_up: bool  # what the records come to is what the entry says
    complete: bool  # no record of the period was deleted
    hostnames: Mapping[str, str]
    allocations: tuple[Allocation, ...]
    records: tuple[tuple[Evidence, int], ...] = ()  # where they were asked for
    next_token: str = ""


class Explaining:
    """Taking bills apart."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def explain(self, actor: Actor, entry: int, page: PageRequest | None = None) -> Explanation:
        """An entry, and with `page` also its single records."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            return _explain(reader, entry, page)


def record_document(one: Evidence) -> dict[str, Any]:
    """A record for JSON."""
    return {
        "id": record_id(one),
        "host_id": one.host_id,
        "boot_id": one.boot_id,
        "epoch": one.epoch,
        "sequence": one.sequence,
        "kind": kind_word(one.kind),
        "start_unix_ms": one.start_ms,
        "end_unix_ms": one.end_ms,
        "received_unix_ms": one.received_ms,
        "license": one.license,
        "resource": one.resource,
        "binding": one.binding,
        "organization": one.organization,
        "project": one.project,
        "environment": one.environment,
        "region": one.region,
        "unit": one.unit,
        "cgroup": one.cgroup,
        "user": one.user,
        "uid": one.uid if one.uid >= 0 else None,
        "executable": one.executable,
        "pid": one.pid,
        "process_start_unix_ms": one.process_start_ms,
        "protocol": one.protocol,
        "loopback": bool(one.loopback),
        "estimated": list(meters_in(one.estimated)),
        "unsupported": list(meters_in(one.unsupported)),
        "detail": one.detail,
        "payload_sha256": one.payload_hash.hex(),
        "quantities": one.quantities,
    }


def record_id(one: Evidence) -> str:
    """The name of a record in the fleet, for ever."""
    return f"{one.host_id}/{one.boot_id}/{one.epoch}/{one.sequence}"


def _explain(reader: Reader, number: int, page: PageRequest | None) -> Explanation:
    entry = reader.billing_entry(number)
    if entry is None:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"There is no entry {number}",
            "`licplane billing show PLAN --period LABEL` lists entries with their numbers",
        )
    period = reader.closed_period(entry.period)
    if period is None:
        raise PlaneError(
            ExitCode.INTERNAL, "The entry's period is not there", "Restore the database"
        )
    plan = plan_version(reader, period.plan, period.plan_version)
    runs = [one.run for one in reader.billing_runs(entry.period)]
    before = max((run for run in runs if run < entry.run), default=0)
    window = Window(period.start_ms, period.end_ms)
    item = next((one for one in plan.items if one.name == entry.item), None)
    spans: list[tuple[Span, int]] = []
    if item is not None:
        for span in reader.billed_spans(window, entry.run, before):
            amount = _counted(plan, item, entry.account, span)
            if amount:
                spans.append((span, amount))
    counted = sum(amount for _, amount in spans)
    hosts = {span.host_id for span, _ in spans}
    return Explanation(
        entry,
        period,
        plan,
        tuple(spans),
        counted,
        counted == entry.quantity,
        reader.usage_work().kept_until_ms <= period.start_ms,
        {host.host_id: host.hostname for host in reader.hosts() if host.host_id in hosts},
        tuple(_allocations(reader, [span for span, _ in spans])),
        *_records(reader, plan, item, entry, window=window, before=before, page=page),
    )


def _counted(plan: Plan, item: Item, account: str, one: Span | Evidence) -> int:
    subject = Subject(
        one.license,
        one.resource,
        one.organization,
        one.project,
        one.environment,
        one.region,
        one.host_id,
        one.kind,
        one.protocol,
        one.loopback,
    )
    if not plan.choice.holds(subject) or plan.account_of(subject) != account:
        return 0
    return item.quantity_of(subject, one.quantities)


def _records(
    reader: Reader,
    plan: Plan,
    item: Item | None,
    entry: BillingEntry,
    *,
    window: Window,
    before: int,
    page: PageRequest | None,
) -> tuple[tuple[tuple[Evidence, int], ...], str]:
    if page is None or item is None or entry.item == MINIMUM:
        return (), ""
    size = paging.size_of(page)
    key = paging.key_of(page, 3)
    after = (key[0], int(key[1]), int(key[2])) if key else ("", 0, 0)
    found: list[tuple[Evidence, int]] = []
    while len(found) < size:
        rows = reader.billed_records(window, entry.run, before, after=after, limit=size)
        for row in rows:
            after = (row.host_id, row.epoch, row.sequence)
            amount = _counted(plan, item, entry.account, row)
            if amount:
                found.append((row, amount))
                if len(found) == size:
                    break
        if len(rows) < size:
            return tuple(found), ""
    return tuple(found), paging.token_of(after[0], str(after[1]), str(after[2]))


def _allocations(reader: Reader, spans: Sequence[Span]) -> list[Allocation]:
    """Why each license was charged, once for each license, resource and binding."""
    wanted = sorted({(one.license, one.resource, one.binding) for one in spans})
    if not wanted:
        return []
    targets = {name for key in wanted for name in key if name}
    audit = _audit(reader, targets)
    reports = {
        host: json.loads(kept(row.report).json or "{}")
        for host in sorted({one.host_id for one in spans})
        if (row := reader.report(host)) is not None
    }
    return [
        Allocation(
            license,
            resource,
            binding,
            _document(reader, Kind.BINDING, binding),
            _document(reader, Kind.RESOURCE, resource),
            tuple(one for one in audit if one["target"] in (license, resource, binding))[
                -_AUDIT_SHOWN:
            ],
            tuple(_decisions(reports, license, resource)),
        )
        for license, resource, binding in wanted
    ]


def _document(reader: Reader, kind: Kind, name: str) -> str:
    found = reader.object(kind, name) if name else None
    return found.document if found is not None else ""


def _audit(reader: Reader, targets: set[str]) -> list[dict[str, object]]:
    """Entries of the audit log about these names."""
    found: list[dict[str, object]] = []
    after = 0
    while rows := reader.audit(after_sequence=after, limit=_AUDIT_PAGE):
        found += [
            {
                "sequence": one.sequence,
                "at_unix_ms": one.at_unix_ms,
                "actor": one.actor,
                "action": one.action,
                "target": one.target,
                "reason": one.reason,
            }
            for one in rows
            if one.target in targets
        ]
        after = rows[-1].sequence
    return found


def _decisions(reports: Mapping[str, Any], license: str, resource: str) -> list[dict[str, object]]:
    """How often hosts decided so: totals since their agent's boot."""
    found: list[dict[str, object]] = []
    for host, report in reports.items():
        decisions = report.get("decisions") if isinstance(report, dict) else None
        for one in decisions if isinstance(decisions, list) else ():
            if not isinstance(one, dict):
                continue
            if one.get("license", "") == license and one.get("resource", "") == resource:
                found.append(
                    {
                        "host_id": host,
                        "verdict": str(one.get("verdict", "")),
                        "reason": str(one.get("reason", "")),
                        "count": int(one.get("count", 0)),
                    }
                )
    return found
