# SPDX-License-Identifier: Apache-2.0
"""The rows of usage: where each chain is, and what was stored of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from licplane.store.session import Session, blob, checked
from licplane.store.usage_model import Chain
from licplane.store.usage_schema import usage_epochs


class UsageReads(Session):
    """Reading what came in."""

    def chain(self, host_id: str, epoch: int) -> Chain | None:
        """Where a chain is."""
        row = self._one(
            select(usage_epochs).where(
                usage_epochs.c.host_id == host_id, usage_epochs.c.epoch == epoch
            )
        )
        return None if row is None else _chain(row)

    def chains(self, host_id: str = "") -> tuple[Chain, ...]:
        """All chains, or those of a host, by host id and epoch."""
        statement = select(usage_epochs).order_by(usage_epochs.c.host_id, usage_epochs.c.epoch)
        if host_id:
            statement = statement.where(usage_epochs.c.host_id == host_id)
        return tuple(map(_chain, self._all(statement)))


@checked
def _chain(row: Row[Any]) -> Chain:
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
