# SPDX-License-Identifier: Apache-2.0
"""Checks of the host, and the coverage table: which routes are closed here, and by what."""

from __future__ import annotations

import resource as limits
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licagent.daemon.agent import Agent
from licagent.daemon.control import status as control_status
from licagent.daemon.kernel_side import HookReport
from licagent.daemon.metering import status as metering_status
from licagent.host import posture
from licagent.kernel.hook_model import Hook, HookKind
from licagent.kernel.hooks import hook as hook_named
from licagent.kernel.numbers import Fault

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a resource that no hook sees, or none but an LSM hook."""

    name: str
    detail: str
    kernel_needed: str
    closed_by: str = ""
    """The LSM hook that closes it where the kernel has it; it is a route of its own elsewhere."""


_LSM: Final = "5.7 with bpf among its security modules (lsm=... on its command line)"
_NONE: Final = "none: this version has no program for it"

OPEN_ROUTES: Final = (
    Route(
        "AF_PACKET with PACKET_QDISC_BYPASS, AF_XDP",
        "their frames go straight to the driver, past the qdisc; they need CAP_NET_RAW",
        _LSM,
        "lsm_socket_create",
    ),
    Route(
        "AF_VSOCK, other families",
        "no IP hook sees them",
        _LSM,
        "lsm_socket_create",
    ),
    Route(
        "root detaches programs, edits tables or removes pins",
        "it is told within seconds, in status, events and the report to the control plane",
        _LSM,
        "lsm_bpf",
    ),
    Route(
        "SCM_RIGHTS",
        "a connected socket that is passed on keeps its license; `licagent explain` shows for "
        "whom it was made and who holds it. New connections are decided for who makes them",
        _NONE,
    ),
    Route(
        "pidfd_getfd",
        "as SCM_RIGHTS; it needs ptrace rights over the owner",
        _NONE,
    ),
    Route(
        "connected sockets inherited over exec",
        "a connected socket keeps its license when its process runs another program; new "
        "connections are decided for the new program",
        _NONE,
    ),
    Route(
        "TUN, forwarded and virtual-machine packets",
        "packets that no socket here sends; TUN and bridges need CAP_NET_ADMIN, and so do packet "
        "sockets of who runs the host's network (a DHCP client)",
        "none: tc or netfilter on the router",
    ),
)
"""What stays open; docs/reference/hooks.md is made from it, too."""


FAULTS: Final = (
    (
        Fault.TAG_FAILED,
        "sockets without a tag for want of memory: new ones were refused, older ones stay",
    ),
    (Fault.PROCESS_FAILED, "processes that did not fit the table (no executable known)"),
    (Fault.CGROUP_FAILED, "cgroups that did not fit the table"),
    (Fault.COUNTER_SPILLED, "counters that were folded into (0, 0)"),
)


def doctor(agent: Agent) -> Report:
    """Everything worth knowing about this host's fitness."""
    return {"schema_version": 1, "checks": checks(agent), "coverage": coverage(agent)}


def checks(agent: Agent) -> list[Report]:
    """One row a check."""
    config = agent.config
    found = [
        _check(
            "btf",
            Path("/sys/kernel/btf/vmlinux").exists(),
            "the kernel describes its types",
            "without BTF executables are not identified; use a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        _check(
            "errno",
            posture.kernel_version() >= (5, 18),
            "a denied call says which key is missing",
            "before 5.18 programs see EPERM",
        ),
        _check(
            "sock_destroy",
            posture.kernel_version() >= (6, 5),
            "sockets are closed by the kernel's own iterator",
            "before 6.5 they are closed through netlink",
        ),
        _check(
            "hybrid-cgroups",
            posture.kernel_version() >= (5, 15) or str(agent.tree.mount) == "/sys/fs/cgroup",
            f"cgroup v2 at {agent.tree.mount}",
            "cgroup v1 breaks a socket's association before 5.15 (commit 8520e224f547)",
        ),
        _check(
            "clock",
            bool((sync := agent.sync_watch.clock_sync()) and sync.synchronised),
            "the clock is synchronised",
            "run an NTP client: license times are judged by the highest time seen",
        ),
        _check(
            "trust",
            not agent.licensing.trust_problem,
            f"issuer keys are readable in {config.trust_path}",
            agent.licensing.trust_problem,
        ),
        _check("policy", not agent.policy.problem, "the policy is good", agent.policy.problem),
        _check(
            "integrity",
            not agent.self_check.problems,
            "the agent's files and programs are those that were installed",
            f"{'; '.join(agent.self_check.problems)}: install licagent again, then restart it",
        ),
        _check(
            "files",
            limits.getrlimit(limits.RLIMIT_NOFILE)[0] >= 1024,
            "enough file descriptors",
            "raise LimitNOFILE",
        ),
    ]
    found += [_check(*row) for row in control_status.checks(agent)]
    found += [_check(*row) for row in metering_status.checks(agent)]
    if agent.identity is not None:
        found += [_check("selector", False, "", problem) for problem in agent.identity.problems]
    for table in sorted(agent.kernel.identity.full):
        found.append(
            _check(
                "table-full",
                False,
                "",
                f"the table {table} is full: what did not fit is unknown, and refused",
            )
        )
    for fault, text in FAULTS:
        count = agent.kernel.counters.fault(fault)
        found.append(_check(fault.name.lower(), count == 0, f"no {text}", f"{count} {text}"))
    ports = _ephemeral_services(agent)
    if ports:
        found.append(
            _check(
                "service-ports",
                False,
                "",
                f"service ports {ports} lie in net.ipv4.ip_local_port_range: a client may get "
                "one by chance and be refused; move them or reserve them "
                "(net.ipv4.ip_local_reserved_ports)",
            )
        )
    return found


def _check(name: str, ok: bool, good: str, bad: str) -> Report:
    # What is wrong says what to do about it; a hint of its own would repeat it.
    return {"name": name, "ok": ok, "detail": good if ok else bad, "hint": ""}


def _ephemeral_services(agent: Agent) -> str:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return ""
    low, high = (int(word) for word in text.split())
    if agent.policy.compiled is None:
        return ""
    found = [
        f"{each.first}-{each.last}"
        for resource in agent.policy.compiled.policy.resources
        for each in resource.ports
        if each.first <= high and each.last >= low
    ]
    return ", ".join(found)


def coverage(agent: Agent) -> list[Report]:
    """Each hook and what it closes; then what no hook of this kernel closes."""
    states = agent.kernel.hooks()
    rows: list[Report] = []
    for state in states:
        hook = hook_named(state.name)
        rows.append(
            {
                "hook": hook.name,
                "route": hook.closes,
                "loader": state.loader,
                "state": _hook_state(state),
                "detail": _hook_detail(hook, state),
                "kernel_needed": hook.kernel,
            }
        )
    attached = {state.name for state in states if state.attached}
    rows += [
        {
            "hook": None,
            "route": route.name,
            "loader": None,
            "state": "open",
            "detail": route.detail,
            "kernel_needed": route.kernel_needed,
        }
        for route in OPEN_ROUTES
        if route.closed_by not in attached
    ]
    return rows


def _hook_state(state: HookReport) -> str:
    if not state.attached:
        return "open"
    return "partial" if state.error else "closed"


def _hook_detail(hook: Hook, state: HookReport) -> str:
    if not state.attached:
        return f"{hook.without}: {state.error}"
    if state.error and hook.kind is HookKind.INTERFACE:
        return state.error
    if state.error:
        return f"this version's program does not load, an earlier one is at work: {state.error}"
    return ""
