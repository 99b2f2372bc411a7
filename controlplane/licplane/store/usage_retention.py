# SPDX-License-Identifier: Apache-2.0
"""Deleting usage that is old: records by whole days, with the batches they came in."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from licplane.store.money_schema import usage_purged
from licplane.store.session import blob
from licplane.store.usage_model import DAY_MS
from licplane.store.usage_parts import UsageParts
from licplane.store.usage_schema import (
    usage_batches,
    usage_epochs,
    usage_pending,
    usage_records,
    usage_refused,
)


class RetentionReads(UsageParts):
    """Reading what was deleted."""

    def purged(self, host_id: str, epoch: int) -> tuple[int, bytes]:
        """The last record of a chain that was deleted as old, and the hash there; 0 and zeros
        where none was."""
        row = self._one(
            select(usage_purged).where(
                usage_purged.c.host_id == host_id, usage_purged.c.epoch == epoch
            )
        )
        return (0, bytes(32)) if row is None else (row.sequence, blob(row.hash))


class RetentionRecords(RetentionReads):
    """Deleting."""

    def earliest_waiting_ms(self) -> int | None:
        """The start of the earliest record that no rollup has."""
        found: int | None = self._connection.scalar(select(func.min(usage_pending.c.start_ms)))
        return found

    def purge_records(self, before_day: int) -> int:
        """Delete records of days before, and from the beginning of each chain the batches all of
        whose records ended before then, with what of them was set aside.

        Parts of PostgreSQL are dropped whole. How many rows and parts went.
        """
        gone = self.drop_parts(before_day)
        gone += self._run(delete(usage_records).where(usage_records.c.day < before_day))
        chains = self._all(select(usage_epochs.c.host_id, usage_epochs.c.epoch))
        for chain in chains:
            gone += self._purge_chain(chain.host_id, chain.epoch, before_day * DAY_MS)
        return gone

    def _purge_chain(self, host_id: str, epoch: int, before_ms: int) -> int:
        table = usage_batches
        of_chain = (table.c.host_id == host_id, table.c.epoch == epoch)
        stays = self._connection.scalar(
            select(func.min(table.c.first_sequence)).where(
                *of_chain, (table.c.end_ms >= before_ms) | (table.c.received_ms >= before_ms)
            )
        )
        waits = self._connection.scalar(
            select(func.min(usage_pending.c.first_sequence)).where(
                usage_pending.c.host_id == host_id, usage_pending.c.epoch == epoch
            )
        )
        old = select(table.c.last_sequence, table.c.hash).where(*of_chain)
        for bound in (stays, waits):
            if bound is not None:
                old = old.where(table.c.first_sequence < bound)
        last = self._connection.execute(
            old.order_by(table.c.first_sequence.desc()).limit(1)
        ).one_or_none()
        if last is None:
            return 0
        self._put(
            usage_purged,
            [
                {
                    "host_id": host_id,
                    "epoch": epoch,
                    "sequence": last.last_sequence,
                    "hash": blob(last.hash),
                }
            ],
            newer=usage_purged.c.sequence,
        )
        aside = usage_refused.c
        gone = self._run(
            delete(usage_refused).where(
                aside.host_id == host_id,
                aside.epoch == epoch,
                aside.sequence <= last.last_sequence,
            )
        )
        return gone + self._run(
            delete(table).where(*of_chain, table.c.first_sequence <= last.last_sequence)
        )
