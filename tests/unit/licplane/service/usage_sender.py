# SPDX-License-Identifier: Apache-2.0
"""A host that sends usage, and what the store holds of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select
from tests.support.usage import METERS, Spool, SpoolBatch, SpoolGap
from tests.unit.licplane.service.world import FakeHost, World

from licplane.api.usage_reading import RecordReader
from licplane.service.usage.intake import UsageIntake
from licplane.service.usage.values import Position, SentBatch, SentGap, UsageHello
from licplane.store.database import Store
from licplane.store.usage_model import Chain
from licplane.store.usage_schema import usage_owners, usage_records, usage_scopes


class Sender:
    """A host at the service's door: no gRPC between them."""

    def __init__(self, world: World, host: FakeHost, spool: Spool | None = None) -> None:
        self.world = world
        self.host = host
        self.spool = spool or Spool(host_id=host.id)
        self.intake: UsageIntake = world.plane.usage_intake
        self.reader = RecordReader()

    def open(self, **changes: Any) -> Chain:
        hello = UsageHello(self.spool.epoch, self.spool.public_key, self.spool.boot_id, 1, 1)
        return self.intake.open(self.host.id, replace(hello, **changes))

    def send(self, item: SpoolBatch | SpoolGap, at: Position | None = None) -> Position:
        chain = self.open()
        at = at or Position(chain.acked_sequence, chain.acked_hash)
        if isinstance(item, SpoolGap):
            gap = SentGap(
                item.epoch, item.first, item.last, item.reason, item.next_previous_hash,
                item.signature,
            )  # fmt: skip
            return self.intake.gaps.store(chain, at, gap)
        batch = sent(item)
        signed = self.intake.check(chain, at, batch)
        read = self.reader.read(batch.first, batch.records)
        return self.intake.store(chain, at, batch, signed, read)


def sent(item: SpoolBatch) -> SentBatch:
    return SentBatch(
        item.epoch, item.boot_id, item.first, list(item.records), item.previous_hash, item.hash,
        item.signature,
    )  # fmt: skip


def stored(store: Store) -> list[dict[str, Any]]:
    """All rows, with the words that they refer to."""
    with store.reading() as reader:
        statement = (
            select(usage_records, usage_owners, usage_scopes)
            .join(usage_owners, usage_owners.c.owner_id == usage_records.c.owner_id)
            .join(usage_scopes, usage_scopes.c.scope_id == usage_records.c.scope_id)
            .order_by(usage_records.c.host_id, usage_records.c.epoch, usage_records.c.sequence)
        )
        return [dict(row._mapping) for row in reader._connection.execute(statement)]


def totals(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in METERS}


def alarms(store: Store) -> dict[str, int]:
    with store.reading() as reader:
        return {one.code: one.count for one in reader.usage_alarms()}
