# SPDX-License-Identifier: Apache-2.0
"""What status, license and policy questions are answered with (docs/reference/commands.md)."""

from __future__ import annotations

import os
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon import control_status, metering_status
from licagent.daemon.decisions import boottime_to_unix, rfc3339
from licagent.domain.conditions import Standing
from licagent.domain.config import values
from licagent.domain.license import refusals
from licagent.domain.reason import Verdict
from licagent.host import posture
from licagent.host.posture import kernel_release
from licagent.kernel.events import Counter
from licagent.kernel.hooks import HookKind
from licagent.kernel.hooks import hook as hook_named
from licagent.kernel.layout import Fault, TagKind
from licagent.local.errors import ErrorCode, LocalError
from licapi.version import installed
from lictoken.claims import License

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy_keeper import Compiled

Report = dict[str, Any]

VERSION = installed()


def status(agent: Agent) -> Report:
    """Is this host enforcing, and is all well?"""
    kernel = agent.kernel
    hooks = kernel.hooks()
    counters = kernel.counters.read()
    holders = holders_by_license(agent)
    reasons = reasons_of(agent, hooks)
    compiled = agent.compiled
    reading = agent.reading()
    return {
        "schema_version": 1,
        "version": VERSION,
        "state": state_of(agent, reasons),
        "reasons": reasons,
        "pid": os.getpid(),
        "started_at": rfc3339(agent.started_at),
        "mode": agent.config.mode,
        "policy": {
            "generation": kernel.control.generation,
            "loaded_at": rfc3339(agent.loaded_at) if agent.loaded_at else None,
            "files": [name for name, _ in compiled.texts] if compiled else [],
            **(amounts(compiled) if compiled else {"resources": 0, "bindings": 0, "rules": 0}),
        },
        "licenses": [
            license_row(agent, held.license, holders, counters)
            for held in agent.licensing.held.values()
        ],
        "refused_files": [
            {"file": each.file, "reason": each.reason, "detail": each.detail, "hint": each.hint}
            for each in agent.licensing.refused
        ],
        "kernel": {
            "release": kernel_release(),
            "loader": kernel.report["loader"],
            "load_ns": kernel.report["duration_ns"],
            "programs": [
                {
                    "hook": each.name,
                    "attached": each.attached,
                    "loader": each.loader,
                    "link_id": each.link_id,
                    "program_id": each.program_id,
                }
                for each in hooks
            ],
            "missing": [
                {
                    "hook": each.name,
                    "closes": hook_named(each.name).closes,
                    "consequence": hook_named(each.name).without,
                    "kernel": hook_named(each.name).kernel,
                    "error": each.error,
                }
                for each in hooks
                if not each.attached
            ],
        },
        "counters": [
            {
                "license": agent.records.jti_of(each.license) if each.license else None,
                "resource": agent.names.resource(each.resource),
                "verdict": each.verdict.name.lower(),
                "reason": each.reason.name.lower(),
                "count": each.count,
            }
            for each in counters
        ],
        "events": {
            "emitted": kernel.counters.fault(Fault.EVENT_EMITTED),
            "dropped": kernel.counters.fault(Fault.EVENT_DROPPED),
            "lost_on_disk": agent.log.lost,
        },
        "break_glass": (
            {key: agent.glass[key] for key in ("until", "reason", "by")} if agent.glass else None
        ),
        "clock": {
            "trusted_now": rfc3339(agent.clock.now_ns(reading.boottime_ns) / 1e9),
            "wall_offset_s": round(agent.clock.wall_offset_ns(reading) / 1e9, 3),
            "high_water": rfc3339(agent.clock.high_water_ns / 1e9),
        },
        "control": control_status.control(agent),
        "metering": metering_status.metering(agent),
        "host": {
            "labels": dict(agent.licensing.host.labels),
            "facts": dict(agent.licensing.host.facts),
        },
        "shadow": agent.shadow.rows()[:50],
    }


STATES: Final = ("enforcing", "observing", "degraded", "break-glass")


def state_of(agent: Agent, reasons: list[Report]) -> str:
    """One of `STATES`. `reasons`: those of `reasons_of`."""
    left = agent.glass_left_s()
    if agent.glass is not None and left is not None and left > 0:
        return "break-glass"
    if reasons:
        return "degraded"
    return "enforcing" if agent.config.mode == "enforce" else "observing"


def reasons_of(agent: Agent, hooks: list[Any]) -> list[Report]:
    """Why the host is not well, and what to do; nothing where it is."""
    found = []
    for each in hooks:
        hook = hook_named(each.name)
        # What only a newer kernel has is in the coverage table; all else should be there.
        expected = hook.required or posture.kernel_version() >= posture.kernel_version(hook.kernel)
        if expected and not each.attached:
            found.append(
                _reason(
                    "hook-missing",
                    f"{each.name} is not attached: {each.error}",
                    "restart licagent, or see `licagent doctor` for what this kernel lacks",
                )
            )
        elif expected and each.error and hook.kind is HookKind.INTERFACE:
            found.append(
                _reason(
                    "hook-partial",
                    f"{each.name} is not everywhere: {each.error}",
                    "it is tried again every few seconds; see `licagent doctor`",
                )
            )
        elif expected and each.error:
            found.append(
                _reason(
                    "hook-old",
                    f"{each.name} does not load, an earlier program is still at work: {each.error}",
                    "install licagent again, or see `licagent doctor`",
                )
            )
    found.extend(_settings_reasons(agent))
    found.extend(
        _reason(
            "kernel-changed",
            problem,
            "find out who did it (`licagent events`), then restart licagent",
        )
        for problem in agent.kernel_watch.replaced
    )
    if agent.policy_problem:
        found.append(
            _reason(
                "policy-refused",
                f"the installed policy is refused: {agent.policy_problem}",
                "see `licagent policy check`; the last good policy stays in force",
            )
        )
    if agent.compiled is None:
        left = agent.kernel.control.generation
        what = f"generation {left} of an earlier start goes on" if left else "nothing is enforced"
        found.append(
            _reason(
                "no-policy",
                f"there is no good policy, and none of an earlier start can be read: {what}",
                "mend the installed policy, then: licagent policy apply",
            )
        )
    if agent.licensing.trust_problem:
        found.append(
            _reason(
                "trust-missing",
                f"no license verifies: {agent.licensing.trust_problem}",
                f"put the issuers' keys into {agent.config.trust_path}",
            )
        )
    found.extend(
        _reason("license-refused", f"{each.file}: {each.detail} ({each.reason})", each.hint)
        for each in agent.licensing.refused
    )
    if agent.metrics_problem:
        found.append(
            _reason(
                "metrics-unserved",
                f"metrics are not served: {agent.metrics_problem}",
                "mend metrics_listen, or free the address; it is tried again every few seconds",
            )
        )
    found.extend(control_status.reasons(agent))
    found.extend(metering_status.reasons(agent))
    found.extend(
        _reason(
            "state-damaged",
            f"a damaged file was set aside: {path}",
            "look into it, then remove it",
        )
        for path in agent.state.damaged()
    )
    return found


def _settings_reasons(agent: Agent) -> Iterator[Report]:
    """What is written in agent.toml and is not in force."""
    keeper = agent.settings
    if keeper is not None and keeper.problem:
        yield _reason(
            "settings-refused",
            f"the settings are refused, the last good ones are in force: {keeper.problem}",
            "see `licagent config check`, mend them, then: systemctl reload licagent",
        )
    if keeper is not None and keeper.waiting:
        yield _reason(
            "settings-wait",
            f"changed settings wait for the next start: {', '.join(keeper.waiting)}",
            "systemctl restart licagent; enforcement goes on meanwhile",
        )


def _reason(code: str, message: str, hint: str) -> Report:
    return {"code": code, "message": message, "hint": hint}


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
        lease_end_ns = agent.control.leases.end_of(license_.jti, license_.generation)
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
    compiled = agent.compiled
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


def amounts(compiled: Compiled) -> Report:
    """How large a policy is."""
    return {
        "resources": compiled.amounts[0],
        "bindings": compiled.amounts[1],
        "rules": len(compiled.tables.rules),
    }


def policy_show(agent: Agent) -> Report:
    """The policy in force."""
    compiled = agent.compiled
    if compiled is None:
        raise LocalError(
            ErrorCode.NOT_FOUND, "no policy is in force", "see `licagent policy check`"
        )
    return {
        "schema_version": 1,
        "generation": agent.kernel.control.generation,
        "loaded_at": rfc3339(agent.loaded_at),
        "rules": len(compiled.tables.rules),
        "resources": [
            {
                "name": each.name,
                "kind": each.kind.value,
                "mode": "enforce" if each.enforce else "observe",
                "covers": _covers(each),
                "description": each.description,
                "source": each.source,
            }
            for each in compiled.policy.resources
        ],
        "bindings": [
            {
                "name": each.name,
                "license": each.license,
                "selectors": [str(selector) for selector in each.selectors],
                "resources": list(each.resources or ()),
                "source": each.source,
            }
            for each in compiled.policy.bindings
        ],
    }


def _covers(resource: Any) -> list[str]:
    def ports(ranges: Any) -> str:
        return ",".join(
            "all ports"
            if (each.first, each.last) == (0, 65535)
            else (str(each.first) if each.first == each.last else f"{each.first}-{each.last}")
            for each in ranges
        )

    if resource.destinations:
        return [f"{each.cidr} {ports(each.ports)}" for each in resource.destinations]
    return [ports(resource.ports)] if resource.ports else list(resource.paths)


def settings(agent: Agent) -> list[Report]:
    """The settings in force, written as in agent.toml."""
    return [{"key": key, "value": value} for key, value in values(agent.config).items()]
