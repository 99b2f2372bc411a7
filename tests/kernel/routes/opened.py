# SPDX-License-Identifier: Apache-2.0
"""Routes on a socket that is open already: what reaches the server after something changed.

Each program sends the token, waits at "midway" (a test revokes a license there, say), and sends
`second(token)` by the same route.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from tests.kernel.routes import calls, packets, uring
from tests.kernel.routes.addresses import SOURCE_PORT
from tests.kernel.routes.base import Context
from tests.kernel.routes.descriptors import SENDERS
from tests.kernel.routes.identity import in_child
from tests.kernel.routes.registry import pair, route

NO_ROUTE4: Final = "198.51.100.1"
"""TEST-NET-2: a namespace that has only loopback has no route there."""


def second(token: bytes) -> bytes:
    """The payload that is sent after "midway"."""
    return token + b"/second"


def midway(context: Context) -> None:
    """Let the test change something, and go on with the second payload."""
    context.patience_s = float(context.wait("midway")["patience_s"])
    context.token = second(context.token)


@pair("tcp", rounds=2)
def open_tcp(context: Context, family: int) -> None:
    """An open TCP connection."""
    with context.tcp(family) as sock:
        context.connect(sock)
        context.exchange(sock)
        midway(context)
        context.exchange(sock)


@pair("mptcp", rounds=2)
def open_mptcp(context: Context, family: int) -> None:
    """An open MPTCP connection."""
    with context.make(family, socket.SOCK_STREAM, calls.IPPROTO_MPTCP) as sock:
        context.connect(sock)
        context.exchange(sock)
        midway(context)
        context.exchange(sock)


@pair("udp", rounds=2)
def open_udp_connected(context: Context, family: int) -> None:
    """A connected UDP socket; its sends pass no sendmsg hook."""
    with context.udp(family) as sock:
        context.connect(sock)
        context.exchange(sock)
        midway(context)
        context.exchange(sock)


@pair("udp", rounds=2)
def open_udp_sendto(context: Context, family: int) -> None:
    """An unconnected UDP socket that has sent before."""
    with context.udp(family) as sock:
        for last in (False, True):
            with context.at("send"):
                sock.sendto(context.token, context.target)
            context.echo(sock)
            if not last:
                midway(context)


@pair("udp", rounds=2)
def open_udp_decoy_between(context: Context, family: int) -> None:
    """A connected UDP socket that sent to a free server meanwhile, which rewrites its tag."""
    with context.udp(family) as sock:
        context.connect(sock)
        context.exchange(sock)
        with context.at("decoy"):
            sock.sendto(b"decoy", context.decoy)
        midway(context)
        context.exchange(sock)


@route("udp4", network="fresh", rounds=2)
def open_udp_failed_connect4(context: Context) -> None:
    """A connected UDP socket whose later connect(2) failed: it is connected as before."""
    with context.udp() as sock:
        context.connect(sock)
        context.exchange(sock)
        with context.at("decoy"), contextlib.suppress(OSError):
            sock.connect((NO_ROUTE4, context.port))
        context.details["peer"] = sock.getpeername()[0]
        midway(context)
        context.exchange(sock)


@route("udp4", address="::ffff:127.0.0.1", cidr="127.0.0.1/32", rounds=2)
def open_udp_mapped(context: Context) -> None:
    """A UDP socket connected to an IPv4-mapped address."""
    open_udp_connected(context, socket.AF_INET6)


@route("udp4", rounds=2)
def open_raw4(context: Context) -> None:
    """A raw socket that has sent before."""
    with context.make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for last in (False, True):
            own = (context.address, SOURCE_PORT)
            datagram = packets.udp(own, context.target, context.token)
            with context.at("send"):
                packet = packets.ipv4(context.address, context.address, datagram)
                sock.sendto(packet, (context.address, 0))
            if not last:
                midway(context)


@pair("icmp", network="fresh", rounds=2)
def open_ping(context: Context, family: int) -> None:
    """A connected ping socket that has sent before."""
    six = family == socket.AF_INET6
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with context.make(family, socket.SOCK_DGRAM, protocol) as sock:
        context.connect(sock, (context.address, 0))
        for last in (False, True):
            with context.at("send"):
                sock.send(packets.echo_request(family, context.token))
            context.echo(sock)
            if not last:
                midway(context)


def _uring(context: Context, *, polled: bool) -> None:
    with context.tcp() as sock:
        context.connect(sock)
        with context.at("setup"):
            ring = uring.Ring(polled=polled)
        with ring:
            for last in (False, True):
                with context.at("send"):
                    start = ring.buffer(context.token)
                    size = len(context.token)
                    ring.call(uring.OP_SEND, sock.fileno(), address=start, length=size)
                context.echo(sock)
                if not last:
                    midway(context)


@route("tcp4", rounds=2)
def open_uring4(context: Context) -> None:
    """IORING_OP_SEND on an open connection."""
    _uring(context, polled=False)


@route("tcp4", rounds=2)
def open_uring_polled4(context: Context) -> None:
    """IORING_OP_SEND under SQPOLL on an open connection."""
    _uring(context, polled=True)


@route("tcp4", rounds=2)
def open_fork4(context: Context) -> None:
    """An open connection, used by a child after the change."""
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)
        midway(context)
        in_child(context, "send", sock)


@route("tcp4", rounds=2, needs=("other",))
def open_moved4(context: Context) -> None:
    """An open connection whose process moves to a sibling cgroup at "midway"."""
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)
        context.wait("move", to="other")
        midway(context)
        context.exchange(sock)


@route("tcp4", rounds=2)
def open_setuid4(context: Context) -> None:
    """An open connection whose process changes its user at "midway"."""
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)
        midway(context)
        user = int(context.options.get("become", "65534"))
        with context.at("setuid"):
            os.setresuid(user, user, user)
        context.exchange(sock)


def _register(name: str) -> None:
    def program(context: Context) -> None:
        with context.tcp() as sock:
            context.connect(sock)
            context.exchange(sock)
            midway(context)
            SENDERS[name](context, sock, context.token)
            context.echo(sock)

    program.__doc__ = f"An open connection, then: {SENDERS[name].__doc__}"
    route("tcp4", name=f"open_{name}4", rounds=2)(program)


for _name in SENDERS:
    _register(_name)
