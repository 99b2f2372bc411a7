# SPDX-License-Identifier: Apache-2.0
"""Reading usage as it came in: where each chain is, and what people must look at."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select

from licplane.store.session import blob, checked
from licplane.store.usage_model import Chain, LostRange, UsageAlarm
from licplane.store.usage_parts import UsageParts
from licplane.store.usage_schema import (
    usage_alarms,
    usage_batches,
    usage_epochs,
    usage_gaps,
    usage_refused,
)


class UsageReads(UsageParts):
    """Reading what came in."""

    def chain(self, host_id: str, epoch: int) -> Chain | None:
        """Where a chain is."""
        row = self._one(
            select(usage_epochs).where(
                usage_epochs.c.host_id == host_id, usage_epochs.c.epoch == epoch
            )
        )
        return None if row is None else chain_from(row)

    def chains(self, host_id: str = "") -> tuple[Chain, ...]:
        """All chains, or those of a host, by host id and epoch."""
        statement = select(usage_epochs).order_by(usage_epochs.c.host_id, usage_epochs.c.epoch)
        if host_id:
            statement = statement.where(usage_epochs.c.host_id == host_id)
        return tuple(map(chain_from, self._all(statement)))

    def count_chains(self, host_id: str) -> int:
        """How many chains a host has."""
        statement = select(func.count()).where(usage_epochs.c.host_id == host_id)
        return self._connection.scalar(statement) or 0

    def stored_hash(self, host_id: str, epoch: int, first: int, last: int) -> bytes | None:
        """The chain after a stored batch or gap of exactly this range; None: there is none."""
        batches, gaps = usage_batches.c, usage_gaps.c
        row = self._one(
            select(batches.hash).where(
                batches.host_id == host_id,
                batches.epoch == epoch,
                batches.first_sequence == first,
                batches.last_sequence == last,
            )
        ) or self._one(
            select(gaps.next_previous_hash).where(
                gaps.host_id == host_id,
                gaps.epoch == epoch,
                gaps.first_sequence == first,
                gaps.last_sequence == last,
            )
        )
        return None if row is None else blob(row[0])

    def noted_records(
        self, host_id: str, epoch: int, first: int, last: int, reason: str
    ) -> set[int]:
        """The sequences of records in this part of a chain that are set aside for this reason."""
        table = usage_refused.c
        return set(
            self._connection.scalars(
                select(table.sequence).where(
                    table.host_id == host_id,
                    table.epoch == epoch,
                    table.sequence >= first,
                    table.sequence <= last,
                    table.reason == reason,
                )
            )
        )

    def set_aside(self, host_id: str = "", *, limit: int = 0) -> tuple[tuple[Any, ...], ...]:
        """(host_id, epoch, sequence, received_ms, reason) of records that were set aside."""
        table = usage_refused.c
        statement = select(
            table.host_id, table.epoch, table.sequence, table.received_ms, table.reason
        ).order_by(table.host_id, table.epoch, table.sequence)
        if host_id:
            statement = statement.where(table.host_id == host_id)
        rows = self._all(statement.limit(limit) if limit else statement)
        return tuple(tuple(row) for row in rows)

    def gaps(self, host_id: str = "") -> tuple[LostRange, ...]:
        """What hosts said they lost."""
        statement = select(usage_gaps).order_by(
            usage_gaps.c.host_id, usage_gaps.c.epoch, usage_gaps.c.first_sequence
        )
        if host_id:
            statement = statement.where(usage_gaps.c.host_id == host_id)
        return tuple(map(_gap, self._all(statement)))

    def usage_alarms(self, host_id: str = "") -> tuple[UsageAlarm, ...]:
        """What people must look at."""
        statement = select(usage_alarms).order_by(
            usage_alarms.c.host_id, usage_alarms.c.epoch, usage_alarms.c.code
        )
        if host_id:
            statement = statement.where(usage_alarms.c.host_id == host_id)
        return tuple(map(_alarm, self._all(statement)))


@checked
def chain_from(row: Row[Any]) -> Chain:
    """The chain in a row of usage_epochs."""
    return Chain(
        host_id=row.host_id,
        epoch=row.epoch,
        public_key=blob(row.public_key),
        boot_id=row.boot_id,
        acked_sequence=row.acked_sequence,
        acked_hash=blob(row.acked_hash),
        host_first_sequence=row.host_first_sequence,
        host_next_sequence=row.host_next_sequence,
        begun_ms=row.begun_ms,
        received_ms=row.received_ms,
    )


@checked
def _gap(row: Row[Any]) -> LostRange:
    return LostRange(
        host_id=row.host_id,
        epoch=row.epoch,
        first_sequence=row.first_sequence,
        last_sequence=row.last_sequence,
        signed_host_id=row.signed_host_id,
        reason=row.reason,
        next_previous_hash=blob(row.next_previous_hash),
        signature=blob(row.signature),
    )


@checked
def _alarm(row: Row[Any]) -> UsageAlarm:
    return UsageAlarm(
        host_id=row.host_id,
        epoch=row.epoch,
        code=row.code,
        sequence=row.sequence,
        detail=row.detail,
        first_ms=row.first_ms,
        last_ms=row.last_ms,
        count=row._mapping["count"],  # noqa: SLF001 -- a Row has a method of that name
    )
