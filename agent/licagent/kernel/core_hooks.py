# SPDX-License-Identifier: Apache-2.0
"""The hooks that decide: programs on cgroups, which either loader can make."""

from __future__ import annotations

from typing import Final

from licagent.kernel.hook_model import Hook, HookKind
from licagent.kernel.libbpf import AttachType


def _cgroup(  # noqa: PLR0917 - the columns of the table below, in its order
    name: str,
    object_: str,
    program: str,
    attach_type: AttachType,
    closes: str,
    without: str,
    kernel: str = "5.10",
) -> Hook:
    return Hook(
        name=name,
        object=object_,
        program=program,
        kind=HookKind.CGROUP,
        closes=closes,
        without=without,
        kernel=kernel,
        attach_type=attach_type,
        required=True,
    )


CORE_HOOKS: Final[tuple[Hook, ...]] = (
    _cgroup(
        "cgroup_connect4",
        "connect",
        "licagent_connect4",
        AttachType.CGROUP_INET4_CONNECT,
        "TCP (Fast Open, MPTCP, io_uring too) and connected UDP over IPv4",
        "IPv4 connections are not licensed",
    ),
    _cgroup(
        "cgroup_connect6",
        "connect",
        "licagent_connect6",
        AttachType.CGROUP_INET6_CONNECT,
        "the same over IPv6, and IPv4-mapped addresses",
        "IPv6 connections are not licensed",
    ),
    _cgroup(
        "cgroup_sendmsg4",
        "connect",
        "licagent_sendmsg4",
        AttachType.CGROUP_UDP4_SENDMSG,
        "UDP with an address (sendto, sendmsg, sendmmsg) over IPv4",
        "UDP is decided packet by packet, without the executable",
    ),
    _cgroup(
        "cgroup_sendmsg6",
        "connect",
        "licagent_sendmsg6",
        AttachType.CGROUP_UDP6_SENDMSG,
        "the same over IPv6",
        "UDP is decided packet by packet, without the executable",
    ),
    _cgroup(
        "cgroup_bind4",
        "bind",
        "licagent_bind4",
        AttachType.CGROUP_INET4_BIND,
        "offering a service on an IPv4 port",
        "services are met by their first packet, without the executable",
    ),
    _cgroup(
        "cgroup_bind6",
        "bind",
        "licagent_bind6",
        AttachType.CGROUP_INET6_BIND,
        "offering a service on an IPv6 port",
        "services are met by their first packet, without the executable",
    ),
    _cgroup(
        "cgroup_post_bind4",
        "bind",
        "licagent_post_bind4",
        AttachType.CGROUP_INET4_POST_BIND,
        "a service port that bind(0) happened to get, IPv4",
        "met by the first packet instead",
    ),
    _cgroup(
        "cgroup_post_bind6",
        "bind",
        "licagent_post_bind6",
        AttachType.CGROUP_INET6_POST_BIND,
        "a service port that bind(0) happened to get, IPv6",
        "met by the first packet instead",
    ),
    _cgroup(
        "cgroup_sock_create",
        "socket",
        "licagent_sock_create",
        AttachType.CGROUP_INET_SOCK_CREATE,
        "raw, ICMP, SCTP and other socket kinds: who made them",
        "their packets are decided by user and cgroup alone",
    ),
    _cgroup(
        "cgroup_egress",
        "packet",
        "licagent_egress",
        AttachType.CGROUP_INET_EGRESS,
        "every outgoing packet: epoch, expiry, raw sockets, untagged sockets; its bytes",
        "open connections outlive their license, and what they send is not metered",
    ),
    _cgroup(
        "cgroup_ingress",
        "packet",
        "licagent_ingress",
        AttachType.CGROUP_INET_INGRESS,
        "every incoming packet: epoch, expiry, service ports taken without bind; its bytes",
        "open connections go on receiving after their license ended, unmetered",
    ),
)
"""All required; `licagent.kernel.hooks` has those that may be missing."""
