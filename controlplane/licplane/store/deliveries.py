# SPDX-License-Identifier: Apache-2.0
"""The outbox of triggers and budgets, and what differed on hosts, and since when."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, select, update

from licplane.store.money_schema import host_drift, trigger_deliveries
from licplane.store.session import Session, checked


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something to tell somebody, once."""

    delivery: str  # hexadecimal SHA-256: the same thing to the same place has the same one
    kind: str  # trigger or budget
    name: str
    channel: str  # webhook, command or log
    target: str
    event: str  # JSON object: a CloudEvent
    state: str  # waiting, delivered or failed
    created_at_unix_ms: int
    attempts: int = 0
    next_at_unix_ms: int = 0
    done_at_unix_ms: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """Something that differed on a host."""

    host_id: str
    what: str
    first_unix_ms: int
    last_unix_ms: int
    ended_unix_ms: int | None = None


class DeliveryReads(Session):
    """Reading the outbox and drift."""

    def deliveries(
        self, *, state: str = "", name: str = "", limit: int = 1000
    ) -> tuple[Delivery, ...]:
        """Deliveries, newest first."""
        table = trigger_deliveries
        statement = select(table)
        if state:
            statement = statement.where(table.c.state == state)
        if name:
            statement = statement.where(table.c.name == name)
        order = (table.c.created_at_unix_ms.desc(), table.c.delivery)
        return tuple(map(_delivery, self._all(statement.order_by(*order).limit(limit))))

    def due_deliveries(self, now_ms: int, limit: int) -> tuple[Delivery, ...]:
        """Those whose turn it is, the ones that waited longest first."""
        table = trigger_deliveries
        statement = (
            select(table)
            .where(table.c.state == "waiting", table.c.next_at_unix_ms <= now_ms)
            .order_by(table.c.next_at_unix_ms, table.c.delivery)
            .limit(limit)
        )
        return tuple(map(_delivery, self._all(statement)))

    def drift_rows(self, since_ms: int, until_ms: int) -> tuple[DriftRow, ...]:
        """What differed at some time in the window, by host and time."""
        table = host_drift
        statement = (
            select(table)
            .where(
                table.c.first_unix_ms < until_ms,
                (table.c.ended_unix_ms.is_(None)) | (table.c.ended_unix_ms >= since_ms),
            )
            .order_by(table.c.host_id, table.c.first_unix_ms, table.c.what_hash)
        )
        return tuple(map(_drift, self._all(statement)))


class DeliveryRecords(DeliveryReads):
    """Writing the outbox and drift."""

    def put_deliveries(self, rows: Sequence[Delivery]) -> int:
        """Put these into the outbox; those that were there stay as they are. How many are new."""
        names = Delivery.__slots__
        return sum(
            self._put(trigger_deliveries, [{name: getattr(one, name) for name in names}], skip=True)
            for one in rows
        )

    def mark_delivery(self, one: Delivery) -> None:
        """How a try went; one that is delivered or given up stays so."""
        self._run(
            update(trigger_deliveries)
            .where(
                trigger_deliveries.c.delivery == one.delivery,
                trigger_deliveries.c.state == "waiting",
            )
            .values(
                state=one.state,
                attempts=one.attempts,
                next_at_unix_ms=one.next_at_unix_ms,
                done_at_unix_ms=one.done_at_unix_ms,
                problem=one.problem,
            )
        )

    def purge_deliveries(self, before_ms: int) -> int:
        """Forget those that were done before."""
        return self._run(
            delete(trigger_deliveries).where(
                trigger_deliveries.c.state != "waiting",
                func.coalesce(trigger_deliveries.c.done_at_unix_ms, 0) < before_ms,
            )
        )

    def note_drift(self, found: Mapping[str, Sequence[str]], now_ms: int) -> None:
        """What differs now, by host: what is new begins, what is gone ends."""
        table = host_drift
        rows = self._all(select(table).where(table.c.ended_unix_ms.is_(None)))
        known = {(row.host_id, bytes(row.what_hash)): row for row in rows}
        wanted = {
            (host_id, _hash(what)): what for host_id, several in found.items() for what in several
        }
        for key, row in known.items():
            if key in wanted:
                continue
            self._run(
                update(table)
                .where(
                    table.c.host_id == row.host_id,
                    table.c.what_hash == row.what_hash,
                    table.c.first_unix_ms == row.first_unix_ms,
                )
                .values(last_unix_ms=now_ms, ended_unix_ms=now_ms)
            )
        new = [
            {
                "host_id": host_id,
                "what_hash": digest,
                "first_unix_ms": now_ms,
                "what": what,
                "last_unix_ms": now_ms,
                "ended_unix_ms": None,
            }
            for (host_id, digest), what in sorted(wanted.items())
            if (host_id, digest) not in known
        ]
        self._put(table, new, skip=True)


def _hash(what: str) -> bytes:
    return hashlib.sha256(what.encode(errors="replace")).digest()


@checked
def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(*(getattr(row, name) for name in Delivery.__slots__))


@checked
def _drift(row: Row[Any]) -> DriftRow:
    return DriftRow(row.host_id, row.what, row.first_unix_ms, row.last_unix_ms, row.ended_unix_ms)
