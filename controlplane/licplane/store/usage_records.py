# SPDX-License-Identifier: Apache-2.0
"""Writing usage as it comes in. Whoever adds to a chain holds its row until the commit."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, TypeVar

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from licplane.store.session import Values
from licplane.store.usage_copy import Common, put_records
from licplane.store.usage_dimensions import UsageDimensions
from licplane.store.usage_model import (
    Batch,
    Chain,
    LostRange,
    Owner,
    SetAside,
    UsageAlarm,
)
from licplane.store.usage_reading import UsageReads, chain_from
from licplane.store.usage_schema import (
    usage_alarms,
    usage_batches,
    usage_epochs,
    usage_gaps,
    usage_pending,
    usage_refused,
)

_ID_BITS: Final = 62
_HASHES: Final = 500

Key = TypeVar("Key", bound=Hashable)


class UsageRecords(UsageDimensions, UsageReads):
    """Writing what hosts send."""

    def begin_chain(self, chain: Chain) -> Chain:
        """The chain as it is stored, made if it is not there. The first key stays."""
        self._put(usage_epochs, [_chain_row(chain)], skip=True)
        self._run(
            update(usage_epochs)
            .where(
                usage_epochs.c.host_id == chain.host_id,
                usage_epochs.c.epoch == chain.epoch,
                usage_epochs.c.public_key == chain.public_key,
            )
            .values(
                boot_id=chain.boot_id,
                host_first_sequence=chain.host_first_sequence,
                host_next_sequence=chain.host_next_sequence,
            )
        )
        found = self.chain(chain.host_id, chain.epoch)
        assert found is not None  # noqa: S101 -- it was just put
        return found

    def locked_chain(self, host_id: str, epoch: int) -> Chain | None:
        """Where a chain is; nobody else moves it until this transaction ends."""
        statement = select(usage_epochs).where(
            usage_epochs.c.host_id == host_id, usage_epochs.c.epoch == epoch
        )
        row = self._one(statement.with_for_update())
        return None if row is None else chain_from(row)

    def move_chain(self, chain: Chain, sequence: int, chain_hash: bytes, received_ms: int) -> None:
        """Everything up to `sequence` is stored, by this transaction or before it."""
        self._run(
            update(usage_epochs)
            .where(usage_epochs.c.host_id == chain.host_id, usage_epochs.c.epoch == chain.epoch)
            .values(acked_sequence=sequence, acked_hash=chain_hash, received_ms=received_ms)
        )

    def put_batch(
        self, batch: Batch, owners: Mapping[Owner, int], scope_id: int, received_ms: int
    ) -> None:
        """Store a batch with its rows and what of it was set aside."""
        key: Values = {
            "host_id": batch.host_id,
            "epoch": batch.epoch,
            "first_sequence": batch.first_sequence,
            "last_sequence": batch.last_sequence,
            "boot_id": batch.boot_id,
            "received_ms": received_ms,
            "start_ms": batch.start_ms,
            "end_ms": batch.end_ms,
        }
        self._run(
            usage_batches.insert().values(
                **key,
                signed_host_id=batch.signed_host_id,
                payload=batch.payload,
                previous_hash=batch.previous_hash,
                hash=batch.hash,
                signature=batch.signature,
            )
        )
        if batch.rows:
            self._run(usage_pending.insert().values(**key))
        common = Common(
            host_id=batch.host_id,
            boot_id=batch.boot_id,
            epoch=batch.epoch,
            received_ms=received_ms,
            scope_id=scope_id,
        )
        put_records(self._connection, common, batch.rows, owners)
        if batch.refused:
            self._connection.execute(
                usage_refused.insert(),
                [_refused_row(batch, one, received_ms) for one in batch.refused],
            )

    def put_gap(self, lost: LostRange, received_ms: int) -> None:
        """Store a named gap."""
        self._run(
            usage_gaps.insert().values(
                host_id=lost.host_id,
                epoch=lost.epoch,
                first_sequence=lost.first_sequence,
                last_sequence=lost.last_sequence,
                signed_host_id=lost.signed_host_id,
                reason=lost.reason,
                next_previous_hash=lost.next_previous_hash,
                signature=lost.signature,
                received_ms=received_ms,
            )
        )

    def put_alarm(self, alarm: UsageAlarm) -> None:
        """Note an alarm; one that is there counts up and takes over the newest words."""
        row = {
            "host_id": alarm.host_id,
            "epoch": alarm.epoch,
            "code": alarm.code,
            "count": alarm.count,
            "sequence": alarm.sequence,
            "detail": alarm.detail,
            "first_ms": alarm.first_ms,
            "last_ms": alarm.last_ms,
        }
        postgres = self._connection.dialect.name == "postgresql"
        insert = postgresql.insert(usage_alarms) if postgres else sqlite.insert(usage_alarms)
        newer = {name: insert.excluded[name] for name in ("sequence", "detail", "last_ms")}
        self._run(
            insert.values(row).on_conflict_do_update(
                index_elements=["host_id", "epoch", "code"],
                set_={**newer, "count": usage_alarms.c["count"] + alarm.count},
            )
        )


def _refused_row(batch: Batch, one: SetAside, received_ms: int) -> Values:
    return {
        "host_id": batch.host_id,
        "epoch": batch.epoch,
        "sequence": one.sequence,
        "boot_id": batch.boot_id,
        "received_ms": received_ms,
        "reason": one.reason,
        "payload": one.payload,
    }


def _chain_row(chain: Chain) -> Values:
    return {
        "host_id": chain.host_id,
        "epoch": chain.epoch,
        "public_key": chain.public_key,
        "boot_id": chain.boot_id,
        "acked_sequence": chain.acked_sequence,
        "acked_hash": chain.acked_hash,
        "host_first_sequence": chain.host_first_sequence,
        "host_next_sequence": chain.host_next_sequence,
        "begun_ms": chain.begun_ms,
        "received_ms": chain.received_ms,
    }
