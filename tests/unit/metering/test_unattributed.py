# SPDX-License-Identifier: Apache-2.0
"""The line of what nobody could be given: in sum the host's own total, and never above it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.usage import Meter
from licagent.metering.unattributed import Balance, settle

CPU = Meter.CPU_NS
TX = Meter.TX_WIRE_BYTES


def host(count: int) -> dict[Meter, dict[str, int]]:
    return {CPU: {"host": count}}


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 500)), min_size=1)
)
def test_late_readings_never_add_up(steps: list[tuple[int, int, int]]) -> None:
    """(seen, unseen, how much was used between the end of the sheet and the reading)"""
    _none, balance = settle(Balance("b", {}, {}), host(0), {})
    total = published = given_away = 0
    for seen, unseen, late in steps:
        total += seen + unseen
        given_away += seen
        found, balance = settle(balance, host(total + late), {CPU: seen})
        published += found.get(CPU, 0)
        # What is used late belongs to the next sheet: here it is of somebody, who is given it.
        late_given = late
        total += late
        given_away += late_given
        found, balance = settle(balance, host(total), {CPU: late_given})
        published += found.get(CPU, 0)
        assert given_away + published <= total
    for _ in range(2):
        found, balance = settle(balance, host(total), {})
        published += found.get(CPU, 0)
    assert given_away + published == total


def test_the_first_reading_publishes_nothing() -> None:
    found, balance = settle(Balance("b", {}, {}), host(10**12), {CPU: 5})
    assert found == {}
    assert balance.left == {"cpu_ns": 0}


def test_without_a_reading_only_the_balance_moves() -> None:
    _none, balance = settle(Balance("b", {}, {}), host(0), {})
    found, balance = settle(balance, {}, {CPU: 70})
    assert found == {}
    found, balance = settle(balance, host(100), {CPU: 10})
    found, balance = settle(balance, host(100), {})
    assert found == {CPU: 20}


def test_interfaces_that_come_go_and_begin_anew() -> None:
    def wires(**counts: int) -> dict[Meter, dict[str, int]]:
        return {TX: counts}

    _none, balance = settle(Balance("b", {}, {}), wires(a=100), {})
    # One that is new counts from when it was first seen; one that began anew from then on.
    published = 0
    for totals in (wires(a=110, b=1000), wires(a=3, b=1010), wires(b=1020), wires(a=13, b=1020)):
        found, balance = settle(balance, totals, {})
        published += found.get(TX, 0)
    assert published + balance.left["tx_wire_bytes"] == 40
    assert balance.counters["tx_wire_bytes"] == {"a": 13, "b": 1020}


def test_it_comes_back_from_its_mark_in_the_same_boot_only() -> None:
    _none, balance = settle(Balance("b", {}, {}), host(7), {})
    assert Balance.from_bytes(balance.to_bytes(), "b") == balance
    assert Balance.from_bytes(balance.to_bytes(), "other") == Balance("other", {}, {})
    for damaged in (b"", b"{", b"[]", b'{"version":1}', b'{"version":1,"boot_id":"b"}', b"\xff"):
        assert Balance.from_bytes(damaged, "b") == Balance("b", {}, {})
