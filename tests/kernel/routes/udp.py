# SPDX-License-Identifier: Apache-2.0
"""Routes over UDP and UDP-Lite."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from tests.kernel.routes import calls
from tests.kernel.routes.addresses import OTHER_LOOPBACK4
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route

IPPROTO_UDPLITE: Final = 136
IP_PKTINFO: Final = 8
ZERO4: Final = "0.0.0.0"


def raw_address(family: int, target: tuple[str, int]) -> bytes:
    """The target as bytes, for calls past Python's address handling."""
    make = calls.address6 if family == socket.AF_INET6 else calls.address4
    return make(*target)


@pair("udp")
def udp_sendto(context: Context, family: int) -> None:
    """sendto(2) on an unconnected socket."""
    with context.udp(family) as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udp")
def udp_sendmsg(context: Context, family: int) -> None:
    """sendmsg(2) on an unconnected socket."""
    with context.udp(family) as sock:
        with context.at("send"):
            sock.sendmsg([context.token], [], 0, context.target)
        context.echo(sock)


@pair("udp")
def udp_sendmmsg(context: Context, family: int) -> None:
    """sendmmsg(2) on an unconnected socket, the free destination first."""
    with context.udp(family) as sock:
        with context.at("send"):
            messages: list[tuple[bytes, bytes | None]] = [
                (b"decoy", raw_address(family, context.decoy)),
                (context.token, raw_address(family, context.target)),
            ]
            sent = calls.sendmmsg(sock, messages)
            if sent < len(messages):  # the errno of a later message is lost: ask again
                calls.sendmmsg(sock, messages[sent:])
        context.echo(sock)


@pair("udp")
def udp_connected_send(context: Context, family: int) -> None:
    """connect(2) and send(2)."""
    with context.udp(family) as sock:
        context.connect(sock)
        context.exchange(sock)


@pair("udp")
def udp_connected_sendmsg(context: Context, family: int) -> None:
    """connect(2) and sendmsg(2) with no address."""
    with context.udp(family) as sock:
        context.connect(sock)
        with context.at("send"):
            sock.sendmsg([context.token])
        context.echo(sock)


@pair("udp")
def udp_connected_sendmmsg(context: Context, family: int) -> None:
    """connect(2) and sendmmsg(2) with no address."""
    with context.udp(family) as sock:
        context.connect(sock)
        with context.at("send"):
            calls.sendmmsg(sock, [(context.token, None)])
        context.echo(sock)


@route("udp4")
def udp_connected_write4(context: Context) -> None:
    """connect(2) and write(2)."""
    with context.udp() as sock:
        context.connect(sock)
        with context.at("send"):
            os.write(sock.fileno(), context.token)
        context.echo(sock)


@pair("udp")
def udp_connected_sendto_same(context: Context, family: int) -> None:
    """connect(2) and sendto(2) to the same address."""
    with context.udp(family) as sock:
        context.connect(sock)
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udp")
def udp_connected_sendto_other(context: Context, family: int) -> None:
    """Connected to a free server, then sendto(2) the licensed one."""
    with context.udp(family) as sock:
        context.connect(sock, context.decoy)
        context.exchange_decoy(sock)
        with context.at("send"):
            sock.sendto(context.token, context.target)


@pair("udp")
def udp_connected_sendmmsg_other(context: Context, family: int) -> None:
    """Connected to a free server, then one sendmmsg(2) to both."""
    with context.udp(family) as sock:
        context.connect(sock, context.decoy)
        with context.at("send"):
            messages = [(b"decoy", None), (context.token, raw_address(family, context.target))]
            sent = calls.sendmmsg(sock, messages)
            if sent < len(messages):
                calls.sendmmsg(sock, messages[sent:])


@pair("udp")
def udp_after_decoy(context: Context, family: int) -> None:
    """An unconnected socket that sent to a free server first."""
    with context.udp(family) as sock:
        with context.at("decoy"):
            sock.sendto(b"decoy", context.decoy)
        context.echo(sock, b"decoy")
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udp")
def udp_unspec_again(context: Context, family: int) -> None:
    """Connect to a free server, connect(AF_UNSPEC), connect to the licensed one."""
    with context.udp(family) as sock:
        context.connect(sock, context.decoy)
        context.exchange_decoy(sock)
        with context.at("disconnect"):
            calls.disconnect(sock)
        context.connect(sock)
        context.exchange(sock)


@pair("udp")
def udp_unspec_sendto(context: Context, family: int) -> None:
    """Connect to a free server, connect(AF_UNSPEC), sendto(2) the licensed one."""
    with context.udp(family) as sock:
        context.connect(sock, context.decoy)
        context.exchange_decoy(sock)
        with context.at("disconnect"):
            calls.disconnect(sock)
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udp")
def udp_reconnect(context: Context, family: int) -> None:
    """Connect to a free server, then to the licensed one with nothing between."""
    with context.udp(family) as sock:
        context.connect(sock, context.decoy)
        context.exchange_decoy(sock)
        context.connect(sock)
        context.exchange(sock)


@route("udp4")
def udp_unspec_family4(context: Context) -> None:
    """sendto(2) with family AF_UNSPEC in the address, which udp_sendmsg takes for AF_INET."""
    with context.udp() as sock:
        with context.at("send"):
            address = calls.address4(*context.target, family=socket.AF_UNSPEC)
            calls.sendto(sock, context.token, address)
        context.echo(sock)


@route("udp4", address=ZERO4, cidr="127.0.0.1/32")
def udp_zero_sendto4(context: Context) -> None:
    """sendto(2) 0.0.0.0, which is this host."""
    udp_sendto(context, socket.AF_INET)


@route("udp6", address="::", cidr="::1/128")
def udp_zero_sendto6(context: Context) -> None:
    """sendto(2) ::, which is this host."""
    udp_sendto(context, socket.AF_INET6)


@route("udp4", address=ZERO4, cidr="127.0.0.1/32")
def udp_zero_connect4(context: Context) -> None:
    """connect(2) to 0.0.0.0 and send(2)."""
    udp_connected_send(context, socket.AF_INET)


@route("udp6", address="::", cidr="::1/128")
def udp_zero_connect6(context: Context) -> None:
    """connect(2) to :: and send(2)."""
    udp_connected_send(context, socket.AF_INET6)


@route("udp4", address=ZERO4, cidr=f"{OTHER_LOOPBACK4}/32", proof={"peer": OTHER_LOOPBACK4})
def udp_zero_bound_other4(context: Context) -> None:
    """connect(2) to 0.0.0.0 from a socket bound to 127.0.0.2 goes to 127.0.0.2."""
    with context.udp() as sock:
        with context.at("bind"):
            sock.bind((OTHER_LOOPBACK4, 0))
        context.connect(sock)
        context.details["peer"] = sock.getpeername()[0]
        context.exchange(sock)


@route("udp4", address=ZERO4, cidr=f"{OTHER_LOOPBACK4}/32", proof={"peer": OTHER_LOOPBACK4})
def udp_zero_pktinfo4(context: Context) -> None:
    """sendmsg(2) to 0.0.0.0 with IP_PKTINFO source 127.0.0.2 goes to 127.0.0.2."""
    with context.udp() as sock:
        with context.at("send"):
            source = struct.pack("=i4s4s", 0, socket.inet_aton(OTHER_LOOPBACK4), bytes(4))
            control = [(socket.IPPROTO_IP, IP_PKTINFO, source)]
            sock.sendmsg([context.token], control, 0, context.target)
        with context.at("echo"):
            _, peer = sock.recvfrom(65536)
            context.details["peer"] = peer[0]


@pair("udp")
def udp_ephemeral_bind(context: Context, family: int) -> None:
    """bind(2) to port 0 first, then sendto(2)."""
    with context.udp(family) as sock:
        with context.at("bind"):
            sock.bind((context.address, 0))
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udp")
def udp_more(context: Context, family: int) -> None:
    """sendto(2) with MSG_MORE: the datagram leaves with the second call, which has no address."""
    with context.udp(family) as sock:
        half = len(context.token) // 2
        with context.at("send"):
            sock.sendto(context.token[:half], socket.MSG_MORE, context.target)
            sock.send(context.token[half:])
        context.echo(sock)


@pair("udp")
def udp_segmented(context: Context, family: int) -> None:
    """sendto(2) with UDP_SEGMENT: one packet for the hooks, several on the wire."""
    with context.udp(family) as sock:
        with context.at("option"):
            sock.setsockopt(socket.IPPROTO_UDP, calls.UDP_SEGMENT, len(context.token))
        with context.at("send"):
            sock.sendto(context.token * 3, context.target)
        context.echo(sock)


@pair("udp", network="veth")
def udp_fragmented(context: Context, family: int) -> None:
    """A datagram larger than the MTU: later fragments have no ports."""
    with context.udp(family) as sock:
        with context.at("send"):
            sock.sendto(bytes(4000) + context.token, context.target)
        context.echo(sock)


@pair("udplite")
def udplite_sendto(context: Context, family: int) -> None:
    """sendto(2) on a UDP-Lite socket."""
    with context.make(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("udplite")
def udplite_connected(context: Context, family: int) -> None:
    """connect(2) and send(2) on a UDP-Lite socket."""
    with context.make(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sock:
        context.connect(sock)
        context.exchange(sock)
