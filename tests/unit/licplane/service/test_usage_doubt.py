# SPDX-License-Identifier: Apache-2.0
"""A host that lies in what it signs: whose license, how much, how many."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import event, text
from tests.support.usage import BASE_MS, record
from tests.unit.licplane.service.usage_sender import Sender, alarms, stored
from tests.unit.licplane.service.world import ROOT, World, license, resource

from licplane.api.usage_reading import RecordReader
from licplane.errors import ExitCode, PlaneError
from licplane.service.remembering import Remembered
from licplane.service.requests import Change
from licplane.service.usage.intake import RECORDS_MAX
from licplane.service.usage.retention import purge

pytest_plugins = ["tests.support.postgres"]


@pytest.fixture
def rival(both: World) -> Sender:
    """A host of the organization globex, beside acme's license."""
    both.clock.now_ms = BASE_MS + 60_000
    both.apply(resource(), license())
    return Sender(both, both.host("rival", org="globex"))


def verified(world: World) -> dict[str, Any]:
    return world.plane.money.verify(ROOT, RecordReader().read)


def test_nobody_bills_what_was_issued_for_others(rival: Sender) -> None:
    world = rival.world
    mine = license("globex-db", scope={"org": "globex"})
    world.apply(mine)
    records = [
        record(1),
        record(2, license="globex-db"),
        record(3, license="no-such-license"),
        record(4, license="x\ty" * 200),
        record(5, license=""),
    ]
    batch = rival.spool.commit(records)
    assert rival.send(batch) == (5, batch.hash)
    rows = stored(world.store)
    assert [row["license"] for row in rows] == ["", "globex-db", "", "", ""]
    assert [row["cpu_ns"] for row in rows] == [number * 1_000_003 for number in range(1, 6)]
    assert alarms(world.store) == {"license": 3}
    with world.store.reading() as reader:
        assert [(one[2], one[4]) for one in reader.set_aside()] == [
            (number, "its license was not issued for this host") for number in (1, 3, 4)
        ]
        (alarm,) = reader.usage_alarms()
    assert "acme-db" in alarm.detail
    assert world.plane.money.keep()
    found = verified(world)
    assert (found["problems"], found["unlicensed"]) == ([], 3)


def test_who_takes_a_license_off_a_row_is_found(rival: Sender) -> None:
    rival.world.apply(license("globex-db", scope={"org": "globex"}))
    rival.send(rival.spool.commit([record(1), record(2, license="globex-db")]))
    with rival.world.store.recording() as recorder:
        recorder._connection.execute(text("UPDATE usage_records SET license = ''"))
    problems = verified(rival.world)["problems"]
    assert any("record 2: its row has another license" in one for one in problems)
    assert not any("record 1:" in one for one in problems)


def test_a_license_that_somebody_took_away_with_a_note_is_told(rival: Sender) -> None:
    rival.world.apply(license("globex-db", scope={"org": "globex"}))
    rival.send(rival.spool.commit([record(1), record(2, license="globex-db")]))
    assert verified(rival.world)["notes"] == []
    with rival.world.store.recording() as recorder:
        connection = recorder._connection
        connection.execute(text("UPDATE usage_records SET license = ''"))
        connection.execute(text("DELETE FROM usage_refused"))
        reason = "its license was not issued for this host"
        connection.execute(
            text(
                "INSERT INTO usage_refused"
                " SELECT host_id, epoch, sequence, boot_id, received_ms, :reason, payload_hash"
                " FROM usage_records"
            ),
            {"reason": reason},
        )
    found = verified(rival.world)
    assert found["unlicensed"] == 2
    (note,) = found["notes"]
    assert "record 2: it counts under no license, though the host has globex-db now" in note


def test_a_license_counts_as_soon_as_it_is_issued_and_after_its_end(rival: Sender) -> None:
    world = rival.world
    late = record(1, license="globex-db")
    rival.send(rival.spool.commit([late]))
    world.apply(license("globex-db", scope={"org": "globex"}))
    rival.send(rival.spool.commit([late]))
    # Issued again for somebody else, and for a server that remembers nothing.
    world.apply(license("globex-db", scope={"org": "acme"}))
    rival.send(rival.spool.commit([late]))
    rival.intake = world.again().usage_intake
    rival.send(rival.spool.commit([late]))
    assert [row["license"] for row in stored(world.store)] == ["", *["globex-db"] * 3]


def test_licenses_are_asked_for_once_and_never_one_by_one(rival: Sender) -> None:
    counted: list[str] = []

    def count(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "license_tokens" in statement:
            counted.append(statement)

    engine = rival.world.store._engine
    event.listen(engine, "before_cursor_execute", count)
    names = [f"license-{number}" for number in range(400)]
    rival.world.apply(license("globex-db", scope={"org": "globex"}))
    counted.clear()
    for _ in range(3):
        rival.send(rival.spool.commit([record(1, license="globex-db") for _ in range(50)]))
    assert len(counted) == 1
    rival.send(rival.spool.commit([record(1, license=name) for name in names]))
    assert len(counted) == 2


def test_more_than_any_machine_has_is_an_alarm(rival: Sender) -> None:
    rival.send(rival.spool.commit([record(1, license="", cpu_ns=64 * 5 * 10**9)]))
    assert alarms(rival.world.store) == {}
    rival.send(rival.spool.commit([record(2, license="", cpu_ns=2**63 - 1)]))
    assert alarms(rival.world.store) == {"implausible": 1}
    with rival.world.store.reading() as reader:
        (alarm,) = reader.usage_alarms()
    assert alarm.detail == "Record 2 has 9223372036 s of CPU time in 5 s"


def test_usage_of_days_that_are_gone_is_an_alarm(rival: Sender) -> None:
    world = rival.world
    rival.send(rival.spool.commit([record(1, license="")]))
    assert world.plane.money.keep()
    days = {"records_days": 10, "hourly_days": 10, "daily_days": 10}
    world.plane.money.set_retention(ROOT, Change(), days)
    world.clock.pass_s(30 * 86_400)
    purge(world.store, world.clock.now_ms)
    rival.send(rival.spool.commit([record(1, license=""), record(2, license="")]))
    assert alarms(world.store) == {"late": 2}


def test_what_was_set_aside_goes_with_its_batch(rival: Sender) -> None:
    world = rival.world
    rival.send(rival.spool.commit([record(1), b"\xff"]))
    rival.send(rival.spool.commit([record(2)]))
    assert world.plane.money.keep()
    world.plane.money.set_retention(ROOT, Change(), {"records_days": 10})
    world.clock.pass_s(30 * 86_400)
    purge(world.store, world.clock.now_ms)
    with world.store.reading() as reader:
        assert reader.set_aside() == ()
    assert verified(world)["problems"] == []


def test_a_batch_has_no_more_records_than_agents_send(rival: Sender) -> None:
    from licagent.store.ledger_types import BATCH_RECORDS

    assert RECORDS_MAX == BATCH_RECORDS
    with pytest.raises(PlaneError, match="more than 1000") as found:
        rival.send(rival.spool.made([b""] * (RECORDS_MAX + 1)))
    assert found.value.code is ExitCode.USAGE
    assert rival.send(rival.spool.commit([b""] * RECORDS_MAX)).sequence == RECORDS_MAX


def test_what_is_remembered_is_bounded_by_bytes() -> None:
    memory: Remembered[str, int] = Remembered(1_000)
    memory.put("often", 1, 100)
    for number in range(1_000):
        memory.put(f"key-{number}", number, 100)
        assert memory.get("often") == 1
        assert len(memory) <= 10
    memory.put("huge", 1, 501)
    assert memory.get("huge") is None


def test_long_texts_do_not_fill_the_readers_memory() -> None:
    reader = RecordReader(known_bytes=1_000_000)
    for number in range(20):
        fields = {name: os.urandom(500).hex() for name in ("unit", "cgroup", "user", "executable")}
        read = reader.read(1, [record(n, detail=str(number * 50 + n), **fields) for n in range(50)])
        assert len(read.rows) == 50
    assert len(reader._known) < 250
