# SPDX-License-Identifier: Apache-2.0
"""Taking usage in: once, whole, in order, as signed; on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from tests.support.usage import Spool, SpoolBatch, record, sums
from tests.unit.licplane.service.usage_sender import Sender, alarms, sent, stored, totals
from tests.unit.licplane.service.world import ROOT, World

from licplane.api.usage_reading import RECORD_BYTES_MAX, RecordReader
from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.usage.values import Position, UsageRefused
from licplane.service.usage.verify import UsageVerify
from licplane.store.database import Store
from licplane.store.usage_payloads import pack, unpack
from licplane.store.usage_schema import (
    usage_batches,
    usage_epochs,
    usage_pending,
)

pytest_plugins = ["tests.support.postgres"]


def test_rows_are_what_was_sent(sender: Sender) -> None:
    odd = record(
        3, kind=2, protocol=6, loopback=True, estimated=[20, 26], unsupported=[24], uid=-1,
        detail='tab\t "quote" \\N ä€😀', unit="", tx_payload_bytes=2**63 - 1,
    )  # fmt: skip
    batch = sender.spool.commit([record(1), record(2), odd])
    assert sender.send(batch) == (3, batch.hash)
    rows = stored(sender.world.store)
    assert [row["sequence"] for row in rows] == [1, 2, 3]
    assert totals(rows) == sums(batch.records)
    row = rows[2]
    assert (row["host_id"], row["boot_id"]) == (sender.host.id, sender.spool.boot_id)
    assert (row["kind"], row["protocol"], row["loopback"]) == (2, 6, 1)
    assert row["estimated"] == 1 | 1 << 6
    assert row["unsupported"] == 1 << 4
    assert row["uid_plus_one"] == 0
    assert row["detail"] == 'tab\t "quote" \\N ä€😀'
    assert (row["org"], row["project"], row["environment"], row["region"]) == (
        "acme", "shop", "prod", "eu",
    )  # fmt: skip
    assert row["received_ms"] == sender.world.clock.now_ms
    assert row["day"] == row["end_ms"] // 86_400_000
    with sender.world.store.reading() as reader:
        (kept,) = reader._connection.execute(select(usage_batches)).all()
        assert unpack(kept.payload) == list(batch.records)
        assert (kept.signature, kept.signed_host_id) == (batch.signature, sender.host.id)
        assert len(reader._connection.execute(select(usage_pending)).all()) == 1


def test_a_batch_is_taken_once(sender: Sender) -> None:
    first = sender.spool.commit([record(1), record(2)])
    second = sender.spool.commit([record(3)])
    sender.send(first)
    with pytest.raises(Conflict):  # again, as if its ack was lost
        sender.send(first)
    with pytest.raises(Conflict):  # at the place where a slower stream believes the chain to be
        sender.send(first, Position())
    sender.intake.repeated(sender.open(), sent(first))
    sender.send(second)
    assert [row["sequence"] for row in stored(sender.world.store)] == [1, 2, 3]
    assert alarms(sender.world.store) == {}


def test_order_is_held(sender: Sender) -> None:
    sender.spool.commit([record(1)])
    late = sender.spool.commit([record(2)])
    with pytest.raises(Conflict):
        sender.send(late)
    assert stored(sender.world.store) == []


def test_two_streams_of_one_host_at_once(sender: Sender) -> None:
    items = [sender.spool.commit([record(n * 10 + k) for k in range(10)]) for n in range(8)]
    others = [Sender(sender.world, sender.host, sender.spool) for _ in range(3)]
    stored_by = []

    def run(one: Sender) -> None:
        for item in items:
            try:
                one.send(item)
                stored_by.append(item.first)
            except Conflict:
                pass

    threads = [threading.Thread(target=run, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item in items:  # what fell between two of them
        chain = sender.open()
        if item.first == chain.acked_sequence + 1:
            sender.send(item)
    rows = stored(sender.world.store)
    assert [row["sequence"] for row in rows] == list(range(1, 81))
    assert totals(rows) == sums(sender.spool.records)
    assert len(stored_by) == len(set(stored_by))


FORGED: tuple[tuple[str, Callable[[SpoolBatch, Spool], SpoolBatch]], ...] = (
    ("hash", lambda b, s: replace(b, records=(record(9), *b.records[1:]))),
    ("hash", lambda b, s: replace(b, hash=bytes(32))),
    ("chain", lambda b, s: s.made(b.records, previous_hash=bytes(31) + b"\1")),
    ("signature", lambda b, s: replace(b, signature=bytes(64))),
    ("signature", lambda b, s: replace(b, signature=b"short")),
    ("signature", lambda b, s: replace(b, boot_id="another-boot")),
    ("signature", lambda b, s: replace(s, host_id="somebody-else").made(b.records)),
)


def test_what_was_altered_is_refused_with_an_alarm(sender: Sender) -> None:
    true = sender.spool.made([record(1), record(2)])
    for code, forge in FORGED:
        with pytest.raises(UsageRefused) as refused:
            sender.send(forge(true, sender.spool))
        assert refused.value.alarm == code
    assert alarms(sender.world.store) == {"hash": 2, "chain": 1, "signature": 4}
    assert stored(sender.world.store) == []
    assert sender.send(sender.spool.commit(true.records)).sequence == 2


def test_other_records_under_stored_sequences_are_seen(sender: Sender) -> None:
    sender.send(sender.spool.commit([record(1)]))
    other = Spool(sender.host.id, key=sender.spool.key).commit([record(2)])
    with pytest.raises(UsageRefused) as refused:
        sender.intake.repeated(sender.open(), sent(other))
    assert refused.value.alarm == "rewritten"


def test_the_first_key_of_an_epoch_stays(sender: Sender) -> None:
    sender.open()
    with pytest.raises(UsageRefused) as refused:
        sender.open(public_key=bytes(31) + b"\1")
    assert refused.value.alarm == "key"
    assert sender.open().public_key == sender.spool.public_key
    other = Spool(host_id=sender.host.id, epoch=2)
    assert Sender(sender.world, sender.host, other).send(other.commit([record(1)])).sequence == 1


def test_a_key_that_is_not_in_the_audit_log_is_found(sender: Sender) -> None:
    """Whoever has the database could sign everything anew with a key of his own."""
    sender.send(sender.spool.commit([record(1)]))
    world = sender.world
    assert world.actions().count("usage.epoch") == 1
    verify = UsageVerify(world.plane._core).verify
    assert verify(ROOT, RecordReader().read, sender.host.id).problems == []
    forged = Spool(host_id=sender.host.id)
    batch = forged.commit([record(2)])
    with world.store.recording() as recorder:
        for table, values in (
            (usage_epochs, {"public_key": forged.public_key, "acked_hash": batch.hash}),
            (
                usage_batches,
                {
                    "payload": pack(batch.records),
                    "hash": batch.hash,
                    "signature": batch.signature,
                    "boot_id": batch.boot_id,
                },
            ),
        ):
            recorder._connection.execute(update(table).values(**values))
    found = verify(ROOT, RecordReader().read, sender.host.id).problems
    assert any("its key is not the one in the audit log" in one for one in found)
    assert not any("signature" in one for one in found)


def test_what_was_used_before_enrolling_counts(sender: Sender) -> None:
    spool = Spool(host_id="")
    before = Sender(sender.world, sender.host, spool)
    before.send(spool.commit([record(1)]))
    spool.host_id = sender.host.id
    before.send(spool.commit([record(2)]))
    assert len(stored(sender.world.store)) == 2


BAD = {
    "it is no usage record": b"\xff\xff\xff",
    "it is too long": record(1, detail="x" * RECORD_BYTES_MAX),
    "its kind 0 is not known": record(1, kind=0),
    "its kind 99 is not known": record(1, kind=99),
    "its times make no sense": record(1, end_unix_ms=5, start_unix_ms=6),
    "a quantity is too large": record(1, cpu_ns=2**63),
    "a text holds a NUL": record(1, unit="a\0b"),
    "a text is too long": record(1, cgroup="x" * 1025),
    "there is no such protocol": record(1, protocol=70_000),
    "there is no such user id": record(1, uid=2**40),
    "the start of its process makes no sense": record(1, process_start_unix_ms=-1),
}


def test_a_bad_record_is_set_aside_and_the_rest_goes_through(sender: Sender) -> None:
    records = []
    for number, bad in enumerate(BAD.values(), 1):
        records += [record(number), bad]
    batch = sender.spool.commit(records)
    assert sender.send(batch).sequence == len(records)
    rows = stored(sender.world.store)
    assert [row["sequence"] for row in rows] == list(range(1, len(records), 2))
    assert totals(rows) == sums([one for one in records if one not in BAD.values()])
    with sender.world.store.reading() as reader:
        aside = reader.set_aside(sender.host.id)
    assert [one[4] for one in aside] == list(BAD)
    assert alarms(sender.world.store)["refused"] == len(BAD)
    # Nothing but bad ones.
    sender.send(sender.spool.commit([b"\xff"]))
    assert len(stored(sender.world.store)) == len(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_read_or_set_aside(records: list[bytes]) -> None:
    read = RecordReader().read(1, records)
    found = sorted([row.sequence for row in read.rows] + [one.sequence for one in read.refused])
    assert found == list(range(1, len(records) + 1))


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_payloads_come_back(records: list[bytes]) -> None:
    assert unpack(pack(records)) == records


@given(st.binary(max_size=100))
def test_altered_payloads_are_refused(data: bytes) -> None:
    with contextlib.suppress(PlaneError):
        unpack(data)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_any_walk_of_repeats_and_losses_adds_up(world: World, seed: int) -> None:
    """Batches in any order, repeated, from several streams, with crashes before the ack."""
    chance = random.Random(seed)
    host = world.host(f"walk-{seed}")
    sender = Sender(world, host)
    spool = sender.spool
    for number in range(12):
        if chance.random() < 0.15:
            spool.lose(chance.randint(1, 3))
        else:
            spool.commit([record(number * 9 + k) for k in range(chance.randint(1, 9))])
    while sender.open().acked_sequence < spool.next_sequence - 1:
        item = chance.choice(spool.items)
        try:
            sender.send(item)
        except Conflict:
            continue
    rows = [row for row in stored(world.store) if row["host_id"] == host.id]
    assert totals(rows) == sums(spool.records)
    assert len(rows) == len(spool.records)


def test_late_usage_keeps_both_times(sender: Sender) -> None:
    day = 86_400_000
    now_ms = sender.world.clock.now_ms
    ends = [now_ms - 40 * day, now_ms - 2_000 * day, now_ms, now_ms + 40 * day]
    sender.send(
        sender.spool.commit(
            [record(n, start_unix_ms=end - 1, end_unix_ms=end) for n, end in enumerate(ends)]
        )
    )
    rows = stored(sender.world.store)
    assert [row["end_ms"] for row in rows] == ends
    assert {row["received_ms"] for row in rows} == {now_ms}
    assert alarms(sender.world.store) == {"clock": 1}


def test_days_have_parts_and_stray_rows_move(postgres_url: str) -> None:
    from tests.unit.licplane.service.world import make_world

    with Store.open(postgres_url) as store:
        store.upgrade()
        world = make_world(store)
        sender = Sender(world, world.host())
        day = 86_400_000
        ahead = world.clock.now_ms + 40 * day
        early = record(2, start_unix_ms=ahead - 1, end_unix_ms=ahead)
        sender.send(sender.spool.commit([record(1), early]))
        assert places(store) == [
            ("usage_records_20260921", 1),
            ("usage_records_default", 1),
        ]
        world.clock.now_ms = ahead
        sender.send(sender.spool.commit([record(3, start_unix_ms=ahead, end_unix_ms=ahead)]))
        assert places(store) == [
            ("usage_records_20260921", 1),
            ("usage_records_20270224", 2),
        ]
        with store.recording() as recorder:
            assert recorder.drop_parts(ahead // day) == 3  # the record's, the first day's, the next
        assert places(store) == [("usage_records_20270224", 2)]
        # A part that somebody dropped does not stop what comes.
        sender.send(sender.spool.commit([record(1)]))
        assert len(stored(store)) == 3


def places(store: Store) -> list[tuple[str, int]]:
    with store.reading() as reader:
        statement = "SELECT tableoid::regclass::text AS t, count(*) FROM usage_records GROUP BY t"
        return sorted(tuple(row) for row in reader._connection.execute(text(statement)))


def test_intake_does_not_wait_for_who_reads_the_default_part(postgres_url: str) -> None:
    from tests.unit.licplane.service.world import make_world

    with Store.open(postgres_url) as store:
        store.upgrade()
        world = make_world(store)
        sender = Sender(world, world.host())
        with store.reading() as reader:
            reader._connection.execute(text("SELECT count(*) FROM usage_records")).all()
            sender.send(sender.spool.commit([record(1)]))
            assert len(stored(store)) == 1
        sender.send(sender.spool.commit([record(2)]))
        assert places(store) == [("usage_records_20260921", 2)]


def test_malformed_hellos(sender: Sender) -> None:
    for changes in ({"epoch": 0}, {"epoch": 2**63}, {"public_key": b"x"}, {"boot_id": "x" * 65}):
        with pytest.raises(PlaneError) as refused:
            sender.open(**changes)
        assert refused.value.code is ExitCode.USAGE
