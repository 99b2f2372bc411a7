# SPDX-License-Identifier: Apache-2.0
"""What was billed stays billed, once: over changes of plans, retention, and late usage."""

from __future__ import annotations

import itertools

import pytest
from tests.unit.licplane.service.billing.test_closing import (
    OCTOBER,
    PLAN,
    apply,
    cpu,
    documents,
    entries,
    ms,
    october,
)
from tests.unit.licplane.service.world import ROOT, World

from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import Change
from licplane.service.usage.retention import purge

pytest_plugins = ["tests.support.postgres"]


def billed(world: World) -> dict[str, str]:
    """Each closed period with its total."""
    money = world.plane.money
    return {
        one["period"]: money.bill(ROOT, one["plan"], one["period"].partition("/")[2])["total"]
        for one in money.periods(ROOT, "")["periods"]
    }


def keep(world: World, *, tidy: bool = False) -> None:
    """The regular work, as a server does that has just taken over."""
    world.clock.pass_s(3_700 if tidy else 61)
    assert world.again().money.keep()


@pytest.mark.parametrize("kind", ["week", "day"])
def test_the_kind_of_period_stays_once_a_period_is_closed(both: World, kind: str) -> None:
    october(both)
    both.clock.now_ms = ms("2026-11-04T00:00:00")
    keep(both)
    assert billed(both) == {"standard/2026-10": "7.00"}
    with pytest.raises(PlaneError, match="by the month") as found:
        apply(both, ("plan", {**PLAN, "period": kind}))
    assert found.value.code is ExitCode.REFUSED
    # Nor by removing it and making it anew.
    money = both.plane.money
    money.apply(ROOT, Change(), documents(("plan", {"name": "standard"})), delete=True)
    with pytest.raises(PlaneError, match="by the month"):
        apply(both, ("plan", {**PLAN, "period": kind}))
    apply(both, ("plan", {**PLAN, "minimum": "1.00"}))
    keep(both)
    assert billed(both) == {"standard/2026-10": "7.00"}


def test_the_kind_of_period_may_change_before_one_is_closed(both: World) -> None:
    october(both)
    apply(both, ("plan", {**PLAN, "period": "week", "minimum": "0"}))
    keep(both)
    assert {name: total for name, total in billed(both).items() if total != "0"} == {
        "standard/2026-W41": "5.00"
    }


@pytest.mark.parametrize("kind", ["week", "day"])
def test_no_moment_is_billed_twice_whatever_the_plan_became(both: World, kind: str) -> None:
    """A database from before changes of the period were refused."""
    october(both)
    both.clock.now_ms = ms("2026-11-20T00:00:00")
    keep(both)
    with both.store.recording() as recorder:
        (old,) = recorder.billing_documents("plan")
        text = old.document.replace('"name":"standard"', f'"name":"standard","period":"{kind}"')
        assert text != old.document
        recorder.put_billing_document(
            type(old)("plan", "standard", old.version + 1, text, "root", both.clock.now_ms)
        )
    keep(both)
    with both.store.reading() as reader:
        periods = sorted(reader.closed_periods(), key=lambda one: one.start_ms)
    assert len(periods) > 1
    for one, after in itertools.pairwise(periods):
        assert one.end_ms <= after.start_ms
    label = {"week": "2026-W41", "day": "2026-10-01"}[kind]
    with pytest.raises(PlaneError, match="standard/2026-10") as found:
        both.plane.money.close(ROOT, Change(), "standard", label)
    assert found.value.code is ExitCode.REFUSED


def test_a_bill_stays_when_its_sums_are_deleted(both: World) -> None:
    lines = october(both)
    both.clock.now_ms = ms("2026-11-04T00:00:00")
    keep(both)
    before = entries(both)
    both.plane.money.set_retention(ROOT, Change(), {"hourly_days": 400, "daily_days": 400})
    both.clock.now_ms = ms("2027-12-20T00:00:00")
    keep(both, tidy=True)
    for _ in range(2):  # each as a server that was started again
        keep(both, tidy=True)
    assert entries(both) == before
    # A host, or its clock, sends what belongs into it.
    lines.add(cpu(OCTOBER, 500), received_ms=both.clock.now_ms)
    keep(both)
    assert entries(both) == before
    with pytest.raises(PlaneError, match="deleted as old") as found:
        both.plane.money.correct(ROOT, Change(), "standard/2026-10")
    assert found.value.code is ExitCode.REFUSED
    # One whose days are all there is corrected as ever.
    lines.add(cpu(ms("2027-11-20T12:00:00"), 200), received_ms=both.clock.now_ms)
    keep(both)
    assert [one[3] for one in entries(both, "2027-11")] == ["7.70"]


def test_sums_of_what_is_still_to_be_billed_stay(both: World) -> None:
    october(both)
    both.clock.now_ms = ms("2026-10-06T00:00:00")
    keep(both)
    days = {"records_days": 14, "hourly_days": 14, "daily_days": 14}
    both.plane.money.set_retention(ROOT, Change(), days)
    both.clock.now_ms = ms("2026-10-25T00:00:00")
    keep(both, tidy=True)
    purge(both.store, both.clock.now_ms)
    with both.store.reading() as reader:
        work = reader.usage_work()
    assert work.daily_kept_until_ms <= work.hourly_kept_until_ms <= ms("2026-10-01")
    both.clock.now_ms = ms("2026-11-04T00:00:00")
    keep(both)
    assert billed(both) == {"standard/2026-10": "7.00"}
    both.clock.now_ms = ms("2026-11-25T00:00:00")
    keep(both, tidy=True)
    with both.store.reading() as reader:
        assert reader.usage_work().daily_kept_until_ms == ms("2026-11-01")  # November runs


def test_a_period_too_old_to_be_billed_holds_nothing_back(both: World) -> None:
    october(both)
    both.clock.now_ms = ms("2029-01-10T00:00:00")  # no server ran for two years
    purge(both.store, both.clock.now_ms)
    with both.store.reading() as reader:
        assert reader.usage_work().kept_until_ms > 0


def test_what_was_used_while_a_plan_was_removed_is_on_no_bill(both: World) -> None:
    lines = october(both)
    money = both.plane.money
    removed = documents(("plan", {"name": "standard"}))
    money.apply(ROOT, Change(), removed, delete=True)  # on 2 November, before October is closed
    lines.add(cpu(ms("2026-12-10T00:00:00"), 50))
    both.clock.now_ms = ms("2027-01-10T00:00:00")
    apply(both, ("plan", PLAN))
    keep(both)
    assert billed(both) == {"standard/2026-10": "7.00", "standard/2026-11": "0"}
    both.clock.now_ms = ms("2027-02-10T00:00:00")
    keep(both)
    assert set(billed(both)) == {"standard/2026-10", "standard/2026-11", "standard/2027-01"}
