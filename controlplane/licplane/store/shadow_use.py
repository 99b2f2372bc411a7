# SPDX-License-Identifier: Apache-2.0
"""The rows of shadow usage: who uses which resource without a binding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Double, Row, cast, delete, func, select, tuple_

from licplane.store.columns import I64_MAX
from licplane.store.host_model import FleetShadow, ShadowRow
from licplane.store.hosts import HostRecords
from licplane.store.schema import shadow
from licplane.store.session import Session, Values, canonical, checked


class ShadowReads(Session):
    """Reading shadow usage."""

    def shadow(
        self, *, after: tuple[str, str, str, str] | None = None, limit: int = 0
    ) -> tuple[FleetShadow, ...]:
        """Shadow usage of the fleet by (resource, selector, executable, user).

        Sums are exact up to 2**53 and end at 2**63-1: hosts that tell of more do not break them.
        """
        use = (shadow.c.resource, shadow.c.selector, shadow.c.executable, shadow.c.user_name)
        statement = select(
            *use,
            func.count(shadow.c.host_id.distinct()).label("hosts"),
            func.sum(cast(shadow.c["count"], Double)).label("total"),
            func.min(shadow.c.first_unix_ms).label("first_unix_ms"),
            func.max(shadow.c.last_unix_ms).label("last_unix_ms"),
        ).group_by(*use)
        if after is not None:
            statement = statement.where(tuple_(*use) > after)
        statement = statement.order_by(*use)
        rows = self._all(statement.limit(limit) if limit else statement)
        # PostgreSQL's sum of bigint is numeric.
        return tuple(
            FleetShadow(
                row.resource,
                row.selector,
                row.executable,
                row.user_name,
                hosts=int(row.hosts),
                count=min(int(row.total), I64_MAX),
                first_unix_ms=row.first_unix_ms,
                last_unix_ms=row.last_unix_ms,
            )
            for row in rows
        )

    def shadow_of(self, host_id: str) -> tuple[ShadowRow, ...]:
        """Shadow usage of a host."""
        order = (shadow.c.resource, shadow.c.selector, shadow.c.executable, shadow.c.user_name)
        statement = select(shadow, shadow.c["count"].label("total")).where(
            shadow.c.host_id == host_id
        )
        rows = self._all(statement.order_by(*order, shadow.c.boot_id))
        return tuple(map(_shadow, rows))


class ShadowRecords(HostRecords, ShadowReads):
    """Writing shadow usage. Rows of hosts that are gone are left out."""

    def put_shadow(self, rows: Sequence[ShadowRow]) -> None:
        """Note shadow usage. Counts are totals: a repeated or late report changes nothing."""
        known = self._known(row.host_id for row in rows)
        last: dict[tuple[str, bytes], Values] = {}
        for row in sorted(rows, key=lambda row: row.count):
            if row.host_id in known:
                values = _shadow_row(row)
                last[row.host_id, values["use_hash"]] = values
        wanted = [last[key] for key in sorted(last)]
        self._put(shadow, wanted, newer=shadow.c["count"])

    def purge_shadow(self, before_unix_ms: int) -> int:
        """Forget shadow usage last seen before then; how many rows went."""
        return self._run(delete(shadow).where(shadow.c.last_unix_ms < before_unix_ms))


def _shadow_row(row: ShadowRow) -> Values:
    use = (row.boot_id, row.resource, row.selector, row.executable, row.user)
    return {
        "host_id": row.host_id,
        "use_hash": hashlib.sha256(canonical(use).encode(errors="replace")).digest(),
        "boot_id": row.boot_id,
        "resource": row.resource,
        "selector": row.selector,
        "executable": row.executable,
        "user_name": row.user,
        "count": row.count,
        "first_unix_ms": row.first_unix_ms,
        "last_unix_ms": row.last_unix_ms,
        "reason": row.reason,
    }


@checked
def _shadow(row: Row[Any]) -> ShadowRow:
    return ShadowRow(
        host_id=row.host_id,
        boot_id=row.boot_id,
        resource=row.resource,
        selector=row.selector,
        executable=row.executable,
        user=row.user_name,
        count=row.total,  # a Row has a method called count
        first_unix_ms=row.first_unix_ms,
        last_unix_ms=row.last_unix_ms,
        reason=row.reason,
    )
