# SPDX-License-Identifier: Apache-2.0
"""Rollups and sums: every record once, in every window, on both databases."""

from __future__ import annotations

import random
import threading

import pytest
from tests.unit.licplane.usage_lines import DAY_MS, Line, Lines, at

from licplane.store.database import Store
from licplane.store.usage_sums import UsageSum, Window

pytest_plugins = ["tests.support.postgres"]

HOUR_MS = 3_600_000
T0 = 20_000 * DAY_MS


def sums(store: Store, since: int, until: int, *by: str, **where: object) -> list[UsageSum]:
    with store.reading() as reader:
        wanted = {name: [value] for name, value in where.items()}
        return reader.usage_sums(Window(since, until), by, where=wanted)  # type: ignore[arg-type]


def total(store: Store, since: int, until: int, meter: str = "cpu_ns", **where: object) -> int:
    return sum(one.quantities.get(meter, 0) for one in sums(store, since, until, **where))


def some_lines(chance: random.Random, count: int) -> list[Line]:
    found = []
    for _ in range(count):
        start = T0 + chance.randrange(4 * DAY_MS)
        found.append(
            Line(
                start,
                start + chance.choice([0, 1, 5_000, HOUR_MS]),
                host=chance.choice(["a", "b"]),
                license=chance.choice(["", "l1", "l2"]),
                unit=chance.choice(["u1", "u2"]),
                project=chance.choice(["p1", "p2"]),
                pid=chance.choice([0, 7]),
                quantities={"cpu_ns": chance.randrange(2**50), "stored_byte_ms": 2**62},
            )
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_any_window_is_the_sum_of_its_records(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    lines = Lines(store)
    for _ in range(6):
        lines.add(*some_lines(chance, 20))
        if chance.random() < 0.6:
            lines.roll_up(chance.choice([1, 64]))
    edges = [T0 - 1, T0, T0 + DAY_MS, T0 + 2 * DAY_MS, T0 + 9 * DAY_MS]
    edges += [T0 + chance.randrange(5 * DAY_MS) for _ in range(2)]
    for since in edges:
        for until in edges:
            for meter in ("cpu_ns", "stored_byte_ms"):
                wanted = lines.total(meter, since, until)
                assert total(store, since, until, meter) == wanted, (since - T0, until - T0)
    wanted = lines.total("cpu_ns", T0, T0 + 2 * DAY_MS, license="l1", project="p2")
    assert total(store, T0, T0 + 2 * DAY_MS, license="l1", project="p2") == wanted


def test_split_by_each_dimension(store: Store) -> None:
    lines = Lines(store)
    first = Line(T0 + 1, T0 + 5_000, pid=7, quantities={"cpu_ns": 1})
    lines.add(first, at(first, unit="b.service", region="us-1", quantities={"cpu_ns": 2}))
    lines.roll_up()
    lines.add(at(first, pid=8, host="host-2", quantities={"cpu_ns": 4}))

    def split(*by: str) -> dict[object, int]:
        return {one.key: one.quantities["cpu_ns"] for one in sums(store, T0, T0 + DAY_MS, *by)}

    assert split("unit") == {("orders.service",): 5, ("b.service",): 2}
    assert split("region", "host") == {
        ("eu-1", "host-1"): 1, ("us-1", "host-1"): 2, ("eu-1", "host-2"): 4,
    }  # fmt: skip
    assert split("pid") == {(7,): 3, (8,): 4}
    assert split("day") == {(T0,): 7}
    assert split("hour", "user") == {(T0, "orders"): 7}


def test_a_record_at_the_edge_counts_where_its_last_millisecond_is(store: Store) -> None:
    lines = Lines(store)
    lines.add(Line(T0 - 5_000, T0, quantities={"cpu_ns": 1}))
    lines.add(Line(T0 - 4_999, T0 + 1, quantities={"cpu_ns": 2}))
    for _ in range(2):
        assert total(store, T0 - DAY_MS, T0) == 1
        assert total(store, T0, T0 + DAY_MS) == 2
        lines.roll_up()


def test_rolled_up_twice_is_once_and_positions_follow(store: Store) -> None:
    lines = Lines(store)
    lines.add(Line(T0, T0 + 5_000, quantities={"cpu_ns": 3}, estimated=1))
    lines.roll_up()
    lines.roll_up()
    lines.add(Line(T0, T0 + 5_000, quantities={"cpu_ns": 4}, estimated=4))
    lines.roll_up()
    found = sums(store, T0, T0 + DAY_MS)
    assert [(one.quantities, one.records, one.estimated) for one in found] == [
        ({"cpu_ns": 7}, 2, 5)
    ]
    with store.reading() as reader:
        assert [(one.host_id, one.sequence) for one in reader.rolled_positions()] == [("host-1", 2)]
        assert reader.pending_batches() == 0


def test_totals_beyond_what_a_column_holds(store: Store) -> None:
    lines = Lines(store)
    most = 2**63 - 1
    for _ in range(3):
        lines.add(*[Line(T0, T0 + 1, quantities={"memory_byte_ms": most}) for _ in range(5)])
        lines.roll_up()
    assert total(store, T0, T0 + DAY_MS, "memory_byte_ms") == 15 * most


def test_records_that_are_gone_are_read_from_the_hours(store: Store) -> None:
    lines = Lines(store)
    lines.add(Line(T0 + HOUR_MS // 2, T0 + HOUR_MS // 2 + 1, quantities={"cpu_ns": 1}))
    lines.roll_up()
    with store.recording() as recorder:
        recorder.note_kept(records_ms=T0 + DAY_MS)
    assert total(store, T0 + HOUR_MS // 2 + 9, T0 + 2 * DAY_MS) == 1


def test_hours_that_are_gone_are_read_from_the_days(store: Store) -> None:
    lines = Lines(store)
    for hour in (1, 5, 30):
        start = T0 + hour * HOUR_MS
        lines.add(Line(start, start + 1, quantities={"cpu_ns": hour}))
    lines.roll_up()
    with store.recording() as recorder:
        recorder.note_kept(records_ms=T0 + DAY_MS, hourly_ms=T0 + DAY_MS)
        recorder.purge_rollups(hourly_before_ms=T0 + DAY_MS, daily_before_ms=0)
    assert total(store, T0 + 3 * HOUR_MS, T0 + 2 * DAY_MS) == 36
    assert [one.key for one in sums(store, T0, T0 + 2 * DAY_MS, "pid", "hour")] == [
        (0, T0), (0, T0 + 30 * HOUR_MS),
    ]  # fmt: skip


def test_rollups_beside_intake_and_beside_each_other_count_once(store: Store) -> None:
    lines = Lines(store)
    done = threading.Event()
    failures: list[BaseException] = []

    def roll() -> None:
        try:
            while not done.is_set():
                lines.roll_up(1)
        except BaseException as error:
            failures.append(error)
            raise

    rollers = [threading.Thread(target=roll) for _ in range(2)]
    for one in rollers:
        one.start()
    for number in range(12):
        host = f"host-{number % 3}"
        lines.add(*[Line(T0, T0 + 5_000, host=host, quantities={"cpu_ns": 1})] * 5)
        # An answer has all that was stored before it was asked for, rolled up or not.
        assert total(store, T0, T0 + DAY_MS) == 5 * (number + 1)
    done.set()
    for one in rollers:
        one.join()
    assert failures == []
    lines.roll_up()
    assert total(store, T0, T0 + DAY_MS) == 60
    with store.reading() as reader:
        assert {one.sequence for one in reader.rolled_positions()} == {20}


def test_one_leader_at_a_time(store: Store) -> None:
    def lead(name: str, now_ms: int) -> bool:
        with store.recording() as recorder:
            return recorder.take_lead(name, now_ms, now_ms + 100)

    assert lead("a", 1_000)
    assert not lead("b", 1_050)
    assert lead("a", 1_050)
    assert lead("b", 1_150)
    assert not lead("a", 1_200)
