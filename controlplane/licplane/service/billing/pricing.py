# SPDX-License-Identifier: Apache-2.0
"""What usage costs: plans, tiers, included units, minimum. Pure, and exact until it is rounded.

A price is a decimal number for one unit; quantities are whole numbers of the meter's own unit
(nanoseconds, bytes, byte-milliseconds, packets). Amounts are fractions until the end of a line,
where they are rounded once, to the plan's digits. A bill's total is the sum of its rounded lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Final

MINIMUM: Final = "minimum"
"""The item of the line that lifts an account to the plan's minimum."""

_H: Final = 3_600_000
UNITS: Final[Mapping[str, int]] = {
    # of cpu_ns
    "core-second": 10**9,
    "core-minute": 60 * 10**9,
    "core-hour": 3_600 * 10**9,
    # of bytes
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    # of bytes times milliseconds
    "GB-hour": 10**9 * _H,
    "GiB-hour": 2**30 * _H,
    "GB-day": 10**9 * 24 * _H,
    "GiB-day": 2**30 * 24 * _H,
    "GB-month": 10**9 * 720 * _H,  # of 30 days
    "GiB-month": 2**30 * 720 * _H,
    "TB-month": 10**12 * 720 * _H,
    # of packets and processes
    "each": 1,
    "thousand": 10**3,
    "million": 10**6,
}
"""Units that plans, triggers and budgets may name, in the meter's own unit."""
MEASURE: Final[Mapping[str, str]] = {
    "cpu_ns": "core-second",
    "memory_byte_ms": "GiB-hour",
    "stored_byte_ms": "GiB-hour",
    "processes": "each",
    "tx_packets": "each",
    "rx_packets": "each",
}
"""The unit that a meter is shown in; B where it is not here."""
_KINDS_OF_UNITS: Final[Mapping[str, frozenset[str]]] = {
    "cpu_ns": frozenset({"core-second", "core-minute", "core-hour"}),
    "byte_ms": frozenset(name for name in UNITS if name.endswith(("B-hour", "B-day", "B-month"))),
    "count": frozenset({"each", "thousand", "million"}),
    "bytes": frozenset({"B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"}),
}


def units_of(meter: str) -> frozenset[str]:
    """The units that fit a meter."""
    if meter.endswith("_byte_ms"):
        return _KINDS_OF_UNITS["byte_ms"]
    if meter in ("processes", "tx_packets", "rx_packets"):
        return _KINDS_OF_UNITS["count"]
    return _KINDS_OF_UNITS["cpu_ns" if meter == "cpu_ns" else "bytes"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a line of usage is about, as far as plans look at it."""

    license: str = ""
    resource: str = ""
    organization: str = ""
    project: str = ""
    environment: str = ""
    region: str = ""
    host: str = ""
    kind: int = 0
    protocol: int = 0
    loopback: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which usage is meant: patterns with * and ?, any of which must match; none: all."""

    licenses: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # host ids
    loopback: bool = False  # whether traffic of a host with itself counts too
    unlicensed: bool = False  # whether use under no license counts too
    unattributed: bool = False  # whether what no process could be given counts too

    def holds(self, subject: Subject) -> bool:
        """Whether the usage is meant."""
        if not subject.license and not self.unlicensed:
            return False
        if subject.loopback and not self.loopback:
            return False
        if subject.kind >= 4 and not self.unattributed:
            return False
        return all(
            not patterns or any(fnmatchcase(value, one) for one in patterns)
            for patterns, value in (
                (self.licenses, subject.license),
                (self.resources, subject.resource),
                (self.organizations, subject.organization),
                (self.projects, subject.project),
                (self.environments, subject.environment),
                (self.regions, subject.region),
                (self.hosts, subject.host),
            )
        )


EVERYTHING: Final = Choice(loopback=True, unlicensed=True, unattributed=True)


@dataclass(frozen=True, slots=True)
class Tier:
    """A price for the units up to a bound, after the included ones."""

    up_to: Decimal | None  # None: no bound
    price: Decimal  # of one unit


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is charged for: the sum of some meters."""

    name: str
    meters: tuple[str, ...]
    unit: str
    tiers: tuple[Tier, ...]
    included: Decimal = Decimal(0)  # units that cost nothing, for each account and period
    by_volume: bool = False  # all units at the price of the tier that the last one is in
    resources: tuple[str, ...] = ()  # patterns; none: all

    @property
    def divisor(self) -> int:
        """How much of the meter's own unit is one unit."""
        return UNITS[self.unit]

    def quantity_of(self, subject: Subject, quantities: Mapping[str, int]) -> int:
        """What of a line of usage counts for this item."""
        if self.resources and not any(fnmatchcase(subject.resource, one) for one in self.resources):
            return 0
        return sum(quantities.get(meter, 0) for meter in self.meters)


@dataclass(frozen=True, slots=True)
class Plan:
    """How usage is charged for."""

    name: str
    currency: str  # ISO 4217
    items: tuple[Item, ...]
    choice: Choice = field(default_factory=Choice)
    account: str = "license"  # the dimension that bills are split by
    period: str = "month"  # month, week or day; UTC
    digits: int = 2  # of amounts, after the point
    half_up: bool = False  # else halves go to the even digit
    minimum: Decimal = Decimal(0)  # of each account that used something, a period
    close_after_ms: int = 3 * 24 * _H  # periods are closed by themselves that long after their end

    def account_of(self, subject: Subject) -> str:
        """Whose bill a line of usage is on."""
        if self.account == "project":
            return f"{subject.organization}/{subject.project}"
        return str(getattr(subject, self.account))

    def rounded(self, amount: Fraction) -> Decimal:
        """The amount as money."""
        return round_money(amount, self.digits, half_up=self.half_up)


@dataclass(frozen=True, slots=True)
class Step:
    """What a tier came to."""

    units: Fraction
    price: Decimal
    amount: Fraction


@dataclass(frozen=True, slots=True)
class Charge:
    """A line of a bill."""

    account: str
    item: str
    quantity: int  # in the meter's unit
    amount: Decimal
    steps: tuple[Step, ...] = field(default=())


def round_money(amount: Fraction, digits: int, *, half_up: bool = False) -> Decimal:
    """Rounded once, from the exact amount."""
    scale = 10**digits
    scaled = amount * scale
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    double = 2 * rest
    if double > scaled.denominator or (
        double == scaled.denominator and (whole % 2 == 1 or (half_up and amount >= 0))
    ):
        whole += 1
    with localcontext() as context:
        context.prec = 200
        return Decimal(whole).scaleb(-digits)


ROUNDINGS: Final = {"half-even": ROUND_HALF_EVEN, "half-up": ROUND_HALF_UP}


def cost(item: Item, quantity: int) -> tuple[Fraction, tuple[Step, ...]]:
    """What a quantity costs, exactly, and how that came about."""
    units = max(Fraction(0), Fraction(quantity, item.divisor) - Fraction(item.included))
    if item.by_volume:
        for tier in item.tiers:
            if tier.up_to is None or units <= Fraction(tier.up_to):
                amount = units * Fraction(tier.price)
                return amount, (Step(units, tier.price, amount),) if units else ()
    steps: list[Step] = []
    done = Fraction(0)
    for tier in item.tiers:
        end = units if tier.up_to is None else min(units, Fraction(tier.up_to))
        if end > done:
            steps.append(Step(end - done, tier.price, (end - done) * Fraction(tier.price)))
            done = end
    return sum((step.amount for step in steps), Fraction(0)), tuple(steps)


def quantities_of(
    plan: Plan, lines: Iterable[tuple[Subject, Mapping[str, int]]]
) -> dict[tuple[str, str], int]:
    """What of the usage counts for each account and item."""
    found: dict[tuple[str, str], int] = {}
    for subject, quantities in lines:
        if not plan.choice.holds(subject):
            continue
        account = plan.account_of(subject)
        for item in plan.items:
            amount = item.quantity_of(subject, quantities)
            if amount:
                key = (account, item.name)
                found[key] = found.get(key, 0) + amount
    return found


def charges(plan: Plan, quantities: Mapping[tuple[str, str], int]) -> list[Charge]:
    """The bill: a line for each account and item, and one for the minimum where it is missed."""
    items = {item.name: item for item in plan.items}
    found: list[Charge] = []
    totals: dict[str, Decimal] = {}
    for (account, name), quantity in sorted(quantities.items()):
        amount, steps = cost(items[name], quantity)
        rounded = plan.rounded(amount)
        totals[account] = totals.get(account, Decimal(0)) + rounded
        found.append(Charge(account, name, quantity, rounded, steps))
    for account, total in sorted(totals.items()):
        if total < plan.minimum:
            found.append(Charge(account, MINIMUM, 0, plan.minimum - total))
    return found


def differences(
    now: Sequence[Charge], before: Mapping[tuple[str, str], tuple[int, Decimal]]
) -> list[Charge]:
    """What must be added to what was billed, so that it comes to `now`."""
    found: list[Charge] = []
    wanted = {(one.account, one.item): one for one in now}
    for key in sorted({*wanted, *before}):
        one = wanted.get(key)
        quantity, amount = before.get(key, (0, Decimal(0)))
        more = (one.quantity if one else 0) - quantity
        money = (one.amount if one else Decimal(0)) - amount
        if more or money:
            found.append(Charge(key[0], key[1], more, money, one.steps if one else ()))
    return found


def decimal_text(value: Fraction, digits: int = 6) -> str:
    """A number of units for people: rounded, without zeros at its end."""
    text = f"{round_money(value, digits):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
