# SPDX-License-Identifier: Apache-2.0
"""What a process may use, resource by resource, and how it gets what it may not.

A policy has up to 100,000 bindings. Nothing but the worth of licenses is asked of the kernel
thread, a portion at a time, for a revocation waits there; all else is looked up in what was
taken from it at the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.decisions import errno_name
from licagent.domain.decision import Subject, judge_rule
from licagent.domain.policy_model import Binding, Resource, ResourceKind
from licagent.domain.reason import Reason, Verdict
from licagent.domain.tables import Rule
from licagent.host.processes import Process

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.licensing.files import Held
    from licagent.daemon.policy.compiled import Compiled
    from licagent.daemon.readers import Readers
    from licagent.daemon.service import OnKernel
    from licagent.domain.conditions import Standing
    from licagent.domain.license import Judgement, LicenseState

Report = dict[str, Any]

_PORTION: Final = 100
"""Licenses judged at once on the kernel thread, at some 0.1 ms each."""
_OF_LICENSES: Final = frozenset(
    {
        Reason.EXPIRED,
        Reason.NOT_YET_VALID,
        Reason.REVOKED,
        Reason.CONDITION,
        Reason.LEASE_LOST,
    }
)
_CANDIDATES_MAX: Final = 10
"""Bindings that are named to somebody whom none of them reaches."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Of whom it is asked, and what was in force then: taken on the kernel thread, at once."""

    process: Process
    subject: Subject
    compiled: Compiled
    held: Mapping[str, Held]  # by license id
    is_enforcing: bool
    is_glass_broken: bool
    policy_dir: Path


@dataclass(frozen=True, slots=True)
class _Found:
    """What the policy says of the asker."""

    rules: Sequence[tuple[Resource, Rule | None]]
    candidates: Mapping[str, Sequence[Binding]]  # for resources of which conditions take all
    licenses: Sequence[str]  # ids of those by which it is judged


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a rule leads to now."""

    resource: Resource
    rule: Rule | None
    reason: Reason
    number: int  # of the license; 0: none


@dataclass(slots=True)
class _Worth:
    """What licenses are worth now. Of those that went meanwhile there is nothing."""

    states: dict[int, LicenseState] = field(default_factory=dict)  # by number
    judgements: dict[int, tuple[str, Judgement]] = field(default_factory=dict)  # by number, with id
    standings: dict[str, Mapping[str, tuple[Standing, ...]]] = field(default_factory=dict)  # by id


async def rows(agent: Agent, asker: Asker, on_kernel: OnKernel, on_reader: Readers) -> list[Report]:
    """A row for each resource that rules decide on, in the order of the policy."""
    found = await on_reader(lambda: _look_up(asker))
    worth = _Worth()
    for start in range(0, len(found.licenses), _PORTION):
        portion = found.licenses[start : start + _PORTION]
        await on_kernel(lambda portion=portion: _judge(agent, portion, worth))  # type: ignore[misc]
    return await on_reader(lambda: _rows(asker, found, worth))


# --- what is looked up


def _look_up(asker: Asker) -> _Found:
    compiled = asker.compiled
    numbers = {entry.name: entry.number for entry in compiled.tables.resources}
    rules = [
        (resource, compiled.index.rule_of(numbers[resource.name], asker.subject))
        for resource in compiled.policy.resources
        if resource.kind in (ResourceKind.NETWORK, ResourceKind.SERVICE)
    ]
    ids = {held.license.number: jti for jti, held in asker.held.items()}
    bare = {resource.name for resource, rule in rules if rule and not rule.licenses}
    candidates = _candidates(asker, bare)
    wanted = dict.fromkeys(
        ids[number]
        for _resource, rule in rules
        if rule
        for number in rule.licenses
        if number in ids
    )
    wanted.update((each.license, None) for group in candidates.values() for each in group)
    return _Found(rules, candidates, tuple(wanted))


def _candidates(asker: Asker, names: Collection[str]) -> dict[str, list[Binding]]:
    """For each of the resources `names`, the first bindings whose license is for it."""
    found: dict[str, list[Binding]] = {name: [] for name in names}
    unfilled = set(names)
    # What each license may still add: less and less, so that one pass is short although each of
    # 100,000 bindings may reach thousands of resources.
    left: dict[str, set[str]] = {}
    for binding in asker.compiled.policy.bindings:
        if not unfilled:
            break
        held = asker.held.get(binding.license)
        if held is None:
            continue
        if binding.license not in left:
            left[binding.license] = {each.resource for each in held.license.entitlements}
        rights = left[binding.license]
        if binding.resources is None:
            rights &= unfilled
            reached = rights
        else:
            reached = {each for each in binding.resources if each in rights and each in unfilled}
        for name in reached:
            found[name].append(binding)
            if len(found[name]) == _CANDIDATES_MAX:
                unfilled.discard(name)
    return found


def _judge(agent: Agent, ids: Sequence[str], worth: _Worth) -> None:
    """What these licenses are worth. On the kernel thread."""
    licensing = agent.licensing
    for jti in ids:
        held = licensing.held.get(jti)
        if held is None:
            continue
        judgement = licensing.judge(held.license)
        worth.states[held.license.number] = judgement.state
        worth.judgements[held.license.number] = jti, judgement
        worth.standings[jti] = licensing.entitlements(held.license).standings


# --- what is said


def _rows(asker: Asker, found: _Found, worth: _Worth) -> list[Report]:
    answers = [
        _Answer(
            resource, rule, *(judge_rule(rule, worth.states) if rule else (Reason.NO_BINDING, 0))
        )
        for resource, rule in found.rules
    ]
    unbound = {each.resource.name for each in answers if each.reason is Reason.NO_BINDING}
    candidates = {**found.candidates, **_candidates(asker, unbound)}
    return [_row(asker, each, candidates.get(each.resource.name, ()), worth) for each in answers]


def _row(asker: Asker, answer: _Answer, candidates: Sequence[Binding], worth: _Worth) -> Report:
    resource, rule, reason = answer.resource, answer.rule, answer.reason
    license_id, judgement = worth.judgements.get(answer.number, (None, None))
    if reason is Reason.LICENSED:
        verdict = Verdict.ALLOW
    elif not asker.is_enforcing or not resource.enforce:
        verdict = Verdict.SHADOW
    elif asker.is_glass_broken:
        verdict, reason = Verdict.ALLOW, Reason.BREAK_GLASS
    else:
        verdict = Verdict.DENY
    missing: list[str] = []
    how: list[str] = []
    if reason is Reason.NO_BINDING:
        missing, how = _unbound(asker, resource, candidates)
    elif reason is Reason.CONDITION and judgement is None:
        missing, how = _taken(resource, candidates, worth)
    elif reason in _OF_LICENSES and judgement is not None:
        missing, how = [judgement.detail], [judgement.hint]
    return {
        "resource": resource.name,
        "verdict": verdict.name.lower(),
        "reason": reason.name.lower(),
        "errno": errno_name(reason) if verdict is Verdict.DENY else None,
        "license": license_id,
        "binding": rule.binding if rule else None,
        "selectors": list(rule.selectors) if rule else [],
        "rule": rule.number if rule else None,
        "missing": missing,
        "how": how,
    }


def _unbound(
    asker: Asker, resource: Resource, candidates: Sequence[Binding]
) -> tuple[list[str], list[str]]:
    """What is missing, and how to get it, where no binding gives a license."""
    process = asker.process
    missing = [
        f"binding {binding.name} asks for "
        + " and ".join(str(selector) for selector in binding.selectors)
        for binding in candidates
    ]
    who = f"unix:user:{process.user}" if process.user else f"unix:uid:{process.uid}"
    if process.unit:
        who = f"systemd:unit:{process.unit}"
    how = [
        (
            f'add a binding with selectors = ["{who}"] and a license for {resource.name} to '
            f"{asker.policy_dir}, then: licagent policy apply"
        ),
        f"or run the command under a license: licagent run --license ID -- {process.name}",
    ]
    return missing or [f"no binding reaches {resource.name} for anybody"], how


def _taken(
    resource: Resource, candidates: Sequence[Binding], worth: _Worth
) -> tuple[list[str], list[str]]:
    """The same where conditions have taken this right of a license, and left others."""
    missing: list[str] = []
    how: list[str] = []
    for binding in candidates:
        for standing in worth.standings.get(binding.license, {}).get(resource.name, ()):
            if not standing.holds:
                missing.append(f"license {binding.license}: {standing.detail}")
                how.append(standing.hint)
    if not missing:
        missing.append("the license has a limit or a condition that this version cannot hold")
        how.append("see `licagent license list`, then `licagent license show ID`")
    return missing, how
