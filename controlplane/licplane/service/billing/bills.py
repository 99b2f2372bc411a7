# SPDX-License-Identifier: Apache-2.0
"""A plan's period as a bill: what was written, or what it comes to so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from licplane.errors import ExitCode, PlaneError
from licplane.service.billing.documents import current, plan_of
from licplane.service.billing.periods import Period, period_at, period_of
from licplane.service.billing.pricing import Charge, Plan, charges, quantities_of
from licplane.service.texts import shown
from licplane.service.usage.query import billed_lines
from licplane.store.billing_records import BillingDocument, BillingEntry, BillingReads, BillingRun
from licplane.store.reader import Reader
from licplane.store.usage_sums import Window


@dataclass(frozen=True, slots=True)
class Bill:
    """A plan's period: what was written, or for an open one what it comes to so far."""

    period: str
    plan: Plan
    plan_version: int
    start_ms: int
    end_ms: int
    state: str  # open, due or closed
    lines: tuple[Charge, ...]  # sums for each account and item
    entries: tuple[BillingEntry, ...]  # of a closed one
    runs: tuple[BillingRun, ...]
    closed_at_unix_ms: int = 0
    closed_by: str = ""

    @property
    def total(self) -> Decimal:
        """The sum of its lines."""
        return sum((line.amount for line in self.lines), Decimal(0))


def bill_of(reader: Reader, name: str, label: str, now_ms: int) -> Bill:
    """See Billing.bill."""
    versions = reader.billing_versions("plan", name)
    if not versions:
        current(reader, "plan", name)
    period = _period(_newest(versions), label, now_ms)
    key = f"{name}/{period.label}"
    closed = reader.closed_period(key)
    if closed is None:
        document = current(reader, "plan", name)
        plan = plan_of(document)
        lines = billed_lines(reader, Window(period.start_ms, period.end_ms))
        found = charges(plan, quantities_of(plan, [(s, one.quantities) for s, one in lines]))
        state = "open" if period.end_ms > now_ms else "due"
        return Bill(
            key, plan, document.version, period.start_ms, period.end_ms, state, tuple(found), (), ()
        )
    plan = plan_version(reader, name, closed.plan_version)
    entries = reader.billing_entries(key)
    lines_now = [
        Charge(account, item, quantity, amount)
        for (account, item), (quantity, amount) in sorted(billed(entries).items())
    ]
    return Bill(
        key,
        plan,
        closed.plan_version,
        closed.start_ms,
        closed.end_ms,
        "closed",
        tuple(lines_now),
        entries,
        reader.billing_runs(key),
        closed.closed_at_unix_ms,
        closed.closed_by,
    )


def plan_version(reader: BillingReads, name: str, version: int) -> Plan:
    """A plan as it was."""
    for one in reader.billing_versions("plan", name):
        if one.version == version and one.document:
            return plan_of(one)
    raise PlaneError(
        ExitCode.INTERNAL,
        f"Version {version} of the plan {shown(name)} is not there",
        "The database was altered: restore a backup",
    )


def billed(entries: Sequence[BillingEntry]) -> dict[tuple[str, str], tuple[int, Decimal]]:
    """What entries come to, by account and item."""
    found: dict[tuple[str, str], tuple[int, Decimal]] = {}
    for one in entries:
        quantity, amount = found.get((one.account, one.item), (0, Decimal(0)))
        found[one.account, one.item] = (quantity + one.quantity, amount + Decimal(one.amount))
    return found


def digest_of(entries: Sequence[BillingEntry]) -> bytes:
    """SHA-256 over entries, as the audit log has it."""
    digest = hashlib.sha256(b"licplane-billing-v1\0")
    for one in entries:
        line = [getattr(one, name) for name in BillingEntry.__slots__]
        digest.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.digest()


def _newest(versions: Sequence[BillingDocument]) -> Plan:
    """The newest version that says something."""
    return plan_of(next(one for one in reversed(versions) if one.document))


def _period(plan: Plan, label: str, now_ms: int) -> Period:
    return period_of(plan.period, label) if label else period_at(plan.period, now_ms)
