# SPDX-License-Identifier: Apache-2.0
"""Budgets: what is spent or used of them, day by day, and where the period will end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final

from licplane.service.access import Permission, require
from licplane.service.billing.documents import current, plan_of
from licplane.service.billing.forecast import DAYS, METHOD, MIN_DAYS, forecast
from licplane.service.billing.periods import Period, period_at
from licplane.service.billing.pricing import (
    UNITS,
    Plan,
    Subject,
    charges,
    quantities_of,
    round_money,
)
from licplane.service.billing.reading import Budget, parsed, read_budget
from licplane.service.core import Core
from licplane.service.events import BUDGET, cloud_event, event_id, outbox
from licplane.service.usage.query import BILLED, billed_lines
from licplane.service.values import Actor
from licplane.store.deliveries import Delivery
from licplane.store.reader import Reader
from licplane.store.usage_sums import Window
from lictoken.validity import rfc3339

_DAY_MS: Final = 86_400_000
_DIGITS: Final = 6

Quantities = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class BudgetState:
    """How a budget stands. Amounts are money of the plan's currency, or units."""

    name: str
    unit: str  # a currency or a unit
    period: str
    start_ms: int
    end_ms: int
    amount: Decimal
    used: Decimal
    expected: Decimal  # at the period's end
    low: Decimal | None
    high: Decimal | None
    forecast_days: int  # whole days the forecast rests on
    exhausted_at_ms: int | None  # at the mean pace; None: not in this period
    burn_down: tuple[tuple[int, Decimal], ...] = field(default=())  # day, what is left at its end

    @property
    def percent(self) -> Decimal:
        """Of the amount, that is used."""
        return _percent(self.used, self.amount)

    @property
    def expected_percent(self) -> Decimal:
        """Of the amount, that will be used at the period's end."""
        return _percent(self.expected, self.amount)

    @property
    def method(self) -> str:
        """How the forecast is made."""
        return METHOD


class Budgets:
    """Reading budgets."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def states(self, actor: Actor, name: str = "") -> tuple[BudgetState, ...]:
        """All, or one."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            if name:
                current(reader, "budget", name)
            return tuple(
                state_of(reader, read_budget(parsed(one.document)), self._core.now_ms())
                for one in reader.billing_documents("budget")
                if name in ("", one.name)
            )


def alerts(reader: Reader, now_ms: int) -> list[Delivery]:
    """What all budgets have to tell, whether or not it was told before."""
    found: list[Delivery] = []
    for document in reader.billing_documents("budget"):
        budget = read_budget(parsed(document.document))
        if not budget.notify:
            continue
        state = state_of(reader, budget, now_ms)
        for kind, levels, percent in (
            ("used", budget.alerts, state.percent),
            ("forecast", budget.forecast_alerts, state.expected_percent),
        ):
            for level in levels:
                if percent < level:
                    break
                identity = event_id("budget", budget.name, state.period, kind, f"{level:f}")
                data = {"alert": kind, "percent": f"{level:f}", **state_document(state)}
                event = cloud_event(BUDGET, identity, budget.name, now_ms, data)
                found += outbox("budget", budget.name, event, budget.notify, now_ms)
    return found


def state_document(state: BudgetState) -> dict[str, object]:
    """A state for JSON; numbers of money are texts."""
    return {
        "budget": state.name,
        "unit": state.unit,
        "period": state.period,
        "period_start": rfc3339(state.start_ms // 1000),
        "period_end": rfc3339(state.end_ms // 1000),
        "amount": f"{state.amount:f}",
        "used": f"{state.used:f}",
        "used_percent": f"{state.percent:f}",
        "left": f"{state.amount - state.used:f}",
        "expected": f"{state.expected:f}",
        "expected_percent": f"{state.expected_percent:f}",
        "low": None if state.low is None else f"{state.low:f}",
        "high": None if state.high is None else f"{state.high:f}",
        "exhausted_at": None
        if state.exhausted_at_ms is None
        else rfc3339(state.exhausted_at_ms // 1000),
        "forecast_days": state.forecast_days,
        "forecast_method": state.method,
        "burn_down": [
            {"day": rfc3339(day // 1000)[:10], "left": f"{left:f}"} for day, left in state.burn_down
        ],
    }


def state_of(reader: Reader, budget: Budget, now_ms: int) -> BudgetState:
    """See Budgets.states."""
    plan = plan_of(current(reader, "plan", budget.plan)) if budget.plan else None
    period = period_at(plan.period if plan else budget.period, now_ms)
    today_ms = now_ms - now_ms % _DAY_MS
    since_ms = max(0, min(period.start_ms, today_ms - DAYS * _DAY_MS))
    days: dict[int, dict[tuple[str, str], int]] = {}
    by_day: dict[int, list[tuple[Subject, Mapping[str, int]]]] = {}
    for subject, line in billed_lines(reader, Window(since_ms, period.end_ms), more=("day",)):
        by_day.setdefault(int(line.key[len(BILLED)]), []).append((subject, line.quantities))
    for day, lines in by_day.items():
        days[day] = _quantities(budget, plan, lines)
    used: dict[tuple[str, str], int] = {}
    burn_down: list[tuple[int, Decimal]] = []
    for day in range(period.start_ms - period.start_ms % _DAY_MS, period.end_ms, _DAY_MS):
        if day > today_ms and day not in days:
            continue
        for key, amount in days.get(day, {}).items():
            used[key] = used.get(key, 0) + amount
        burn_down.append((day, budget.amount - _worth(budget, plan, used)))
    return _stand(budget, plan, period, now_ms, used=used, days=days, burn_down=burn_down)


def _stand(
    budget: Budget,
    plan: Plan | None,
    period: Period,
    now_ms: int,
    *,
    used: Quantities,
    days: Mapping[int, Quantities],
    burn_down: Sequence[tuple[int, Decimal]],
) -> BudgetState:
    today_ms = now_ms - now_ms % _DAY_MS
    # Days before the first use say nothing about those to come.
    first = min((day for day in days if day < today_ms), default=today_ms)
    whole = range(max(first, today_ms - DAYS * _DAY_MS), today_ms, _DAY_MS)
    left = Fraction(period.end_ms - now_ms, _DAY_MS)
    keys = sorted({key for found in days.values() for key in found})
    ends: list[dict[tuple[str, str], int]] = [{}, {}, {}]
    has_interval = len(whole) >= MIN_DAYS
    for key in keys:
        ahead = forecast([days.get(day, {}).get(key, 0) for day in whole], left)
        so_far = used.get(key, 0)
        has_interval = has_interval and ahead.low is not None
        for end, more in zip(ends, (ahead.low, ahead.expected, ahead.high), strict=True):
            end[key] = so_far + (more if more is not None else ahead.expected)
    low, expected, high = (_worth(budget, plan, end) for end in ends)
    spent = _worth(budget, plan, used)
    return BudgetState(
        budget.name,
        plan.currency if plan else budget.unit,
        period.label,
        period.start_ms,
        period.end_ms,
        budget.amount,
        spent,
        expected,
        low if has_interval else None,
        high if has_interval else None,
        len(whole),
        _exhausted(budget.amount, spent, expected, now_ms, period.end_ms),
        tuple(burn_down),
    )


def _exhausted(
    amount: Decimal, spent: Decimal, expected: Decimal, now_ms: int, end_ms: int
) -> int | None:
    """When the budget is used up at an even pace from now to what is expected at the end."""
    if spent >= amount:
        return now_ms
    if expected <= amount or expected <= spent:
        return None
    share = Fraction(amount - spent) / Fraction(expected - spent)
    return now_ms + int((end_ms - now_ms) * share)


def _quantities(
    budget: Budget, plan: Plan | None, lines: Sequence[tuple[Subject, Mapping[str, int]]]
) -> dict[tuple[str, str], int]:
    if plan is not None:
        found = quantities_of(plan, [one for one in lines if _holds(budget, plan, one[0])])
        return {key: n for key, n in found.items() if budget.account in ("", key[0])}
    total = sum(
        quantities.get(meter, 0)
        for subject, quantities in lines
        if budget.choice.holds(subject)
        for meter in budget.meters
    )
    return {("", ""): total} if total else {}


def _holds(budget: Budget, plan: Plan, subject: Subject) -> bool:
    """The plan says what counts at all; the budget may narrow it."""
    wide = replace(
        budget.choice,
        loopback=plan.choice.loopback,
        unlicensed=plan.choice.unlicensed,
        unattributed=plan.choice.unattributed,
    )
    return wide.holds(subject)


def _worth(budget: Budget, plan: Plan | None, quantities: Quantities) -> Decimal:
    if plan is not None:
        return sum((one.amount for one in charges(plan, quantities)), Decimal(0))
    return round_money(Fraction(sum(quantities.values()), UNITS[budget.unit]), _DIGITS)


def _percent(part: Decimal, whole: Decimal) -> Decimal:
    if not whole:
        return Decimal(100) if part else Decimal(0)
    return round_money(Fraction(part) * 100 / Fraction(whole), 1)
