# SPDX-License-Identifier: Apache-2.0
"""Prices: exact until rounded, tiers without jumps, corrections that add up."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licplane.service.billing.forecast import forecast
from licplane.service.billing.periods import period_at, period_of
from licplane.service.billing.pricing import (
    UNITS,
    Choice,
    Item,
    Plan,
    Subject,
    Tier,
    charges,
    cost,
    differences,
    quantities_of,
    round_money,
)

H = 3_600 * 10**9
CPU = Item(
    "cpu",
    ("cpu_ns",),
    "core-hour",
    (Tier(Decimal(100), Decimal("0.05")), Tier(None, Decimal("0.03"))),
    included=Decimal(10),
)
PLAN = Plan("p", "EUR", (CPU,), account="organization", minimum=Decimal("2.00"))


@pytest.mark.parametrize(
    ("hours", "wanted"),
    [(0, "0"), (10, "0"), (11, "0.05"), (110, "5"), (111, "5.03"), (1010, "32")],
)
def test_graduated_tiers_after_included_units(hours: int, wanted: str) -> None:
    assert cost(CPU, hours * H)[0] == Fraction(wanted)


def test_volume_takes_one_price_for_all() -> None:
    item = Item(CPU.name, CPU.meters, CPU.unit, CPU.tiers, by_volume=True)
    assert cost(item, 100 * H)[0] == 5
    assert cost(item, 101 * H)[0] == Fraction("3.03")


@pytest.mark.parametrize(
    ("amount", "digits", "even", "up"),
    [
        ("0.125", 2, "0.12", "0.13"),
        ("0.135", 2, "0.14", "0.14"),
        ("-0.125", 2, "-0.12", "-0.12"),
        ("2.5", 0, "2", "3"),
        ("0.12500001", 2, "0.13", "0.13"),
    ],
)
def test_halves(amount: str, digits: int, even: str, up: str) -> None:
    assert str(round_money(Fraction(amount), digits)) == even
    assert str(round_money(Fraction(amount), digits, half_up=True)) == up


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_more_use_never_costs_less_and_tiers_do_not_jump(one: int, more: int) -> None:
    low, high = cost(CPU, one)[0], cost(CPU, one + more)[0]
    assert low <= high <= low + Fraction(more, CPU.divisor) * Fraction("0.05")


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 10**18)), max_size=12))
def test_corrections_bring_the_bill_to_what_one_bill_of_all_would_be(
    uses: list[tuple[str, int]],
) -> None:
    billed: dict[tuple[str, str], tuple[int, Decimal]] = {}
    seen: list[tuple[Subject, dict[str, int]]] = []
    for org, amount in uses:
        seen.append((Subject(license="l", organization=org), {"cpu_ns": amount}))
        now = charges(PLAN, quantities_of(PLAN, seen))
        for one in differences(now, billed):
            quantity, money = billed.get((one.account, one.item), (0, Decimal(0)))
            billed[one.account, one.item] = (quantity + one.quantity, money + one.amount)
        assert {key: value for key, value in billed.items() if value != (0, Decimal(0))} == {
            (one.account, one.item): (one.quantity, one.amount)
            for one in now
            if (one.quantity, one.amount) != (0, Decimal(0))
        }


def test_minimum_lifts_accounts_that_used_something() -> None:
    found = charges(PLAN, {("acme", "cpu"): 11 * H})
    assert [(one.item, str(one.amount)) for one in found] == [("cpu", "0.05"), ("minimum", "1.95")]
    assert charges(PLAN, {}) == []


def test_what_a_choice_leaves_out() -> None:
    choice = Choice(licenses=("acme-*",), regions=("eu-1", "eu-2"))
    inside = Subject(license="acme-db", region="eu-2")
    assert choice.holds(inside)
    assert not choice.holds(Subject(license="acme-db", region="us-1"))
    assert not choice.holds(Subject(license="beta-db", region="eu-1"))
    assert not choice.holds(Subject(region="eu-1"))
    assert not choice.holds(Subject(license="acme-db", region="eu-1", loopback=1))
    assert not choice.holds(Subject(license="acme-db", region="eu-1", kind=4))


def test_every_unit_is_whole() -> None:
    assert all(isinstance(one, int) and one > 0 for one in UNITS.values())


@pytest.mark.parametrize(
    ("kind", "label"),
    [("month", "2026-12"), ("week", "2026-W53"), ("day", "2028-02-29"), ("hour", "2026-11-22T23")],
)
def test_periods_follow_one_another(kind: str, label: str) -> None:
    period = period_of(kind, label)
    assert period.label == label
    assert period_at(kind, period.start_ms) == period == period_at(kind, period.end_ms - 1)
    assert period_at(kind, period.end_ms).start_ms == period.end_ms


def test_a_forecast_says_how_far_it_may_be_off() -> None:
    even = forecast([10] * 28, Fraction(10))
    assert (even.expected, even.low, even.high) == (100, 100, 100)
    few = forecast([10, 20], Fraction(2))
    assert (few.expected, few.low, few.high) == (30, None, None)
    noisy = forecast([5, 15] * 14, Fraction(4))
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < 40 < noisy.high
    assert forecast([], Fraction(3)).low is None


def test_the_interval_holds_as_often_as_it_says() -> None:
    import random

    chance = random.Random(7)
    inside = 0
    for _ in range(400):
        days = [max(0, int(chance.gauss(1000, 200))) for _ in range(24)]
        found = forecast(days[:14], Fraction(10))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= sum(days[14:]) <= found.high
    assert 0.74 <= inside / 400 <= 0.86
