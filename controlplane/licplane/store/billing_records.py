# SPDX-License-Identifier: Apache-2.0
"""Price plans, periods that were closed, and their entries. Entries are added, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select

from licplane.store.money_schema import (
    billing_documents,
    billing_entries,
    billing_periods,
    billing_positions,
    billing_runs,
)
from licplane.store.session import Session, blob, checked
from licplane.store.usage_rollups import Position


@dataclass(frozen=True, slots=True)
class BillingDocument:
    """A version of a price plan, trigger or budget."""

    kind: str
    name: str
    version: int  # 1 and up
    document: str  # JSON object; "" where it was removed
    actor: str
    at_unix_ms: int


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """A period of a plan that was billed."""

    period: str  # PLAN/2026-10
    plan: str
    plan_version: int
    start_ms: int
    end_ms: int
    closed_at_unix_ms: int
    closed_by: str


@dataclass(frozen=True, slots=True)
class BillingRun:
    """What was written into a period at one time."""

    run: int
    period: str
    kind: str  # close or correction
    at_unix_ms: int
    actor: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class BillingEntry:
    """One line of a bill."""

    entry: int
    run: int
    period: str
    account: str
    item: str
    kind: str  # charge, minimum or correction
    quantity: int  # in the meter's unit, signed
    amount: str  # decimal, signed
    detail: str  # JSON object


class BillingReads(Session):
    """Reading bills."""

    def billing_documents(self, kind: str) -> tuple[BillingDocument, ...]:
        """The newest version of each that was not removed, by name."""
        table = billing_documents
        newest = (
            select(table.c.name, func.max(table.c.version).label("version"))
            .where(table.c.kind == kind)
            .group_by(table.c.name)
            .subquery()
        )
        statement = (
            select(table)
            .join(
                newest,
                (table.c.name == newest.c.name) & (table.c.version == newest.c.version),
            )
            .where(table.c.kind == kind, table.c.document != "")
            .order_by(table.c.name)
        )
        return tuple(map(_document, self._all(statement)))

    def billing_versions(self, kind: str, name: str) -> tuple[BillingDocument, ...]:
        """Every version of one, oldest first."""
        table = billing_documents
        statement = select(table).where(table.c.kind == kind, table.c.name == name)
        return tuple(map(_document, self._all(statement.order_by(table.c.version))))

    def closed_periods(self, plan: str = "") -> tuple[ClosedPeriod, ...]:
        """Periods that were closed, oldest first."""
        table = billing_periods
        statement = select(table).order_by(table.c.start_ms, table.c.period)
        if plan:
            statement = statement.where(table.c.plan == plan)
        return tuple(map(_period, self._all(statement)))

    def closed_period(self, period: str) -> ClosedPeriod | None:
        """One of them."""
        row = self._one(select(billing_periods).where(billing_periods.c.period == period))
        return None if row is None else _period(row)

    def billing_runs(self, period: str = "") -> tuple[BillingRun, ...]:
        """All runs, or those of a period, oldest first."""
        statement = select(billing_runs).order_by(billing_runs.c.run)
        if period:
            statement = statement.where(billing_runs.c.period == period)
        return tuple(map(_run, self._all(statement)))

    def billing_entries(
        self, period: str = "", *, run: int = 0, account: str | None = None
    ) -> tuple[BillingEntry, ...]:
        """Entries of a period or run, in the order they were written."""
        table = billing_entries
        statement = select(table).order_by(table.c.entry)
        if period:
            statement = statement.where(table.c.period == period)
        if run:
            statement = statement.where(table.c.run == run)
        if account is not None:
            statement = statement.where(table.c.account == account)
        return tuple(map(_entry, self._all(statement)))

    def billing_entry(self, entry: int) -> BillingEntry | None:
        """One entry."""
        row = self._one(select(billing_entries).where(billing_entries.c.entry == entry))
        return None if row is None else _entry(row)

    def billing_positions(self, run: int) -> tuple[Position, ...]:
        """How far the rollups were when a run was made."""
        table = billing_positions
        statement = select(table).where(table.c.run == run)
        rows = self._all(statement.order_by(table.c.host_id, table.c.epoch))
        return tuple(Position(row.host_id, row.epoch, row.sequence) for row in rows)


class BillingWrites(BillingReads):
    """Writing bills. The caller holds `lock_usage`."""

    def put_billing_document(self, one: BillingDocument) -> None:
        """A new version."""
        self._put(
            billing_documents,
            [
                {
                    "kind": one.kind,
                    "name": one.name,
                    "version": one.version,
                    "document": one.document,
                    "actor": one.actor,
                    "at_unix_ms": one.at_unix_ms,
                }
            ],
            skip=True,
        )

    def put_closed_period(self, one: ClosedPeriod) -> None:
        """A period is closed; one that is stays as it was."""
        names = ClosedPeriod.__slots__
        self._put(billing_periods, [{name: getattr(one, name) for name in names}], skip=True)

    def next_billing_numbers(self) -> tuple[int, int]:
        """The next run and the next entry."""
        run = self._connection.scalar(select(func.max(billing_runs.c.run))) or 0
        entry = self._connection.scalar(select(func.max(billing_entries.c.entry))) or 0
        return run + 1, entry + 1

    def add_billing_run(
        self, run: BillingRun, entries: Sequence[BillingEntry], positions: Sequence[Position]
    ) -> None:
        """A run with its entries, and how far the rollups are."""
        self._connection.execute(
            billing_runs.insert(), {name: getattr(run, name) for name in BillingRun.__slots__}
        )
        if entries:
            rows = [
                {name: getattr(one, name) for name in BillingEntry.__slots__} for one in entries
            ]
            for row in rows:
                row["quantity"] = str(row["quantity"])
            self._connection.execute(billing_entries.insert(), rows)
        if positions:
            self._connection.execute(
                billing_positions.insert(),
                [
                    {
                        "run": run.run,
                        "host_id": one.host_id,
                        "epoch": one.epoch,
                        "sequence": one.sequence,
                    }
                    for one in positions
                ],
            )


@checked
def _document(row: Row[Any]) -> BillingDocument:
    return BillingDocument(row.kind, row.name, row.version, row.document, row.actor, row.at_unix_ms)


@checked
def _period(row: Row[Any]) -> ClosedPeriod:
    return ClosedPeriod(*(getattr(row, name) for name in ClosedPeriod.__slots__))


@checked
def _run(row: Row[Any]) -> BillingRun:
    return BillingRun(row.run, row.period, row.kind, row.at_unix_ms, row.actor, blob(row.digest))


@checked
def _entry(row: Row[Any]) -> BillingEntry:
    return BillingEntry(
        row.entry,
        row.run,
        row.period,
        row.account,
        row.item,
        row.kind,
        int(row.quantity),
        row.amount,
        row.detail,
    )
