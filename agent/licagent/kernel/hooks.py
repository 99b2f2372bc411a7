# SPDX-License-Identifier: Apache-2.0
"""Every hook the agent uses: its program, what it closes, and what is lost without it.

The coverage table of `licagent doctor` and docs/reference/hooks.md are made from this.
"""

from __future__ import annotations

from typing import Final

from licagent.kernel.core_hooks import CORE_HOOKS
from licagent.kernel.hook_model import Hook, HookKind

HOOKS: Final[tuple[Hook, ...]] = (
    *CORE_HOOKS,
    Hook(
        name="sched_process_exec",
        object="identity",
        program="licagent_exec",
        kind=HookKind.TRACING,
        closes="executables known by file and content before their first instruction",
        without="unix:path and unix:sha256 selectors match nothing that starts from now on",
        kernel="5.5, with BTF",
    ),
    Hook(
        name="sched_process_fork",
        object="identity",
        program="licagent_fork",
        kind=HookKind.TRACING,
        closes="children that do not exec keep their parent's executable",
        without="forked children have no executable until they exec",
        kernel="5.5, with BTF",
    ),
    Hook(
        name="sched_process_exit",
        object="identity",
        program="licagent_exit",
        kind=HookKind.TRACING,
        closes="a process id that is used again has nothing of its predecessor",
        without="a reused process id keeps the old executable until it execs",
        kernel="5.5, with BTF",
    ),
    Hook(
        name="cgroup_mkdir",
        object="identity",
        program="licagent_cgroup_mkdir",
        kind=HookKind.TRACING,
        closes="units and containers are known from their first moment",
        without="a unit that starts is refused until the daemon has seen its cgroup",
        kernel="5.5, with BTF",
    ),
    Hook(
        name="cgroup_rmdir",
        object="identity",
        program="licagent_cgroup_rmdir",
        kind=HookKind.TRACING,
        closes="nothing stays of a unit that ended",
        without="entries of removed cgroups stay until the policy changes",
        kernel="5.5, with BTF",
    ),
    Hook(
        name="iter_task_seed",
        object="identity",
        program="licagent_seed",
        kind=HookKind.ITERATOR,
        closes="executables of processes that are older than the agent",
        without="older processes match no unix:path or unix:sha256 selector",
        kernel="5.8, with BTF",
    ),
    Hook(
        name="iter_tcp_listen",
        object="sockets",
        program="licagent_listen",
        kind=HookKind.ITERATOR,
        closes="telling accepted connections from outgoing ones when adopting",
        without="accepted connections may be taken for outgoing ones",
        kernel="5.9, with BTF",
    ),
    Hook(
        name="iter_task_file_adopt",
        object="sockets",
        program="licagent_adopt",
        kind=HookKind.ITERATOR,
        closes="sockets that are older than the agent or than the policy",
        without="sockets opened before stay as they were",
        kernel="5.11, with BTF",
    ),
    Hook(
        name="iter_task_file_list",
        object="sockets",
        program="licagent_list",
        kind=HookKind.ITERATOR,
        closes="who holds which tagged socket (status, explain)",
        without="status and explain cannot list sockets",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="iter_tcp_cut",
        object="sockets",
        program="licagent_cut_tcp",
        kind=HookKind.ITERATOR,
        closes="TCP sockets whose license ended are closed, not only silenced",
        without="programs notice by their own time-outs; no bytes pass",
        kernel="6.5, with BTF (bpf_sock_destroy)",
    ),
    Hook(
        name="iter_udp_cut",
        object="sockets",
        program="licagent_cut_udp",
        kind=HookKind.ITERATOR,
        closes="the same for UDP",
        without="programs notice by failing sends; no bytes pass",
        kernel="6.5, with BTF (bpf_sock_destroy)",
    ),
    Hook(
        name="usage_fork",
        object="usage",
        program="licagent_open",
        kind=HookKind.TRACING,
        closes="processes that live and die between two samples are charged to their own unit",
        without="CPU time and storage use come from /proc: estimated",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="usage_exec",
        object="usage",
        program="licagent_segment",
        kind=HookKind.TRACING,
        closes="what a process used before exec belongs to the program it was",
        without="CPU time and storage use are charged to the last program of a process",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="usage_exit",
        object="usage",
        program="licagent_leave",
        kind=HookKind.TRACING,
        closes="processes that ended are counted; threads that an exec ends are charged right",
        without="nobody counts processes; CPU time of such threads is the new program's",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="usage_attach",
        object="usage",
        program="licagent_move",
        kind=HookKind.TRACING,
        closes="what a process used before it changed its cgroup belongs to that one",
        without="CPU time and storage use are charged to the first cgroup of a process",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="usage_free",
        object="usage",
        program="licagent_close",
        kind=HookKind.TRACING,
        closes="the last use of every thread, until it is gone",
        without="CPU time and storage use come from /proc: estimated",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="iter_task_collect",
        object="usage",
        program="licagent_collect",
        kind=HookKind.ITERATOR,
        closes="CPU time, storage use and memory of all threads in one read",
        without="CPU time and storage use come from /proc: estimated",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="usage_settle",
        object="usage",
        program="licagent_settle",
        kind=HookKind.TRACING,
        closes="TCP payload to the last byte, without SYN, FIN and repetitions",
        without="the last bytes of a TCP connection are not in its payload: estimated",
        kernel="5.12, with BTF",
    ),
    Hook(
        name="tc_egress",
        object="interface",
        program="licagent_interface",
        kind=HookKind.INTERFACE,
        closes="AF_PACKET through the qdisc of an interface, by user and cgroup alone",
        without="packet sockets (they need CAP_NET_RAW) reach everything",
        kernel="6.6, with BTF (TCX)",
    ),
)


def _lsm(name: str, object_: str, program: str, closes: str, without: str) -> Hook:
    kind = HookKind.TRACING if name == "guard_exit" else HookKind.LSM
    return Hook(name, object_, program, kind, closes, without, "5.7, with BTF and lsm=...,bpf")


LSM_HOOKS: Final[tuple[Hook, ...]] = (
    _lsm(
        "lsm_socket_create",
        "families",
        "licagent_socket_create",
        "AF_PACKET, AF_XDP, AF_VSOCK, SMC, RDS, TIPC, Bluetooth and other families",
        "sockets of other families lead around licensed networks",
    ),
    _lsm(
        "guard_exit",
        "guard",
        "licagent_guard_exit",
        "a daemon that is gone locks nobody out",
        "nothing below is protected",
    ),
    _lsm(
        "lsm_bpf",
        "guard",
        "licagent_bpf",
        "detaching our links, giving them another program, or replacing a function (freplace)",
        "root may detach; status and events tell of it within seconds",
    ),
    _lsm(
        "lsm_bpf_map",
        "guard",
        "licagent_bpf_map",
        "writing our tables",
        "root may change what is in force unseen",
    ),
    _lsm(
        "lsm_bpf_prog",
        "guard",
        "licagent_bpf_prog",
        "foreign programs that write our tables from the kernel, or replace a function of ours",
        "root may change what is in force by a program of their own",
    ),
    _lsm(
        "lsm_inode_unlink",
        "guard",
        "licagent_unlink",
        "removing our pins",
        "root may detach by removing pins; status and events tell of it within seconds",
    ),
    _lsm(
        "lsm_inode_rename",
        "guard",
        "licagent_rename",
        "moving our pins away, or another pin over them",
        "root may hide our pins; status and events tell of it within seconds",
    ),
    _lsm(
        "lsm_sb_umount",
        "guard",
        "licagent_umount",
        "unmounting the BPF file system with our pins",
        "root may detach by unmounting; status and events tell of it within seconds",
    ),
    _lsm(
        "lsm_ptrace",
        "guard",
        "licagent_ptrace",
        "taking over the daemon: its memory and its descriptors",
        "root may act as the daemon",
    ),
)
"""Loaded and reported only where the kernel has BPF among its security modules."""

LSM_OBJECTS: Final = ("families", "guard")

CORE_OBJECTS: Final = ("connect", "bind", "socket", "packet")
"""What either loader can make; the others need BTF and libbpf."""

FORMER_HOOKS: Final = ("cgroup_sock_release",)
"""Pinned by earlier versions: what they did is done elsewhere now."""

BTF_OBJECTS: Final = ("identity", "sockets", "usage", "interface")


def hook(name: str) -> Hook:
    """The hook of this name."""
    return next(candidate for candidate in (*HOOKS, *LSM_HOOKS) if candidate.name == name)
