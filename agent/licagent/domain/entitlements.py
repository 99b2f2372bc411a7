# SPDX-License-Identifier: Apache-2.0
"""Which entitlements of a license count on this host now.

Some never do: this version cannot hold what they demand (`refusals`). Others have conditions,
which hold today and not tomorrow. With none left that counts, the license itself grants nothing
(LicenseState.CONDITION); with some left, the compiled policy leaves the others out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from licagent.domain.conditions import Standing, judge_conditions, supported
from lictoken.claims import Entitlement, License

SUPPORTED_METERS: Final[frozenset[str]] = frozenset()
"""Meters whose limits this version enforces. A limit it cannot hold is never ignored."""


def refusals(entitlement: Entitlement) -> tuple[str, ...]:
    """Why this version cannot honour `entitlement`; empty where it can.

    An entitlement with a limit or a condition that cannot be held is refused as a whole:
    granting it without would give more than the issuer signed.
    """
    limits = [
        f"its limit on {limit.meter} cannot be enforced by this version"
        for limit in entitlement.limits
        if limit.meter not in SUPPORTED_METERS
    ]
    conditions = [
        f"its condition on {condition.kind} cannot be judged by this version"
        for condition in entitlement.conditions
        if not supported(condition)
    ]
    return (*limits, *conditions)


@dataclass(frozen=True, slots=True)
class Entitlements:
    """The entitlements of one license, judged at one moment."""

    standings: Mapping[str, tuple[Standing, ...]]
    """By resource, those with conditions that can be judged."""

    failing: frozenset[str]
    """Resources whose entitlement does not count now, because of a condition."""

    counting: int
    """How many entitlements count now."""

    ends_s: tuple[int | None, ...]
    """When time alone ends each of those that count, in unix seconds; None: never."""

    changes_at_s: int | None
    """When time alone changes the next one, either way, in unix seconds."""

    @property
    def none_left(self) -> bool:
        """Whether conditions leave nothing of the license."""
        return bool(self.failing) and not self.counting

    def why_not(self) -> Standing:
        """The first condition that does not hold; LookupError where all do."""
        return next(self.problems())

    def problems(self) -> Iterator[Standing]:
        """Conditions that do not hold."""
        return (
            each
            for resource in sorted(self.failing)
            for each in self.standings[resource]
            if not each.holds
        )


_UNCONDITIONAL: Final = Entitlements({}, frozenset(), 1, (None,), None)


def has_conditions(license: License) -> bool:
    """Whether what a license grants depends on more than itself."""
    return any(entitlement.conditions for entitlement in license.entitlements)


def judge_entitlements(
    license: License,
    labels: Mapping[str, str],
    facts: Mapping[str, str],
    now_s: float,
    earliest_s: float | None = None,
) -> Entitlements:
    """Judge each entitlement by its conditions, at `now_s` in seconds since 1970 UTC.

    `earliest_s` is the time that it certainly is, where that is in doubt: hours count only when
    they hold at either.
    """
    if not has_conditions(license):
        return _UNCONDITIONAL
    standings: dict[str, tuple[Standing, ...]] = {}
    failing: set[str] = set()
    ends_s: list[int | None] = []
    changes: list[int] = []
    for entitlement in license.entitlements:
        if refusals(entitlement):
            continue
        found = judge_conditions(entitlement, labels, facts, now_s)
        # Only of `now_s`: a moment that counts from `earliest_s` may be past already.
        own = [each.changes_at_s for each in found if each.changes_at_s is not None]
        changes += own
        if earliest_s is not None and earliest_s < now_s:
            early = judge_conditions(entitlement, labels, facts, earliest_s)
            found = tuple(
                one if not one.holds else other for one, other in zip(found, early, strict=True)
            )
        if found:
            standings[entitlement.resource] = found
        if all(each.holds for each in found):
            ends_s.append(min(own, default=None))
        else:
            failing.add(entitlement.resource)
    return Entitlements(
        standings, frozenset(failing), len(ends_s), tuple(ends_s), min(changes, default=None)
    )
