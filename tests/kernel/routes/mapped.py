# SPDX-License-Identifier: Apache-2.0
"""Routes by IPv4-mapped IPv6 addresses, and by IPv4 addresses on IPv6 sockets."""

from __future__ import annotations

import socket
from typing import Final

from tests.kernel.routes import calls
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import route

MAPPED: Final = "::ffff:127.0.0.1"
MAPPED_ZERO: Final = "::ffff:0.0.0.0"
CIDR: Final = "127.0.0.1/32"


@route("tcp4", address=MAPPED, cidr=CIDR)
def mapped_tcp(context: Context) -> None:
    """connect(2) of an IPv6 TCP socket to ::ffff:127.0.0.1."""
    with context.tcp(socket.AF_INET6) as sock:
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", address=MAPPED_ZERO, cidr=CIDR)
def mapped_zero_tcp(context: Context) -> None:
    """connect(2) of an IPv6 TCP socket to ::ffff:0.0.0.0."""
    mapped_tcp(context)


@route("tcp4", address="::", cidr=CIDR, proof={"peer": MAPPED})
def mapped_any_bound_tcp(context: Context) -> None:
    """connect(2) to :: from a socket bound to ::ffff:127.0.0.1 goes to 127.0.0.1, not to ::1."""
    with context.tcp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.bind((MAPPED, 0))
        context.connect(sock)
        context.details["peer"] = sock.getpeername()[0]
        context.exchange(sock)


@route("tcp4", address=MAPPED, cidr=CIDR, network="fresh")
def mapped_fastopen(context: Context) -> None:
    """MSG_FASTOPEN of an IPv6 TCP socket to ::ffff:127.0.0.1."""
    with context.tcp(socket.AF_INET6) as sock:
        with context.at("send"):
            sock.sendto(context.token, socket.MSG_FASTOPEN, context.target)
        context.echo(sock)


@route("udp4", address=MAPPED, cidr=CIDR)
def mapped_udp_sendto(context: Context) -> None:
    """sendto(2) of an IPv6 UDP socket to ::ffff:127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@route("udp4", address=MAPPED_ZERO, cidr=CIDR)
def mapped_zero_udp_sendto(context: Context) -> None:
    """sendto(2) of an IPv6 UDP socket to ::ffff:0.0.0.0."""
    mapped_udp_sendto(context)


@route("udp4", address=MAPPED, cidr=CIDR)
def mapped_udp_connected(context: Context) -> None:
    """connect(2) and send(2) of an IPv6 UDP socket to ::ffff:127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        context.connect(sock)
        context.exchange(sock)


@route("udp4", address="::", cidr=CIDR)
def mapped_any_bound_udp_connected(context: Context) -> None:
    """connect(2) to :: from a UDP socket bound to ::ffff:127.0.0.1 goes to 127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.bind((MAPPED, 0))
        context.connect(sock)
        context.exchange(sock)


@route("udp4", address="::", cidr=CIDR)
def mapped_any_bound_udp_sendto(context: Context) -> None:
    """sendto(2) :: from a UDP socket bound to ::ffff:127.0.0.1 goes to 127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("bind"):
            sock.bind((MAPPED, 0))
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@route("udp4")
def inet_sendto_on_udp6(context: Context) -> None:
    """sendto(2) with a struct sockaddr_in on an IPv6 UDP socket."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("send"):
            calls.sendto(sock, context.token, calls.address4(*context.target))
        context.echo(sock)


@route("udp4")
def inet_connect_on_udp6(context: Context) -> None:
    """connect(2) with a struct sockaddr_in on an IPv6 UDP socket."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("connect"):
            calls.connect(sock, calls.address4(*context.target))
        context.exchange(sock)


@route("udp4")
def inet_sendto_on_connected_udp6(context: Context) -> None:
    """An IPv6 UDP socket connected to a free server; sendto(2) with a struct sockaddr_in."""
    with context.udp(socket.AF_INET6) as sock:
        context.connect(sock, (f"::ffff:{context.address}", context.decoy_port))
        with context.at("send"):
            calls.sendto(sock, context.token, calls.address4(*context.target))


@route("udp4", address=MAPPED, cidr=CIDR)
def mapped_sendmmsg_mixed(context: Context) -> None:
    """One sendmmsg(2): ::1 (free), then ::ffff:127.0.0.1."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("send"):
            messages: list[tuple[bytes, bytes | None]] = [
                (b"decoy", calls.address6("::1", context.decoy_port)),
                (context.token, calls.address6(*context.target)),
            ]
            sent = calls.sendmmsg(sock, messages)
            if sent < len(messages):
                calls.sendmmsg(sock, messages[sent:])
        context.echo(sock)
