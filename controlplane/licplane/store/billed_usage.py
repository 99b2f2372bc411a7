# SPDX-License-Identifier: Apache-2.0
"""From a bill down to the records it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, select

from licplane.store.money_schema import METERS, billing_positions
from licplane.store.usage_evidence import Evidence, EvidenceReads, evidence, within
from licplane.store.usage_rollups import halves, named
from licplane.store.usage_schema import usage_owners, usage_records, usage_scopes
from licplane.store.usage_sums import Window

_LOW_BITS: Final = 40


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


class BilledReads(EvidenceReads):
    """Reading what a run of billing counted."""

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
        statement = _billed(evidence(), window, run, before)
        return self._page(statement, after, limit)


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
        *within(window), records.sequence > func.coalesce(since.c.sequence, 0)
    )
