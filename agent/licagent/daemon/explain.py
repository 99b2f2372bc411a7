# SPDX-License-Identifier: Apache-2.0
"""Why a process or socket may do what it does, or not, and what is missing."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from licagent.daemon.agent import Agent
from licagent.daemon.decisions import address_text, boottime_to_unix, errno_name, rfc3339
from licagent.domain.decision import PolicyIndex, Subject, judge_rule
from licagent.domain.policy import Resource, ResourceKind
from licagent.domain.reason import Reason, Verdict
from licagent.domain.tables import Rule
from licagent.host.processes import Process, ProcessGone, describe
from licagent.kernel.enforcement_structs import Half, SocketRecord
from licagent.kernel.numbers import TagKind
from licagent.local.errors import ErrorCode, LocalError

Report = dict[str, Any]

_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp", 255: "other"}

_KIND_VERDICT: Final = {
    TagKind.NONE: "none",
    TagKind.FREE: "none",
    TagKind.LICENSED: "allow",
    TagKind.SHADOW: "shadow",
    TagKind.GLASS: "allow",
    TagKind.DENIED: "cut",
    TagKind.PACKET: "per packet",
}

_DECIDED: Final = frozenset({TagKind.LICENSED, TagKind.SHADOW, TagKind.GLASS, TagKind.DENIED})
_LICENSE_KNOWN: Final = frozenset({TagKind.LICENSED})


def explain(agent: Agent, pid: int | None, socket: str | None) -> Report:
    """Explain a process and its sockets, or one socket. LocalError NOT_FOUND."""
    sockets = agent.kernel.iterators.sockets()
    if pid is not None:
        process = _describe(agent, pid)
        mine = [record for record in sockets if record.holder_pid == pid]
    else:
        mine = [record for record in sockets if _is_wanted(record, str(socket))]
        if not mine:
            raise LocalError(
                ErrorCode.NOT_FOUND,
                f"no process holds the socket {socket}",
                "list sockets: ss -tupen",
            )
        mine = mine[:1]
        process = _describe(agent, mine[0].holder_pid)
    subject = _subject(agent, process)
    return {
        "schema_version": 1,
        "process": {
            "pid": process.pid,
            "name": process.name,
            "executable": process.executable,
            "uid": process.uid,
            "user": process.user,
            "gid": process.gid,
            "unit": process.unit,
            "container": process.container,
            "cgroup": process.cgroup,
            "in_scope": agent.tree.of_process(process.pid) is not None,
        },
        "sockets": [_socket(agent, record) for record in mine],
        "resources": _resources(agent, process, subject) if pid is not None else [],
    }


def _describe(agent: Agent, pid: int) -> Process:
    try:
        return describe(pid, agent.users)
    except ProcessGone as error:
        raise LocalError(
            ErrorCode.NOT_FOUND, str(error), "what it did is in `licagent events --pid`"
        ) from error


def _is_wanted(record: SocketRecord, wanted: str) -> bool:
    if wanted.isdigit():
        return bool(record.cookie == int(wanted))
    return f"{_local(record)}->{_remote(record)}" == wanted


def _local(record: SocketRecord) -> str | None:
    return address_text(record.source, record.source_port, is_ipv6=bool(record.is_ipv6))


def _remote(record: SocketRecord) -> str | None:
    return address_text(record.destination, record.destination_port, is_ipv6=bool(record.is_ipv6))


def _socket(agent: Agent, record: SocketRecord) -> Report:
    tag = record.tag
    half: Half = tag.network if tag.network.kind else tag.service
    kind = TagKind(half.kind)
    rule = _rule_of(agent, record, half) if kind in _DECIDED else None
    number = agent.kernel.licenses.number_at(half.slot) if kind in _LICENSE_KNOWN else 0
    return {
        "cookie": record.cookie,
        "fd": record.fd,
        "family": "ipv6" if record.is_ipv6 else "ipv4",
        "protocol": _PROTOCOLS.get(record.protocol, "other"),
        "local": _local(record),
        "remote": _remote(record),
        "verdict": _KIND_VERDICT[kind],
        "reason": Reason(half.reason).name.lower() if record.tagged else "no_resource",
        "license": agent.records.jti_of(number) if number else None,
        "resource": agent.names.resource(half.resource),
        "rule": rule.number if rule else None,
        "binding": rule.binding if rule else None,
        "selectors": list(rule.selectors) if rule else [],
        "since": (rfc3339(boottime_to_unix(tag.since_s * 1_000_000_000)) if tag.since_s else None),
        "tagged_for_pid": tag.pid or None,
        "kept": bool(tag.kept),
        "tx_bytes": tag.tx_bytes if record.tagged else None,
        "rx_bytes": tag.rx_bytes if record.tagged else None,
    }


def _rule_of(agent: Agent, record: SocketRecord, half: Half) -> Rule | None:
    """The rule by which a tag was decided: it follows from the subject in the tag."""
    if agent.policy.compiled is None:
        return None
    tag = record.tag
    subject = Subject(
        path=tag.path,
        digest=tag.digest,
        scopes=agent.kernel.identity.cgroup(tag.cgroup),
        uid=tag.uid,
        gid=tag.gid,
    )
    return PolicyIndex(agent.policy.compiled.tables).rule_of(half.resource, subject)


def _subject(agent: Agent, process: Process) -> Subject:
    known = agent.kernel.identity.process(process.pid)
    scopes: tuple[int, ...] = ()
    cgroup = agent.tree.of_process(process.pid)
    if cgroup is not None:
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            scopes = agent.kernel.identity.cgroup(agent.tree.id_of(cgroup))
    return Subject(
        path=known.holds(known.path) if known else 0,
        digest=known.holds(known.digest) if known else 0,
        scopes=scopes,
        uid=process.uid,
        gid=process.gid,
    )


def _resources(agent: Agent, process: Process, subject: Subject) -> list[Report]:
    compiled = agent.policy.compiled
    if compiled is None:
        return []
    index = PolicyIndex(compiled.tables)
    licenses = {
        held.license.number: agent.state_of(held.license) for held in agent.licensing.held.values()
    }
    numbers = {entry.name: entry.number for entry in compiled.tables.resources}
    enforcing = agent.config.mode == "enforce"
    rows = []
    for resource in compiled.policy.resources:
        if resource.kind not in (ResourceKind.NETWORK, ResourceKind.SERVICE):
            continue
        rule = index.rule_of(numbers[resource.name], subject)
        if rule is None:
            reason, license_number = Reason.NO_BINDING, 0
        else:
            reason, license_number = judge_rule(rule, licenses)
        if reason is Reason.LICENSED:
            verdict = Verdict.ALLOW
        elif not enforcing or not resource.enforce:
            verdict = Verdict.SHADOW
        elif agent.glass.opening is not None:
            verdict, reason = Verdict.ALLOW, Reason.BREAK_GLASS
        else:
            verdict = Verdict.DENY
        license_id = agent.records.jti_of(license_number) if license_number else None
        rows.append(
            {
                "resource": resource.name,
                "verdict": verdict.name.lower(),
                "reason": reason.name.lower(),
                "errno": errno_name(reason) if verdict is Verdict.DENY else None,
                "license": license_id,
                "binding": rule.binding if rule else None,
                "selectors": list(rule.selectors) if rule else [],
                "rule": rule.number if rule else None,
                **_advice(agent, resource, process, reason, license_id),
            }
        )
    return rows


def _advice(
    agent: Agent, resource: Resource, process: Process, reason: Reason, license_id: str | None
) -> Report:
    """What is missing and how to get it."""
    missing: list[str] = []
    how: list[str] = []
    if reason is Reason.NO_BINDING:
        missing.extend(
            f"binding {binding.name} asks for "
            + " and ".join(str(selector) for selector in binding.selectors)
            for binding in _candidates(agent, resource)
        )
        if not missing:
            missing.append(f"no binding reaches {resource.name} for anybody")
        who = f"unix:user:{process.user}" if process.user else f"unix:uid:{process.uid}"
        if process.unit:
            who = f"systemd:unit:{process.unit}"
        how.append(
            f'add a binding with selectors = ["{who}"] and a license for {resource.name} to '
            f"{agent.config.policy_dir}, then: licagent policy apply"
        )
        how.append(
            f"or run the command under a license: licagent run --license ID -- {process.name}"
        )
    elif reason is Reason.CONDITION and license_id is None:
        # Conditions have taken this right of a license, and left others.
        for binding in _candidates(agent, resource):
            found = agent.licensing.entitlements(agent.licensing.held[binding.license].license)
            for standing in found.standings.get(resource.name, ()):
                if not standing.holds:
                    missing.append(f"license {binding.license}: {standing.detail}")
                    how.append(standing.hint)
        if not missing:
            missing.append("the license has a limit or a condition that this version cannot hold")
            how.append("see `licagent license list`, then `licagent license show ID`")
    elif reason in (
        Reason.EXPIRED,
        Reason.NOT_YET_VALID,
        Reason.REVOKED,
        Reason.CONDITION,
        Reason.LEASE_LOST,
    ):
        held = agent.licensing.held.get(license_id or "")
        if held is not None:
            judgement = agent.licensing.judge(held.license)
            missing.append(judgement.detail)
            how.append(judgement.hint)
        else:
            missing.append(f"license {license_id or 'of the rule'} is not usable here")
            how.append("licagent license list")
    return {"missing": missing, "how": how}


def _candidates(agent: Agent, resource: Resource) -> list[Any]:
    compiled = agent.policy.compiled
    if compiled is None:
        return []
    return [
        binding
        for binding in compiled.policy.bindings
        if (held := agent.licensing.held.get(binding.license)) is not None
        and any(each.resource == resource.name for each in held.license.entitlements)
        and (binding.resources is None or resource.name in binding.resources)
    ][:10]
