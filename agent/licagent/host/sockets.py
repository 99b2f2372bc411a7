# SPDX-License-Identifier: Apache-2.0
"""The sockets of a network namespace, ending them, and who holds them.

sock_diag(7) through pyroute2. Ending sockets this way is the fallback for kernels without
bpf_sock_destroy (before 6.5); the packets of a revoked license are dropped by the kernel's
programs in any case. A long-lived caller uses `licagent.host.isolated`, which runs these
functions in a short-lived process: importing pyroute2 costs about 25 MB.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as sockets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from licagent.domain.tables import Protocol
from licagent.host.processes import pids

_SO_COOKIE: Final = 57  # include/uapi/asm-generic/socket.h, since 4.12
_SYS_PIDFD_GETFD: Final = 438  # the same number on every architecture (since 5.6)
_NETLINK_SOCK_DIAG: Final = 4
_NLM_F_REQUEST: Final = 0x01
_NLM_F_ACK: Final = 0x04
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_SOCK_DIAG_BY_FAMILY: Final = 20
_RAW_DIAG: Final = 255  # IPPROTO_RAW: all raw sockets (net/ipv4/raw_diag.c)
_STATES: Final = {
    1: "established",
    2: "syn-sent",
    3: "syn-recv",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "unconnected",
    8: "close-wait",
    9: "last-ack",
    10: "listen",
    11: "closing",
    12: "syn-recv",  # TCP_NEW_SYN_RECV
    13: "bound-inactive",
}
_DIAG_PROTOCOL: Final = {
    Protocol.TCP: sockets.IPPROTO_TCP,
    Protocol.UDP: sockets.IPPROTO_UDP,
    Protocol.SCTP: sockets.IPPROTO_SCTP,
    Protocol.OTHER: _RAW_DIAG,
}
PROTOCOLS: Final = (Protocol.TCP, Protocol.UDP)


class DestroyUnsupported(OSError):
    """This kernel cannot end sockets from outside (CONFIG_INET_DIAG_DESTROY is off)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port; port 0 means none."""

    address: str  # IPv4-mapped addresses stay as they are, ::ffff:a.b.c.d
    port: int

    def __str__(self) -> str:
        """`1.2.3.4:5` or `[::1]:5`."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket as the kernel lists it."""

    family: int  # 4 or 6
    protocol: Protocol  # OTHER: a raw socket
    state: str
    local: Endpoint
    remote: Endpoint
    interface: int  # index it is bound to; 0: any
    uid: int  # owner when it was made
    inode: int  # as in /proc/PID/fd; 0: no process holds it (time-wait, not accepted yet)
    cookie: int  # unique while the host runs (SO_COOKIE)
    cgroup_id: int | None  # v2 cgroup in which it was made (kernels since 5.9)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a socket open."""

    pid: int
    fd: int


def list_sockets(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[int] = (4, 6)
) -> tuple[Socket, ...]:
    """The sockets of the caller's network namespace.

    A protocol that the kernel has no listing for is passed over; see `namespaces.run_inside`
    for other namespaces. Takes about 170 us a socket
    (3,000 sockets: 0.5 s). OSError when the kernel refuses.
    """
    from pyroute2.netlink.diag import (  # type: ignore[import-untyped]
        SS_ALL,
        DiagSocket,
    )

    found: list[Socket] = []
    with DiagSocket() as diag:
        diag.bind()
        for protocol in protocols:
            for family in families:
                if not has_listing(protocol, family):
                    continue
                messages = diag.get_sock_stats(
                    family=_address_family(family),
                    protocol=_DIAG_PROTOCOL[protocol],
                    states=SS_ALL | 1 << 12,
                )
                found.extend(_from_message(message, protocol, family) for message in messages)
    return tuple(found)


def has_listing(protocol: Protocol, family: int) -> bool:
    """Whether this kernel can list the sockets of a protocol (4 or 6 as the family).

    `list_sockets` asks first: DiagSocket has netlink errors switched off, so it takes a
    refusal for an empty list, or waits for ever where the whole family is missing.
    """
    number = _DIAG_PROTOCOL.get(protocol)
    if number is None:
        return False
    # A listing of no states: it ends at once, with the errno of the listing in its end mark.
    request = struct.pack("=BBBxI", _address_family(family), number, 0, 0) + bytes(48)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
    return _answer_errno(header + request) == 0


def destroy(target: Socket) -> bool:
    """End one socket (its holder sees ECONNABORTED); False if it was gone already.

    The cookie makes sure that no other socket with the same addresses is hit. Works in the
    caller's network namespace, for TCP, UDP and raw sockets. Raises DestroyUnsupported;
    PermissionError without CAP_NET_ADMIN.
    """
    from pyroute2.netlink.diag import SOCK_DESTROY, inet_diag_req

    request = inet_diag_req()
    request["sdiag_family"] = _address_family(target.family)
    request["sdiag_protocol"] = _DIAG_PROTOCOL[target.protocol]
    request["idiag_states"] = 0xFFFFFFFF
    request["idiag_sport"] = target.local.port
    request["idiag_dport"] = target.remote.port
    request["idiag_src"] = _words(target.family, target.local.address)
    request["idiag_dst"] = _words(target.family, target.remote.address)
    request["idiag_if"] = target.interface
    request["idiag_cookie"] = target.cookie
    request["header"]["type"] = SOCK_DESTROY
    request["header"]["flags"] = _NLM_F_REQUEST | _NLM_F_ACK
    request["header"]["sequence_number"] = 1
    request.encode()
    # DiagSocket switches netlink errors off (its family byte looks like NLMSG_ERROR), and the
    # error is what matters here: ask on a socket of our own.
    number = _answer_errno(bytes(request.data))
    if number == 0:
        return True
    if number in (errno.ENOENT, errno.ESTALE):
        return False
    if number == errno.EOPNOTSUPP:
        raise DestroyUnsupported(
            number,
            "this kernel cannot end sockets from outside: it was built without "
            "CONFIG_INET_DIAG_DESTROY. Packets of a revoked license are dropped all the same",
        )
    raise OSError(number, f"SOCK_DESTROY {target.local} -> {target.remote}: {os.strerror(number)}")


def holders(inodes: Iterable[int]) -> dict[int, tuple[Holder, ...]]:
    """Which processes hold these sockets (by inode), from /proc/PID/fd.

    One pass over all processes, however many inodes are asked for. An inode is unique in the
    whole host (sockfs is one filesystem), whatever the network namespace.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, list[Holder]] = {}
    if not wanted:
        return {}
    for pid in pids():
        for fd, inode in _socket_fds(pid, wanted):
            found.setdefault(inode, []).append(Holder(pid, fd))
    return {inode: tuple(held) for inode, held in found.items()}


def sockets_of(pid: int) -> dict[int, int]:
    """The sockets a process has open: fd to inode, of every family."""
    return dict(_socket_fds(pid, None))


def cookie_of(pid: int, fd: int) -> int:
    """The cookie of a socket that another process holds.

    pidfd_getfd(2): needs 5.6 and the right to ptrace the process. Raises OSError.
    """
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot look at fd {fd} of {pid}: {os.strerror(number)}")
    finally:
        os.close(pidfd)
    with sockets.socket(fileno=copy) as held:
        return cookie(held)


def cookie(held: sockets.socket) -> int:
    """The cookie of a socket of our own."""
    value: int = struct.unpack("=Q", held.getsockopt(sockets.SOL_SOCKET, _SO_COOKIE, 8))[0]
    return value


def _address_family(family: int) -> int:
    return {4: sockets.AF_INET, 6: sockets.AF_INET6}[family]


def _words(family: int, address: str) -> tuple[int, int, int, int]:
    if family == 4:
        return (int.from_bytes(sockets.inet_pton(sockets.AF_INET, address), "big"), 0, 0, 0)
    first, second, third, fourth = struct.unpack(
        ">4I", sockets.inet_pton(sockets.AF_INET6, address)
    )
    return first, second, third, fourth


def _from_message(message: Any, protocol: Protocol, family: int) -> Socket:
    return Socket(
        family=family,
        protocol=protocol,
        state=_STATES.get(message["idiag_state"], str(message["idiag_state"])),
        local=Endpoint(message["idiag_src"], message["idiag_sport"]),
        remote=Endpoint(message["idiag_dst"], message["idiag_dport"]),
        interface=message["idiag_if"],
        uid=message["idiag_uid"],
        inode=message["idiag_inode"],
        cookie=message["idiag_cookie"],
        cgroup_id=message.get_attr("INET_DIAG_CGROUP_ID"),
    )


def _answer_errno(request: bytes) -> int:
    """Send one netlink request and return the errno of its answer, 0 for success."""
    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(5)
        link.send(request)
        answer = link.recv(8192)
    _length, kind, _flags, _sequence, _port = struct.unpack_from("=IHHII", answer)
    if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
        return 0
    code: int = struct.unpack_from("=i", answer, 16)[0]
    return -code


def _socket_fds(pid: int, wanted: dict[str, int] | None) -> Iterator[tuple[int, int]]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # ended, or not ours to look at
        return
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if not target.startswith("socket:["):
            continue
        if wanted is None:
            yield int(name), int(target[8:-1])
        elif target in wanted:
            yield int(name), wanted[target]
