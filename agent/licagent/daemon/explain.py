# SPDX-License-Identifier: Apache-2.0
"""Why a process or socket may do what it does, or not, and what is missing.

A process may have a million sockets, and so may the host: they are listed and told on a readers'
thread. The kernel thread is asked only for what others change there, and of few at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.decisions import address_text, boottime_to_unix, rfc3339
from licagent.daemon.explain_resources import Asker, rows
from licagent.domain.decision import Subject
from licagent.domain.reason import Reason
from licagent.host.processes import Process, ProcessGone, describe
from licagent.kernel.enforcement_structs import Half, SocketRecord
from licagent.kernel.numbers import TagKind
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled
    from licagent.daemon.readers import Readers
    from licagent.daemon.service import OnKernel

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

_SOCKETS_MAX: Final = 1000
"""Sockets that are told of a process: some 0.5 MB of JSON, and a few ms of the kernel thread."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A socket that is told, and what its tag stands for."""

    record: SocketRecord
    half: Half
    kind: TagKind
    scopes: tuple[int, ...]  # of the cgroup it was decided for
    license: str | None
    resource: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the kernel thread knows."""

    process: Process
    in_scope: bool
    told: Sequence[_Told]
    compiled: Compiled | None
    asker: Asker | None  # None: there is no policy to ask


async def explain(
    agent: Agent, pid: int | None, socket: str | None, on_kernel: OnKernel, on_reader: Readers
) -> Report:
    """Explain a process and its sockets, or one socket. LocalError NOT_FOUND."""
    records, left_out = await on_reader(lambda: _listed(agent, pid, socket))
    holder = records[0].holder_pid if pid is None else pid
    known = await on_kernel(lambda: _known(agent, holder, records))
    process = known.process
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
            "in_scope": known.in_scope,
        },
        "sockets": await on_reader(lambda: [_socket(each, known.compiled) for each in known.told]),
        "sockets_left_out": left_out,
        "resources": (
            await rows(agent, known.asker, on_kernel, on_reader)
            if pid is not None and known.asker is not None
            else []
        ),
    }


def _listed(
    agent: Agent, pid: int | None, socket: str | None
) -> tuple[Sequence[SocketRecord], int]:
    """The sockets to tell of, and how many more there are. On any thread."""
    sockets = agent.kernel.iterators.sockets()
    if pid is not None:
        mine = [record for record in sockets if record.holder_pid == pid]
        return mine[:_SOCKETS_MAX], max(0, len(mine) - _SOCKETS_MAX)
    for record in sockets:
        if _is_wanted(record, str(socket)):
            return [record], 0
    raise LocalError(
        ErrorCode.NOT_FOUND, f"no process holds the socket {socket}", "list sockets: ss -tupen"
    )


def _is_wanted(record: SocketRecord, wanted: str) -> bool:
    if wanted.isdigit():
        return bool(record.cookie == int(wanted))
    return f"{_local(record)}->{_remote(record)}" == wanted


def _local(record: SocketRecord) -> str | None:
    return address_text(record.source, record.source_port, is_ipv6=bool(record.is_ipv6))


def _remote(record: SocketRecord) -> str | None:
    return address_text(record.destination, record.destination_port, is_ipv6=bool(record.is_ipv6))


# --- on the kernel thread


def _known(agent: Agent, pid: int, records: Sequence[SocketRecord]) -> _Known:
    try:
        process = describe(pid, agent.users)
    except ProcessGone as error:
        raise LocalError(
            ErrorCode.NOT_FOUND, str(error), "what it did is in `licagent events --pid`"
        ) from error
    cgroup = agent.tree.of_process(pid)
    compiled = agent.policy.compiled
    asker = None
    if compiled is not None:
        asker = Asker(
            process=process,
            subject=_subject(agent, process, cgroup),
            compiled=compiled,
            held=agent.licensing.held,
            is_enforcing=agent.config.mode == "enforce",
            is_glass_broken=agent.glass.opening is not None,
            policy_dir=agent.config.policy_dir,
        )
    told = [_told(agent, record) for record in records]
    return _Known(process, cgroup is not None, told, compiled, asker)


def _subject(agent: Agent, process: Process, cgroup: str | None) -> Subject:
    known = agent.kernel.identity.process(process.pid)
    scopes: tuple[int, ...] = ()
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


def _told(agent: Agent, record: SocketRecord) -> _Told:
    tag = record.tag
    half: Half = tag.network if tag.network.kind else tag.service
    kind = TagKind(half.kind)
    number = agent.kernel.licenses.number_at(half.slot) if kind in _LICENSE_KNOWN else 0
    return _Told(
        record,
        half,
        kind,
        agent.kernel.identity.cgroup(tag.cgroup) if kind in _DECIDED else (),
        agent.records.jti_of(number) if number else None,
        agent.names.resource(half.resource),
    )


# --- what is said


def _socket(told: _Told, compiled: Compiled | None) -> Report:
    record, half = told.record, told.half
    tag = record.tag
    rule = None
    if compiled is not None and told.kind in _DECIDED:
        # The rule by which it was decided follows from the subject in the tag.
        subject = Subject(tag.path, tag.digest, told.scopes, tag.uid, tag.gid)
        rule = compiled.index.rule_of(half.resource, subject)
    return {
        "cookie": record.cookie,
        "fd": record.fd,
        "family": "ipv6" if record.is_ipv6 else "ipv4",
        "protocol": _PROTOCOLS.get(record.protocol, "other"),
        "local": _local(record),
        "remote": _remote(record),
        "verdict": _KIND_VERDICT[told.kind],
        "reason": Reason(half.reason).name.lower() if record.tagged else "no_resource",
        "license": told.license,
        "resource": told.resource,
        "rule": rule.number if rule else None,
        "binding": rule.binding if rule else None,
        "selectors": list(rule.selectors) if rule else [],
        "since": (rfc3339(boottime_to_unix(tag.since_s * 1_000_000_000)) if tag.since_s else None),
        "tagged_for_pid": tag.pid or None,
        "kept": bool(tag.kept),
        "tx_bytes": tag.tx_bytes if record.tagged else None,
        "rx_bytes": tag.rx_bytes if record.tagged else None,
    }
