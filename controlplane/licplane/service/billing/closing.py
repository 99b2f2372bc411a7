# SPDX-License-Identifier: Apache-2.0
"""Bills: periods are closed once, and corrected by entries; nothing that was written changes.

A run notes how far the records of each host were in the rollups when it was made. So for each
entry it can be said for ever which records it is of: those in its period beyond the run before,
and up to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.access import Permission, require
from licplane.service.billing.bills import Bill, bill_of, billed, digest_of, plan_version
from licplane.service.billing.documents import current, plan_of
from licplane.service.billing.due_periods import check_final, is_final, overlapped, unbilled
from licplane.service.billing.periods import period_of
from licplane.service.billing.pricing import (
    MINIMUM,
    Charge,
    Plan,
    charges,
    decimal_text,
    differences,
    quantities_of,
)
from licplane.service.core import Core
from licplane.service.requests import Change
from licplane.service.texts import refuse, shown
from licplane.service.usage.query import billed_lines
from licplane.service.values import Actor, Role
from licplane.service.work import Work, canonical, perform
from licplane.store.billing_records import (
    BillingEntry,
    BillingRun,
    ClosedPeriod,
)
from licplane.store.database import Transaction
from licplane.store.reader import Reader
from licplane.store.usage_sums import Window

KEEPER: Final = Actor("licplane:billing", Role.ADMIN)
"""In whose name periods are closed and corrected without anybody asking."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What closing or correcting wrote."""

    period: str
    changed: bool
    dry_run: bool
    run: int
    entries: int
    total: str  # of these entries
    currency: str
    digest: str  # hexadecimal SHA-256 of the entries, as the audit log has it


class Billing:
    """Closing, correcting and showing."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def bill(self, actor: Actor, plan: str, label: str) -> Bill:
        """The bill of a plan's period; `label` "" is the one that runs now."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            return bill_of(reader, plan, label, self._core.now_ms())

    def periods(self, actor: Actor, plan: str = "") -> tuple[ClosedPeriod, ...]:
        """Periods that were closed."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            return reader.closed_periods(plan)

    def close(self, actor: Actor, change: Change, plan: str, label: str) -> RunResult:
        """Bill a period that is over. Closed again, nothing changes."""
        require(actor, Permission.CHANGE_BILLING)
        request: dict[str, object] = {
            "method": "close_billing",
            "plan": plan,
            "period": label,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> RunResult:
            return _close(work, plan, label)

        return self._perform(actor, change, request, body)

    def correct(self, actor: Actor, change: Change, period: str) -> RunResult:
        """Write entries for what came, since it was billed, into a closed period."""
        require(actor, Permission.CHANGE_BILLING)
        request: dict[str, object] = {
            "method": "correct_billing",
            "period": period,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> RunResult:
            return _correct(work, period)

        return self._perform(actor, change, request, body)

    def _perform(
        self,
        actor: Actor,
        change: Change,
        request: Mapping[str, object],
        body: Callable[[Work], RunResult],
    ) -> RunResult:
        return perform(self._core, actor, change, request, body, encode=_encoded, decode=_decoded)

    def due(self) -> list[tuple[str, str]]:
        """Plans and labels of periods that should be closed by now, oldest first.

        The period in which a plan was made is its first.
        """
        now_ms = self._core.now_ms()
        found = []
        with self._core.store.reading() as reader:
            for document in reader.billing_documents("plan"):
                plan = plan_of(document)
                for period in unbilled(reader, document, now_ms):
                    if period.end_ms + plan.close_after_ms > now_ms:
                        break
                    found.append((period.start_ms, plan.name, period.label))
        return [(plan, label) for _, plan, label in sorted(found)]

    def late(self, since_ms: int = 0) -> list[str]:
        """Closed periods into which usage came that is in none of their entries, of those that
        ended after `since_ms` and that are not final."""
        found = []
        with self._core.store.reading() as reader:
            for one in reader.closed_periods():
                if one.end_ms <= since_ms or is_final(reader, one):
                    continue
                plan = plan_version(reader, one.plan, one.plan_version)
                if _difference(reader, plan, one):
                    found.append(one.period)
        return found


def _roll_all(transaction: Transaction) -> None:
    transaction.lock_usage()
    while transaction.roll_up() is not None:
        pass


def _close(work: Work, name: str, label: str) -> RunResult:
    transaction = work.transaction
    document = current(transaction, "plan", name)
    plan = plan_of(document)
    if not label:
        raise refuse("No period is named", "Name one, as in --period 2026-10")
    period = period_of(plan.period, label)
    if period.end_ms > work.now_ms:
        raise PlaneError(
            ExitCode.REFUSED,
            f"The period {period.label} is not over",
            "Close it after its end; `licplane billing show` says what it comes to so far",
        )
    key = f"{plan.name}/{period.label}"
    if transaction.closed_period(key) is not None:
        return RunResult(key, False, work.change.dry_run, 0, 0, "0", plan.currency, "")
    other = overlapped(period, transaction.closed_periods(plan.name))
    if other is not None:
        raise PlaneError(
            ExitCode.REFUSED,
            f"A part of {shown(key)} is billed already, in {shown(other.period)}",
            "Nothing is billed twice under one plan; make a new plan for other periods",
        )
    _roll_all(transaction)
    found = ClosedPeriod(
        key,
        plan.name,
        document.version,
        period.start_ms,
        period.end_ms,
        work.now_ms,
        work.actor.name,
    )
    transaction.put_closed_period(found)
    return _write(work, plan, found, _difference(transaction, plan, found), "close")


def _correct(work: Work, key: str) -> RunResult:
    transaction = work.transaction
    period = transaction.closed_period(key)
    if period is None:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"The period {shown(key)} was not closed",
            "`licplane billing list` shows those that were",
        )
    check_final(transaction, period)
    plan = plan_version(transaction, period.plan, period.plan_version)
    _roll_all(transaction)
    found = _difference(transaction, plan, period)
    if not found:
        return RunResult(key, False, work.change.dry_run, 0, 0, "0", plan.currency, "")
    return _write(work, plan, period, found, "correction")


def _difference(reader: Reader, plan: Plan, period: ClosedPeriod) -> list[Charge]:
    """What is in the rollups and not in the entries."""
    lines = billed_lines(reader, Window(period.start_ms, period.end_ms), rolled_only=True)
    now = charges(plan, quantities_of(plan, [(s, one.quantities) for s, one in lines]))
    return differences(now, billed(reader.billing_entries(period.period)))


def _write(
    work: Work, plan: Plan, period: ClosedPeriod, found: Sequence[Charge], kind: str
) -> RunResult:
    transaction = work.transaction
    number, entry = transaction.next_billing_numbers()
    before: dict[tuple[str, str], list[int]] = {}
    for old in transaction.billing_entries(period.period):
        before.setdefault((old.account, old.item), []).append(old.entry)
    entries = [
        BillingEntry(
            entry + at,
            number,
            period.period,
            one.account,
            one.item,
            _kind(kind, one),
            one.quantity,
            f"{one.amount:f}",
            _detail(plan, one, before.get((one.account, one.item), [])),
        )
        for at, one in enumerate(found)
    ]
    digest = digest_of(entries)
    run = BillingRun(number, period.period, kind, work.now_ms, work.actor.name, digest)
    transaction.add_billing_run(run, entries, transaction.rolled_positions())
    total = sum((one.amount for one in found), Decimal(0))
    work.audit(
        f"billing.{kind}",
        period.period,
        {
            "run": number,
            "plan_version": period.plan_version,
            "entries": len(entries),
            "total": f"{total:f}",
            "currency": plan.currency,
            "sha256": digest.hex(),
        },
    )
    return RunResult(
        period.period,
        True,
        work.change.dry_run,
        number,
        len(entries),
        f"{total:f}",
        plan.currency,
        digest.hex(),
    )


def _kind(kind: str, one: Charge) -> str:
    if kind == "correction":
        return kind
    return MINIMUM if one.item == MINIMUM else "charge"


def _detail(plan: Plan, one: Charge, corrects: Sequence[int]) -> str:
    """How the account's amount for the item comes about, all of the period's usage together."""
    items = {item.name: item for item in plan.items}
    item = items.get(one.item)
    if item is None:
        return canonical({"minimum": f"{plan.minimum:f}", "corrects": list(corrects)})
    return canonical(
        {
            "corrects": list(corrects),
            "meters": list(item.meters),
            "unit": item.unit,
            "units": decimal_text(Fraction(one.quantity, item.divisor)),
            "included": f"{item.included:f}",
            "steps": [
                {"units": decimal_text(step.units), "price": f"{step.price:f}"}
                for step in one.steps
            ],
        }
    )


def _encoded(result: RunResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in RunResult.__slots__}


def _decoded(value: Mapping[str, Any]) -> RunResult:
    return RunResult(**value)
