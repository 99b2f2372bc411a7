# SPDX-License-Identifier: Apache-2.0
"""usage verify: whatever somebody alters in the database is found, and says where."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from tests.support.usage import BASE_MS, Spool, record
from tests.unit.licplane.service.usage_sender import Sender
from tests.unit.licplane.service.world import ROOT, World, license, resource

from licplane.api.usage_reading import RecordReader
from licplane.service.billing.periods import period_at
from licplane.service.money import Money
from licplane.service.requests import Change, Document

pytest_plugins = ["tests.support.postgres"]

PLAN = (
    '{"name":"p","currency":"EUR","item":[{"name":"cpu","meters":["cpu_ns"],'
    '"unit":"core-second","price":1}]}'
)


def problems(money: Money) -> list[str]:
    found: list[str] = money.verify(ROOT, RecordReader().read)["problems"]
    return found


def alter(world: World, statement: str, **values: Any) -> None:
    with world.store.recording() as recorder:
        recorder._connection.execute(text(statement), values)


@pytest.fixture
def money(both: World) -> Money:
    """Two batches and a gap between, rolled up and billed."""
    both.clock.now_ms = BASE_MS
    made = both.plane.money
    made.apply(ROOT, Change(), [Document("plan", "p", PLAN)], delete=False)
    both.apply(resource(), license())
    host = both.host(org="acme")
    sender = Sender(both, host, Spool(host_id=host.id))
    sender.send(sender.spool.commit([record(1), record(2), b"\xff\xff not a record"]))
    sender.send(sender.spool.commit([record(number) for number in range(4, 9)]))
    assert made.keep()
    period = period_at("month", BASE_MS)
    both.clock.now_ms = period.end_ms + 1
    assert made.close(ROOT, Change(), "p", period.label).changed
    return made


def test_all_is_well_and_each_alteration_is_found(money: Money, both: World) -> None:
    check = money.verify(ROOT, RecordReader().read)
    assert check["problems"] == []
    assert (check["chains"], check["batches"], check["records"], check["entries"]) == (1, 2, 8, 1)

    alter(both, "UPDATE usage_records SET cpu_ns = cpu_ns + 1 WHERE sequence = 5")
    found = problems(money)
    assert any("record 5: its row has another cpu_ns" in one for one in found)
    assert any("daily sums" in one for one in found)
    alter(both, "UPDATE usage_records SET cpu_ns = cpu_ns - 1 WHERE sequence = 5")
    assert problems(money) == []

    alter(both, "UPDATE usage_records SET license = 'other' WHERE sequence = 2")
    assert any("record 2: its row has another license" in one for one in problems(money))
    alter(both, "UPDATE usage_records SET license = 'acme-db' WHERE sequence = 2")

    alter(both, "UPDATE usage_hourly SET cpu_ns = cpu_ns + 7")
    assert all("hourly sums" in one for one in problems(money))
    assert problems(money)
    alter(both, "UPDATE usage_hourly SET cpu_ns = cpu_ns - 7")

    alter(both, "UPDATE billing_entries SET amount = '0.01'")
    assert any("are not those of the audit log" in one for one in problems(money))


def test_what_was_taken_away_is_missed(money: Money, both: World) -> None:
    alter(both, "DELETE FROM usage_records WHERE sequence = 6")
    assert any("record 6: the host sent it, and its row is missing" in x for x in problems(money))
    alter(both, "DELETE FROM usage_batches WHERE first_sequence = 1")
    assert any("the ones from 1 on are missing" in one for one in problems(money))
    alter(both, "DELETE FROM billing_entries")
    alter(both, "DELETE FROM billing_runs")
    assert any("its entries are gone" in one for one in problems(money))


def test_a_signature_of_another_key_is_found(money: Money, both: World) -> None:
    alter(both, "UPDATE usage_epochs SET public_key = :key", key=bytes(range(32)))
    assert any("the signature is not the host's" in one for one in problems(money))
