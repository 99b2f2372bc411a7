# SPDX-License-Identifier: Apache-2.0
"""Decides a recorded use again, by the rules in force: would it be allowed if it came now?

Where several rules may decide it, their answer counts only if it is the same of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from licagent.daemon.shadow.rules import Candidates, not_shown
from licagent.domain.conditions import Standing
from licagent.domain.decision import judge_rule
from licagent.domain.license import LicenseState
from licagent.domain.reason import Reason
from licagent.domain.tables import Rule
from lictoken.claims import License
from lictoken.conditions import LABEL


class Would(StrEnum):
    """What would become of a use."""

    ALLOW = "allow"
    DENY = "deny"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Now:
    """What would become of a use, and why."""

    verdict: Would
    reason: str  # of the decision; "" where there is none
    license: str | None = None
    binding: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Worth:
    """What a license is worth for one resource on this host."""

    state: LicenseState
    detail: str = ""
    standings: tuple[Standing, ...] = ()
    """Its conditions for the resource."""
    is_for_host: bool = True

    @property
    def wavers(self) -> tuple[str, ...]:
        """Conditions on what changes by itself, where nothing else stands against it."""
        kinds = [each.kind for each in self.standings if not each.kind.startswith(LABEL)]
        is_open = self.state in (LicenseState.VALID, LicenseState.CONDITION) and self.is_for_host
        others = all(each.holds for each in self.standings if each.kind.startswith(LABEL))
        return tuple(kinds) if is_open and others else ()


@dataclass(frozen=True, slots=True)
class Licenses:
    """The licenses of the host, as `judge` asks for them."""

    by_number: Mapping[int, License]
    worth: Callable[[License, str], Worth]
    withheld: Callable[[Rule, str], Sequence[License]]
    """Licenses that a rule rests on and leaves out, because their conditions do not hold."""


def judge(candidates: Candidates, licenses: Licenses, asks: Sequence[str] = ()) -> Now:
    """What would become of a use now."""
    if not candidates.rules:
        return Now(Would.UNKNOWN, "", why=candidates.why_not)
    found = [_judge_rule(rule, candidates.resource, licenses, asks) for rule in candidates.rules]
    first = found[0]
    if all(each.verdict is first.verdict for each in found):
        return first
    denied = next((each for each in found if each.verdict is not Would.ALLOW), first)
    return Now(
        Would.UNKNOWN,
        denied.reason,
        why=f"{not_shown(candidates.open)}, and it hangs on that: {denied.why}",
    )


def _judge_rule(rule: Rule | None, resource: str, licenses: Licenses, asks: Sequence[str]) -> Now:
    if rule is None:
        why = "; ".join(asks) or f"no binding reaches {resource} for anybody"
        return Now(Would.DENY, Reason.NO_BINDING.name.lower(), why=why)
    worth = {
        number: licenses.worth(licenses.by_number[number], resource)
        for number in rule.licenses
        if number in licenses.by_number
    }
    # Valid for certain: with conditions on what changes by itself it is not.
    steady = {
        number: LicenseState.CONDITION if each.wavers else each.state
        for number, each in worth.items()
    }
    reason, number = judge_rule(rule, steady)
    jti = licenses.by_number[number].jti if number in licenses.by_number else None
    if reason is Reason.LICENSED:
        return Now(Would.ALLOW, "licensed", jti, rule.binding)
    left_out = [
        (each, licenses.worth(each, resource)) for each in licenses.withheld(rule, resource)
    ]
    given = [(licenses.by_number[each], worth[each]) for each in worth]
    for license_, each in (*given, *left_out):
        if each.wavers:
            why = f"license {license_.jti} depends on {', '.join(each.wavers)}, which may change"
            return Now(Would.UNKNOWN, "condition", license_.jti, rule.binding, why)
    why = worth[number].detail if number in worth else ""
    for license_, each in left_out:
        jti = jti or license_.jti
        why = why or next((one.detail for one in each.standings if not one.holds), "")
    if not why and reason is Reason.CONDITION:
        why = "the license has a limit or a condition that this version cannot hold"
    return Now(
        Would.DENY, reason.name.lower(), jti, rule.binding, why or "its license is not on this host"
    )
