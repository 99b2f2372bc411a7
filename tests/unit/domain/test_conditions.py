# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.conditions import Standing, judge_condition, judge_conditions, next_change_s
from lictoken.claims import Condition, Entitlement
from lictoken.conditions import DAYS, parse_hours

NOTHING: Mapping[str, str] = {}


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def hours(now_s: float, *values: str) -> Standing:
    return judge_condition(Condition("hours", values), NOTHING, NOTHING, now_s)


@pytest.mark.parametrize(
    ("labels", "holds", "found"),
    [
        ({"region": "eu-1"}, True, "eu-1"),
        ({"region": "eu-2"}, True, "eu-2"),
        ({"region": "us"}, False, "us"),
        ({"region": "EU-1"}, False, "EU-1"),
        ({"environment": "eu-1"}, False, None),
        ({}, False, None),
    ],
)
def test_labels(labels: Mapping[str, str], holds: bool, found: str | None) -> None:
    standing = judge_condition(Condition("label:region", ("eu-1", "eu-2")), labels, NOTHING, 0)
    assert (standing.holds, standing.found) == (holds, found)
    assert bool(standing.hint) != holds
    if not holds:
        assert "region must be eu-1 or eu-2" in standing.detail


@pytest.mark.parametrize(
    ("kind", "value", "facts", "holds"),
    [
        ("posture:secure_boot", "true", {"secure_boot": "true"}, True),
        ("posture:secure_boot", "true", {"secure_boot": "false"}, False),
        ("posture:secure_boot", "true", {}, False),
        # Not known is not false either: a license for hosts without needs to know that.
        ("posture:secure_boot", "false", {}, False),
        ("posture:pending_reboot", "false", {"pending_reboot": "false"}, True),
        ("posture:pending_reboot", "false", {"pending_reboot": "true"}, False),
        ("posture:kernel", ">=6.1", {"kernel": "6.1.0-18-amd64"}, True),
        ("posture:kernel", ">=6.1", {"kernel": "5.10.0"}, False),
        ("posture:kernel", ">=6.1", {"kernel": "mine"}, False),
        ("posture:kernel", "new", {"kernel": "6.1.0"}, False),
        ("posture:kernel", ">=6.1", {}, False),
        ("moon", "full", {"moon": "full"}, False),
        ("posture:moon", "full", {"moon": "full"}, False),
    ],
)
def test_posture(kind: str, value: str, facts: Mapping[str, str], holds: bool) -> None:
    standing = judge_condition(Condition(kind, (value,)), NOTHING, facts, 0)
    assert standing.holds is holds
    assert bool(standing.detail) != holds
    assert bool(standing.hint) != holds


def test_all_conditions_of_an_entitlement_are_judged() -> None:
    entitlement = Entitlement(
        "db", conditions=(Condition("label:a", ("1",)), Condition("label:b", ("1",)))
    )
    found = judge_conditions(entitlement, {"a": "1"}, NOTHING, 0)
    assert [each.holds for each in found] == [True, False]


WORK = "Mon-Fri 08:00-18:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("local", "holds", "changes"),
    [
        ("2026-11-20T07:59:59", False, "2026-11-20T08:00:00"),
        ("2026-11-20T08:00:00", True, "2026-11-20T18:00:00"),
        ("2026-11-20T17:59:59.9", True, "2026-11-20T18:00:00"),
        ("2026-11-20T18:00:00", False, "2026-11-23T08:00:00"),  # over the week-end
        ("2026-03-27T18:00:00", False, "2026-03-30T08:00:00"),  # the clocks go forward meanwhile
        ("2026-10-23T18:00:00", False, "2026-10-26T08:00:00"),  # and back
    ],
)
def test_working_hours(local: str, holds: bool, changes: str) -> None:
    standing = hours(at(local, "Europe/Berlin"), WORK)
    assert standing.holds is holds
    assert standing.changes_at_s == at(changes, "Europe/Berlin")
    if not holds:
        assert f"{datetime.fromtimestamp(standing.changes_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}" in (
            standing.hint
        )


@pytest.mark.parametrize(
    ("now", "holds", "changes"),
    [
        # 2026-03-29: 02:00 becomes 03:00 (01:00 UTC); 2026-10-25: 03:00 becomes 02:00 (01:00 UTC).
        ("2026-03-29T00:59:59", False, "2026-03-29T01:00:00"),  # 02:30 never comes: at 03:00
        ("2026-03-29T01:00:00", True, "2026-03-29T03:00:00"),
        ("2026-10-25T00:29:59", False, "2026-10-25T00:30:00"),  # 02:30 the first time
        ("2026-10-25T00:45:00", True, "2026-10-25T01:00:00"),  # put back to 02:00
        ("2026-10-25T01:00:00", False, "2026-10-25T01:30:00"),  # 02:30 the second time
        ("2026-10-25T01:30:00", True, "2026-10-25T04:00:00"),
    ],
)
def test_hours_that_a_change_of_clocks_touches(now: str, holds: bool, changes: str) -> None:
    standing = hours(at(now), "Sun 02:30-05:00 Europe/Berlin")
    assert standing.holds is holds
    assert standing.changes_at_s == at(changes)


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin() -> None:
    window = "Fri 22:00-06:00 UTC"
    assert hours(at("2026-11-20T23:00:00"), window).holds
    assert hours(at("2026-11-21T05:59:00"), window).holds
    assert not hours(at("2026-11-21T06:00:00"), window).holds
    assert not hours(at("2026-11-21T23:00:00"), window).holds
    assert not hours(at("2026-11-20T05:00:00"), window).holds


def test_any_of_the_windows_will_do_and_one_goes_over_into_the_next() -> None:
    windows = ("Fri 08:00-12:00 UTC", "Fri 12:00-14:00 UTC")
    standing = hours(at("2026-11-20T09:00:00"), *windows)
    assert standing.holds
    assert standing.changes_at_s == at("2026-11-20T14:00:00")


def test_hours_that_are_always_never_change() -> None:
    assert hours(at("2026-11-20T09:00:00"), "Mon-Sun 00:00-24:00 Europe/Berlin") == Standing(
        "hours",
        ("Mon-Sun 00:00-24:00 Europe/Berlin",),
        holds=True,
        found="Fri 10:00 Europe/Berlin",
    )


@pytest.mark.parametrize(
    ("value", "hint"),
    [("Mon-Sun 00:00-24:00 Mars/Base", "tzdata"), ("always", "issued again")],
)
def test_hours_that_cannot_be_judged_do_not_hold(value: str, hint: str) -> None:
    standing = hours(0, value)
    assert not standing.holds
    assert standing.found is None
    assert hint in standing.hint
    # A known one beside it counts all the same.
    assert hours(0, value, "Mon-Sun 00:00-24:00 UTC").holds


@pytest.mark.parametrize("now_s", [1e18, -1e18, 253402300799.0])
def test_times_of_no_calendar_hold_nothing(now_s: float) -> None:
    assert not hours(now_s, "Mon-Sun 00:00-24:00 UTC", "Mon-Sun 00:00-24:00 Asia/Tokyo").holds


minutes = st.integers(0, 1439)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",  # half an hour
    "Australia/Lord_Howe",  # put back by half an hour
    "Africa/Casablanca",  # forward for Ramadan
    "Pacific/Apia",  # left out a whole day, 2011-12-30
)


@st.composite
def windows(draw: st.DrawFn) -> str:
    days = draw(st.lists(st.sampled_from(DAYS), min_size=1, max_size=4, unique=True))
    begin = draw(minutes)
    end = draw(st.integers(1, 1440).filter(lambda minute: minute != begin))
    times = "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (begin, end))
    return f"{','.join(days)} {times} {draw(st.sampled_from(ZONES))}"


@given(
    st.lists(windows(), min_size=1, max_size=2, unique=True),
    st.one_of(
        st.integers(1_262_304_000, 2_208_988_800),  # 2010 to 2040
        st.integers(1_325_100_000, 1_325_400_000),  # Samoa's lost day
        st.integers(1_774_600_000, 1_774_900_000),  # Europe's clocks go forward
        st.integers(1_792_700_000, 1_793_000_000),  # and back
    ),
)
def test_until_the_next_change_nothing_changes(values: list[str], now_s: int) -> None:
    parsed = [parse_hours(value) for value in values]
    change_s = next_change_s(parsed, now_s)
    holds = hours(now_s, *values).holds
    until_s = now_s + 9 * 86_400 if change_s is None else change_s
    for moment in range(now_s, until_s, 600):
        assert hours(moment, *values).holds is holds, datetime.fromtimestamp(moment, UTC)
    assert hours(until_s - 1, *values).holds is holds
    if change_s is not None:
        assert change_s > now_s
        assert hours(change_s, *values).holds is not holds
