# SPDX-License-Identifier: Apache-2.0
"""Usage records as they are stored, and the batches that hosts signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, select

from licplane.store.money_schema import METERS
from licplane.store.session import Session, blob
from licplane.store.usage_rollups import DAY_MS
from licplane.store.usage_schema import (
    usage_batches,
    usage_owners,
    usage_records,
    usage_scopes,
)
from licplane.store.usage_sums import Window

_BATCHES: Final = 64


@dataclass(frozen=True, slots=True)
class Evidence:
    """A record as it is stored."""

    host_id: str
    boot_id: str
    epoch: int
    sequence: int
    kind: int
    start_ms: int
    end_ms: int
    received_ms: int
    license: str
    resource: str
    binding: str
    organization: str
    project: str
    environment: str
    region: str
    unit: str
    cgroup: str
    user: str
    uid: int  # -1: nobody in particular
    executable: str
    pid: int
    process_start_ms: int
    protocol: int
    loopback: int
    estimated: int
    unsupported: int
    detail: str
    payload_hash: bytes
    quantities: dict[str, int]


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """What a host signed."""

    host_id: str
    epoch: int
    first_sequence: int
    last_sequence: int
    boot_id: str
    signed_host_id: str
    payload: bytes
    previous_hash: bytes
    hash: bytes
    signature: bytes


class EvidenceReads(Session):
    """Reading the evidence."""

    def usage_records_of(
        self, window: Window, *, after: tuple[str, int, int] = ("", 0, 0), limit: int = 1000
    ) -> list[Evidence]:
        """Every record of a window, by host, epoch and sequence, after such a key."""
        return self._page(_from(evidence()).where(*within(window)), after, limit)

    def records_between(self, host_id: str, epoch: int, first: int, last: int) -> list[Evidence]:
        """The records of a part of a chain."""
        records = usage_records.c
        statement = _from(evidence()).where(
            records.host_id == host_id,
            records.epoch == epoch,
            records.sequence >= first,
            records.sequence <= last,
        )
        return [_evidence_from(row) for row in self._all(statement.order_by(records.sequence))]

    def stored_batches(self, host_id: str, epoch: int) -> Iterator[StoredBatch]:
        """The batches of a chain, in order."""
        batches = usage_batches.c
        after = 0
        while True:
            statement = (
                select(usage_batches)
                .where(
                    batches.host_id == host_id,
                    batches.epoch == epoch,
                    batches.first_sequence > after,
                )
                .order_by(batches.first_sequence)
                .limit(_BATCHES)
            )
            rows = self._all(statement)
            for row in rows:
                yield StoredBatch(
                    row.host_id,
                    row.epoch,
                    row.first_sequence,
                    row.last_sequence,
                    row.boot_id,
                    row.signed_host_id,
                    blob(row.payload),
                    blob(row.previous_hash),
                    blob(row.hash),
                    blob(row.signature),
                )
                after = row.first_sequence
            if len(rows) < _BATCHES:
                return

    def _page(
        self, statement: Select[Any], after: tuple[str, int, int], limit: int
    ) -> list[Evidence]:
        records = usage_records.c
        host_id, epoch, sequence = after
        if host_id:
            statement = statement.where(
                (records.host_id > host_id)
                | and_(
                    records.host_id == host_id,
                    (records.epoch > epoch)
                    | and_(records.epoch == epoch, records.sequence > sequence),
                )
            )
        order = (records.host_id, records.epoch, records.sequence)
        return [_evidence_from(row) for row in self._all(statement.order_by(*order).limit(limit))]


def _from(statement: Select[Any]) -> Select[Any]:
    source = usage_records.join(
        usage_owners, usage_owners.c.owner_id == usage_records.c.owner_id
    ).join(usage_scopes, usage_scopes.c.scope_id == usage_records.c.scope_id)
    return statement.select_from(source)


def within(window: Window) -> list[ColumnElement[bool]]:
    """Conditions for the records of a window."""
    records = usage_records.c
    return [
        records.end_ms > window.since_ms,
        records.end_ms <= window.until_ms,
        records.day >= window.since_ms // DAY_MS,
        records.day <= window.until_ms // DAY_MS,
    ]


def evidence() -> Select[Any]:
    """Records with what they refer to, as `Evidence` has them."""
    owners, scopes = usage_owners.c, usage_scopes.c
    return select(
        usage_records,
        owners.unit,
        owners.cgroup,
        owners.user_name,
        owners.uid_plus_one,
        owners.executable,
        scopes.org,
        scopes.project,
        scopes.environment,
        scopes.region,
    )


def _evidence_from(row: Any) -> Evidence:
    values = row._mapping  # noqa: SLF001 - SQLAlchemy's own name for it
    return Evidence(
        row.host_id,
        row.boot_id,
        row.epoch,
        row.sequence,
        row.kind,
        row.start_ms,
        row.end_ms,
        row.received_ms,
        row.license,
        row.resource,
        row.binding,
        row.org,
        row.project,
        row.environment,
        row.region,
        row.unit,
        row.cgroup,
        row.user_name,
        row.uid_plus_one - 1,
        row.executable,
        row.pid,
        row.process_start_ms,
        row.protocol,
        row.loopback,
        row.estimated,
        row.unsupported,
        row.detail,
        blob(row.payload_hash),
        {meter: values[meter] for meter in METERS if values[meter]},
    )
