# SPDX-License-Identifier: Apache-2.0
"""How many: hosts by how they are, deliveries by state. Counted by the database, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, case, distinct, func, or_, select

from licplane.store.host_model import HostStatus
from licplane.store.money_schema import host_drift, trigger_deliveries
from licplane.store.schema import head, host_presence, host_reports, hosts, shadow
from licplane.store.session import Session
from licplane.store.usage_schema import usage_alarms, usage_gaps

_SERVED: Final = (HostStatus.ACTIVE, HostStatus.DRAINING)
"""Hosts that should have a stream."""


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """The fleet in numbers, at one moment."""

    revision: int
    hosts: Mapping[tuple[HostStatus, bool], int]
    """By status, and whether a stream is open."""
    silent: int
    """Hosts to be served that nothing was heard of lately; not those without a network."""
    refusing: int
    """Hosts to be served that refused a revision and took none since."""
    drifting: int
    """Hosts that report, and on which something differs from what the control plane wants."""
    shadow_uses: int
    deliveries: Mapping[str, int]
    """Of triggers and budgets, by state."""
    oldest_waiting_unix_ms: int
    """When the oldest delivery that waits was made; 0: none waits."""
    gaps: int
    alarms: int


class FleetCountReads(Session):
    """Counting the fleet."""

    def fleet_counts(self, now_ms: int, *, silent_before_unix_ms: int) -> FleetCounts:
        """Count. A full pass over the hosts' rows, and over no payload."""
        revision = self._number(select(head.c.revision))
        is_connected = func.coalesce(host_presence.c.connected_until_unix_ms, 0) > now_ms
        flag = case((is_connected, 1), else_=0)
        joined = hosts.outerjoin(host_presence, hosts.c.host_id == host_presence.c.host_id)
        rows = self._all(
            select(hosts.c.status, flag.label("connected"), func.count().label("number"))
            .select_from(joined)
            .group_by(hosts.c.status, flag)
        )
        served = select(func.count()).select_from(joined).where(hosts.c.status.in_(_SERVED))
        seen_ms = func.coalesce(host_presence.c.last_seen_unix_ms, hosts.c.enrolled_at_unix_ms)
        # One that was admitted from a file, and has said nothing yet, may have no network at all.
        may_connect = or_(hosts.c.join_token != "", host_presence.c.host_id.is_not(None))
        waiting = trigger_deliveries.c.state == "waiting"
        return FleetCounts(
            revision=revision,
            hosts={(HostStatus(row.status), bool(row.connected)): row.number for row in rows},
            silent=self._number(
                served.where(~is_connected, seen_ms < silent_before_unix_ms, may_connect)
            ),
            refusing=self._number(served.where(func.coalesce(host_presence.c.last_nack, "") != "")),
            drifting=self._number(
                select(func.count(distinct(host_drift.c.host_id))).where(
                    host_drift.c.ended_unix_ms.is_(None),
                    host_drift.c.host_id.in_(select(host_reports.c.host_id)),
                )
            ),
            shadow_uses=self._number(select(func.count()).select_from(shadow)),
            deliveries={
                row.state: row.number
                for row in self._all(
                    select(trigger_deliveries.c.state, func.count().label("number")).group_by(
                        trigger_deliveries.c.state
                    )
                )
            },
            oldest_waiting_unix_ms=self._number(
                select(func.min(trigger_deliveries.c.created_at_unix_ms)).where(waiting)
            ),
            gaps=self._number(select(func.count()).select_from(usage_gaps)),
            alarms=self._number(select(func.count()).select_from(usage_alarms)),
        )

    def _number(self, statement: Select[Any]) -> int:
        row = self._one(statement)
        return 0 if row is None else int(row[0] or 0)
