# SPDX-License-Identifier: Apache-2.0
"""Who would be refused if this host enforced: the answer of `licagent shadow`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon import history
from licagent.daemon.decisions import rfc3339
from licagent.daemon.shadow.judge import (
    Licenses,
    Now,
    Worth,
    Would,
    judge,
)
from licagent.daemon.shadow.rules import Candidates, RuleFinder
from licagent.daemon.shadow.uses import Use, Uses
from licagent.daemon.shadow.watch import Watched
from licagent.domain.entitlements import refusals
from licagent.domain.license import applicability
from licagent.domain.tables import Rule
from licagent.kernel.numbers import Fault
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled
    from licagent.daemon.readers import Readers
    from licagent.daemon.service import OnKernel
    from licagent.daemon.shadow.watch import ShadowWatch
    from lictoken.claims import License

Report = dict[str, Any]

_PORTION: Final = 100
"""Uses judged at once on the kernel thread, at some 0.1 ms each."""
_TRIES: Final = 5
_RUN_PREFIX: Final = "licagent run --license "


@dataclass(frozen=True, slots=True)
class _Policy:
    """The policy that uses are judged by."""

    compiled: Compiled
    finder: RuleFinder
    licenses_of: Mapping[str, str]  # binding -> license id
    watched: Mapping[str, Watched]


async def shadow(
    agent: Agent,
    watch: ShadowWatch,
    params: Mapping[str, Any],
    *,
    on_kernel: OnKernel,
    on_reader: Readers,
) -> Report:
    """All uses of the log since `since`, judged by the policy in force; most used first."""
    try:
        since = history.moment(params["since"])
    except ValueError as error:
        raise LocalError(
            ErrorCode.INVALID_PARAMS, f"shadow: since: {error}", "write 2026-01-02T03:04:05Z"
        ) from error
    for _try in range(_TRIES):
        at = rfc3339(time.time())
        found = await _judged(agent, watch, since, on_kernel, on_reader)
        if found is not None:
            uses, policy, judged = found
            break
    else:
        raise LocalError(
            ErrorCode.BUSY, "the policy changed while it was looked at", "ask again in a moment"
        )
    rows = await on_reader(lambda: _rows(uses, policy, judged))
    dropped = await on_kernel(lambda: agent.kernel.counters.fault(Fault.EVENT_DROPPED))
    limit = params["limit"]
    log_since = uses.log_since or at
    return {
        "at": at,
        "mode": agent.config.mode,
        "since": since,
        "log_since": log_since,
        "resources": _resources(policy, at, log_since, is_whole=agent.log.first_sequence <= 1),
        "uses": {
            str(would): sum(row["now"]["verdict"] == would for row in rows) for would in Would
        },
        "rows": rows[:limit],
        "left_out": uses.left_out + sum(row["count"] for row in rows[limit:]),
        "events_dropped": dropped + uses.lost + agent.log.lost,
    }


async def _judged(
    agent: Agent, watch: ShadowWatch, since: str | None, on_kernel: OnKernel, on_reader: Readers
) -> tuple[Uses, _Policy, list[tuple[str, Now]]] | None:
    """Every use, the resource it is decided on, and what would become of it.

    None where the policy changed meanwhile.
    """
    watched = dict(await watch.look())
    compiled = agent.policy.compiled
    if compiled is None:
        raise LocalError(
            ErrorCode.NOT_FOUND, "no policy is in force", "see `licagent policy check`"
        )
    # Neither the log nor the look-up of rules is for the kernel thread: a revocation waits there.
    resolved = await on_kernel(lambda: agent.identity_keeper().resolved_paths())
    uses, policy, found = await on_reader(lambda: _read(agent, compiled, resolved, watched, since))
    judged: list[tuple[str, Now]] = []
    numbers = await on_kernel(lambda: _by_number(agent))
    licenses = Licenses(
        numbers,
        lambda license_, resource: _worth(agent, license_, resource),
        lambda rule, resource: _withheld(agent, policy, rule, resource),
    )
    for start in range(0, len(found), _PORTION):
        part = found[start : start + _PORTION]
        judged += await on_kernel(
            lambda part=part: [  # type: ignore[misc]
                (each.resource, judge(each, licenses, policy.finder.asks(each.resource)))
                for each in part
            ]
        )
    now = agent.policy.compiled
    return (uses, policy, judged) if now and now.tables is compiled.tables else None


def _read(
    agent: Agent,
    compiled: Compiled,
    resolved: Mapping[str, str],
    watched: Mapping[str, Watched],
    since: str | None,
) -> tuple[Uses, _Policy, list[Candidates]]:
    uses = Uses()
    uses.take(agent.log.read(), since)
    finder = RuleFinder(compiled.tables, resolved)
    licenses_of = {each.name: each.license for each in compiled.policy.bindings}
    policy = _Policy(compiled, finder, licenses_of, watched)
    return uses, policy, [finder.find(use.actor) for use in uses.most_used()]


def _by_number(agent: Agent) -> dict[int, License]:
    return {held.license.number: held.license for held in agent.licensing.held.values()}


def _worth(agent: Agent, license_: License, resource: str) -> Worth:
    judgement = agent.licensing.judge(license_)
    refused = any(refusals(each) for each in license_.entitlements if each.resource == resource)
    standings = agent.licensing.entitlements(license_).standings
    return Worth(
        judgement.state,
        judgement.detail,
        () if refused else tuple(standings.get(resource, ())),
        is_for_host=next(iter(applicability(license_, agent.licensing.host)), None) is None,
    )


def _withheld(agent: Agent, policy: _Policy, rule: Rule, resource: str) -> list[License]:
    withheld = {jti for jti, of in policy.compiled.tables.withheld if of == resource}
    if not withheld:
        return []
    names = rule.binding.split(", ")
    bound = {policy.licenses_of.get(each, each.removeprefix(_RUN_PREFIX)) for each in names}
    held = agent.licensing.held
    return [held[jti].license for jti in sorted(bound & withheld) if jti in held]


def _with_evidence(use: Use, now: Now, watched: Watched | None, uses: Uses) -> Now:
    """What the rules say does not hold where the same use was counted after they came."""
    if now.verdict is not Would.ALLOW:
        return now
    since = max(watched.rules_since if watched else "", uses.changed_at(now.license or ""))
    if not use.decided_at or use.decided_at <= since:
        return now
    return replace(
        now,
        verdict=Would.UNKNOWN,
        why=f"it was still counted at {use.decided_at}, and the rules are these since {since}",
    )


def _rows(uses: Uses, policy: _Policy, judged: Sequence[tuple[str, Now]]) -> list[Report]:
    return [
        _row(use, _with_evidence(use, now, policy.watched.get(resource), uses))
        for use, (resource, now) in zip(uses.most_used(), judged, strict=True)
    ]


def _row(use: Use, now: Now) -> Report:
    actor = use.actor
    return {
        "resource": actor.resource or None,
        "user": actor.user,
        "uid": actor.uid,
        "gid": actor.gid,
        "executable": actor.executable or actor.name,
        "unit": actor.unit,
        "slice": actor.slice,
        "container": actor.container,
        "cgroup": actor.cgroup,
        "count": use.count,
        "refused": use.refused,
        "first_at": use.first_at,
        "last_at": use.last_at,
        "reason": use.reason,
        "now": {
            "verdict": str(now.verdict),
            "reason": now.reason or None,
            "license": now.license,
            "binding": now.binding,
            "why": now.why or None,
        },
    }


def _resources(policy: _Policy, at: str, log_since: str, *, is_whole: bool) -> Sequence[Report]:
    """The resources that are decided on. No longer watched than the log reaches back."""
    reach_s = float("inf")
    if not is_whole:
        reach_s = (datetime.fromisoformat(at) - datetime.fromisoformat(log_since)).total_seconds()
    modes = {each.name: each.enforce for each in policy.compiled.tables.resources}
    return [
        {
            "name": name,
            "mode": "enforce" if modes.get(name) else "observe",
            "watched_since": each.since,
            "watched_s": max(0, int(min(each.watched_s, reach_s))),
            "rules_since": each.rules_since,
        }
        for name, each in sorted(policy.watched.items())
    ]
