# SPDX-License-Identifier: Apache-2.0
"""What questions about licenses are answered with, and who holds them now."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from licagent.daemon.decisions import boottime_to_unix, rfc3339
from licagent.domain.conditions import Standing
from licagent.domain.license import refusals
from licagent.domain.reason import Verdict
from licagent.kernel.events import Counter
from licagent.kernel.numbers import TagKind
from licagent.local.errors import ErrorCode, LocalError
from lictoken.claims import License

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

Report = dict[str, Any]


def holders_by_license(agent: Agent) -> Tally[int]:
    """Live sockets by license number; a socket that several processes hold counts once."""
    return numbered(agent, holders_by_slot(agent))


def holders_by_slot(agent: Agent) -> Tally[int]:
    """The same by slot of the kernel's license table. On any thread: it walks all sockets."""
    seen: set[int] = set()
    found: Tally[int] = Tally()
    for record in agent.kernel.iterators.sockets():
        if not record.tagged or record.cookie in seen:
            continue
        seen.add(record.cookie)
        for half in (record.tag.network, record.tag.service):
            if half.kind == TagKind.LICENSED:
                found[half.slot] += 1
                break
    return found


def numbered(agent: Agent, by_slot: Tally[int]) -> Tally[int]:
    """Slots as the numbers of the licenses in them. On the kernel thread."""
    found: Tally[int] = Tally()
    for slot, count in by_slot.items():
        found[agent.kernel.licenses.number_at(slot)] += count
    return found


def cut_of(agent: Agent, jti: str) -> int:
    """How many of a license's sockets the last cut ended; others were dead before it."""
    table = agent.kernel.licenses
    return len(
        {
            # Not the cookie: a socket that nobody asked for one has none (sock_gen_cookie).
            (
                *(record.protocol, record.is_ipv6, record.source_port, record.destination_port),
                *(*record.source, *record.destination),
            )
            for record in agent.last_cut
            for half in (record.tag.network, record.tag.service)
            if half.kind and agent.records.jti_of(table.number_at(half.slot)) == jti
        }
    )


def license_row(
    agent: Agent,
    license_: License,
    holders: Tally[int] | dict[int, int],
    counters: list[Counter] | None = None,
) -> Report:
    """One license as lists show it."""
    judgement = agent.licensing.judge(license_)
    mine = [each for each in counters or () if each.license == license_.number]
    now = agent.clock.now_ns(time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
    held = agent.licensing.held.get(license_.jti)
    origin = None if held is None else held.origin
    lease_end_ns = 0
    if held is not None and held.managed:
        lease_end_ns = agent.membership.leases.end_of(license_.jti, license_.generation)
    return {
        "id": license_.jti,
        "number": license_.number,
        "state": judgement.state.value,
        "reason": judgement.detail or None,
        "expires_at": rfc3339(license_.expires_at_s),
        "remaining_s": max(0, int(license_.expires_at_s - now)) if judgement.valid else 0,
        "holders": holders.get(license_.number, 0),
        "allowed": sum(each.count for each in mine if each.verdict is Verdict.ALLOW),
        "denied": sum(each.count for each in mine if each.verdict is Verdict.DENY),
        "resources": [entitlement.resource for entitlement in license_.entitlements],
        "origin": origin,
        "lease_end": rfc3339(boottime_to_unix(lease_end_ns)) if lease_end_ns else None,
    }


def license_list(agent: Agent) -> Report:
    """All licenses."""
    holders = holders_by_license(agent)
    counters = agent.kernel.counters.read()
    return {
        "schema_version": 1,
        "licenses": [
            license_row(agent, held.license, holders, counters)
            for held in agent.licensing.held.values()
        ],
    }


def license_show(agent: Agent, jti: str) -> Report:
    """One license, whole. LocalError NOT_FOUND."""
    held = agent.licensing.held.get(jti)
    if held is None:
        raise LocalError(
            ErrorCode.NOT_FOUND,
            f"no license {jti!r} is on this host",
            "list them: licagent license list",
        )
    found = held.license
    holders = holders_by_license(agent)
    statement = agent.licensing.revocation(found)
    judged = agent.licensing.entitlements(found).standings
    compiled = agent.policy.compiled
    bindings = (
        [each.name for each in compiled.policy.bindings if each.license == jti]
        if (compiled)
        else []
    )
    return {
        "schema_version": 1,
        "license": {
            **license_row(agent, found, holders, agent.kernel.counters.read()),
            "generation": found.generation,
            "issuer": found.issuer,
            "kid": found.kid,
            "subject": found.subject,
            "not_before": rfc3339(found.not_before_s),
            "grace_s": found.grace_s,
            "failure_mode": found.failure_mode,
            "scope": {
                "org": found.scope.org,
                "project": found.scope.project,
                "environments": list(found.scope.environments),
                "regions": list(found.scope.regions),
            },
            "hosts": list(found.hosts),
            "selectors": list(found.selectors),
            "bindings": bindings,
            "file": str(held.file) if held.file else None,
            "revoked": (
                {
                    "at": rfc3339(statement.at_s),
                    "by": statement.issuer or statement.by,
                    "reason": statement.reason,
                    "action": statement.action,
                }
                if statement
                else None
            ),
            "entitlements": [
                {
                    "resource": each.resource,
                    "actions": list(each.actions),
                    "limits": [
                        {
                            "meter": limit.meter,
                            "limit": limit.limit,
                            "window": limit.window,
                            "on_exhaustion": limit.on_exhaustion,
                        }
                        for limit in each.limits
                    ],
                    "conditions": [
                        {
                            "kind": condition.kind,
                            "values": list(condition.values),
                            **_standing(condition.kind, judged.get(each.resource, ())),
                        }
                        for condition in each.conditions
                    ],
                    "refused": [
                        *refusals(each),
                        *(
                            standing.detail
                            for standing in judged.get(each.resource, ())
                            if not standing.holds
                        ),
                    ],
                }
                for each in found.entitlements
            ],
        },
    }


def _standing(kind: str, standings: Iterable[Standing]) -> Report:
    """Whether a condition holds, by what was found."""
    for each in standings:
        if each.kind == kind:
            changes = each.changes_at_s
            return {
                "holds": each.holds,
                "found": each.found,
                "detail": each.detail or None,
                "hint": each.hint or None,
                "changes_at": rfc3339(changes) if changes is not None else None,
            }
    unknown = "it cannot be judged by this version"
    return {"holds": False, "found": None, "detail": unknown, "hint": None, "changes_at": None}
