# SPDX-License-Identifier: Apache-2.0
"""From a bill down to the records it is of, and to the batches that hosts signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, select

from licplane.store.money_schema import METERS, billing_positions
from licplane.store.session import Session, blob
from licplane.store.usage_rollups import DAY_MS, halves, named
from licplane.store.usage_schema import (
    usage_batches,
    usage_owners,
    usage_records,
    usage_scopes,
)
from licplane.store.usage_sums import Window

_LOW_BITS: Final = 40
_BATCHES: Final = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Records of one host and owner that an entry is of."""

    host_id: str
    epoch: int
    license: str
    resource: str
    binding: str
    organization: str
    project: str
    environment: str
    region: str
    kind: int
    protocol: int
    loopback: int
    unit: str
    user: str
    executable: str
    records: int
    first_sequence: int
    last_sequence: int
    first_ms: int
    last_ms: int
    quantities: dict[str, int]


_KEYS: Final = (
    "host_id",
    "epoch",
    "license",
    "resource",
    "binding",
    "organization",
    "project",
    "environment",
    "region",
    "kind",
    "protocol",
    "loopback",
    "unit",
    "user",
    "executable",
)


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

    def billed_spans(self, window: Window, run: int, before: int) -> list[Span]:
        """What the run `run` counted in the window and the run `before` (0: none) did not."""
        records, owners, scopes = usage_records.c, usage_owners.c, usage_scopes.c
        names = (
            records.host_id,
            records.epoch,
            named(records.license),
            named(records.resource),
            named(records.binding),
            scopes.org,
            scopes.project,
            scopes.environment,
            scopes.region,
            records.kind,
            records.protocol,
            records.loopback,
            owners.unit,
            owners.user_name,
            owners.executable,
        )
        keys = [column.label(f"k{at}") for at, column in enumerate(names)]
        sums: list[ColumnElement[Any]] = []
        is_postgres = self._connection.dialect.name == "postgresql"
        for meter in METERS:
            low, upper = halves(records[meter], is_postgres=is_postgres)
            sums += [low.label(f"low_{meter}"), upper.label(f"high_{meter}")]
        statement = select(
            *keys,
            func.count().label("lines"),
            func.min(records.sequence).label("first_sequence"),
            func.max(records.sequence).label("last_sequence"),
            func.min(records.start_ms).label("first_ms"),
            func.max(records.end_ms).label("last_ms"),
            *sums,
        )
        statement = _billed(statement, window, run, before).group_by(*keys).order_by(*keys)
        found = []
        for row in self._all(statement):
            values = row._mapping  # noqa: SLF001 - SQLAlchemy's own name for it
            found.append(
                Span(
                    **{name: values[f"k{at}"] for at, name in enumerate(_KEYS)},
                    records=row.lines,
                    first_sequence=row.first_sequence,
                    last_sequence=row.last_sequence,
                    first_ms=row.first_ms,
                    last_ms=row.last_ms,
                    quantities={
                        meter: total
                        for meter in METERS
                        if (
                            total := (values[f"high_{meter}"] << _LOW_BITS) + values[f"low_{meter}"]
                        )
                    },
                )
            )
        return found

    def billed_records(
        self,
        window: Window,
        run: int,
        before: int,
        *,
        after: tuple[str, int, int] = ("", 0, 0),
        limit: int = 1000,
    ) -> list[Evidence]:
        """The records behind `billed_spans`, by host, epoch and sequence, after such a key."""
        statement = _billed(_evidence(), window, run, before)
        return self._page(statement, after, limit)

    def usage_records_of(
        self, window: Window, *, after: tuple[str, int, int] = ("", 0, 0), limit: int = 1000
    ) -> list[Evidence]:
        """Every record of a window, by host, epoch and sequence, after such a key."""
        return self._page(_from(_evidence()).where(*_within(window)), after, limit)

    def records_between(self, host_id: str, epoch: int, first: int, last: int) -> list[Evidence]:
        """The records of a part of a chain."""
        records = usage_records.c
        statement = _from(_evidence()).where(
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


def _within(window: Window) -> list[ColumnElement[bool]]:
    records = usage_records.c
    return [
        records.end_ms > window.since_ms,
        records.end_ms <= window.until_ms,
        records.day >= window.since_ms // DAY_MS,
        records.day <= window.until_ms // DAY_MS,
    ]


def _billed(statement: Select[Any], window: Window, run: int, before: int) -> Select[Any]:
    """Limit it to records that a run counted first."""
    records = usage_records.c
    upto = billing_positions.alias("upto")
    since = billing_positions.alias("since")
    source = (
        usage_records.join(usage_owners, usage_owners.c.owner_id == records.owner_id)
        .join(usage_scopes, usage_scopes.c.scope_id == records.scope_id)
        .join(
            upto,
            and_(
                upto.c.run == run,
                upto.c.host_id == records.host_id,
                upto.c.epoch == records.epoch,
                upto.c.sequence >= records.sequence,
            ),
        )
        .outerjoin(
            since,
            and_(
                since.c.run == before,
                since.c.host_id == records.host_id,
                since.c.epoch == records.epoch,
            ),
        )
    )
    return statement.select_from(source).where(
        *_within(window), records.sequence > func.coalesce(since.c.sequence, 0)
    )


def _evidence() -> Select[Any]:
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
