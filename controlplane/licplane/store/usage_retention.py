# SPDX-License-Identifier: Apache-2.0
"""Deleting usage that is old: records by whole days, with the batches they came in."""

from __future__ import annotations

from sqlalchemy import delete, exists, func, select

from licplane.store.usage_model import DAY_MS
from licplane.store.usage_parts import UsageParts
from licplane.store.usage_schema import usage_batches, usage_pending, usage_records


class RetentionRecords(UsageParts):
    """Deleting."""

    def earliest_waiting_ms(self) -> int | None:
        """The start of the earliest record that no rollup has."""
        found: int | None = self._connection.scalar(select(func.min(usage_pending.c.start_ms)))
        return found

    def purge_records(self, before_day: int) -> int:
        """Delete records of days before, and batches all of whose records ended before then.

        Parts of PostgreSQL are dropped whole. How many rows and parts went.
        """
        gone = self.drop_parts(before_day)
        gone += self._run(delete(usage_records).where(usage_records.c.day < before_day))
        waiting = exists().where(
            usage_pending.c.host_id == usage_batches.c.host_id,
            usage_pending.c.epoch == usage_batches.c.epoch,
            usage_pending.c.first_sequence == usage_batches.c.first_sequence,
        )
        before_ms = before_day * DAY_MS
        old = delete(usage_batches).where(
            usage_batches.c.end_ms < before_ms, usage_batches.c.received_ms < before_ms, ~waiting
        )
        return gone + self._run(old)
