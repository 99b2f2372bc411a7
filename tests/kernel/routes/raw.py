# SPDX-License-Identifier: Apache-2.0
"""Routes by raw and ping sockets: the payload travels in packets made by hand."""

from __future__ import annotations

import socket
import struct
import zlib

from tests.kernel.routes import calls, packets
from tests.kernel.routes.addresses import (
    EXPERIMENTAL_PROTOCOL,
    OTHER_LOOPBACK4,
    SOURCE_PORT,
)
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route


def _datagram(context: Context, source: str = "") -> bytes:
    own = source or context.address
    return packets.udp((own, SOURCE_PORT), context.target, context.token)


def _hdrincl4(context: Context) -> socket.socket:
    # IPPROTO_RAW implies IP_HDRINCL (raw(7)).
    return context.make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


@route("udp4")
def raw_hdrincl4(context: Context) -> None:
    """A UDP packet with its IP header, by sendto(2) on an IPPROTO_RAW socket."""
    with _hdrincl4(context) as sock:
        packet = packets.ipv4(context.address, context.address, _datagram(context))
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@route("udp4")
def raw_hdrincl_option4(context: Context) -> None:
    """The same by IP_HDRINCL on a raw UDP socket."""
    with context.make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        with context.at("option"):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        packet = packets.ipv4(context.address, context.address, _datagram(context))
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@route("udp4")
def raw_hdrincl_connected4(context: Context) -> None:
    """The same by connect(2) and send(2)."""
    with _hdrincl4(context) as sock:
        context.connect(sock, (context.address, 0))
        packet = packets.ipv4(context.address, context.address, _datagram(context))
        with context.at("send"):
            sock.send(packet)


@route("udp4")
def raw_hdrincl_mismatch4(context: Context) -> None:
    """sendto(2) names 127.0.0.2, the header inside names the licensed address."""
    with _hdrincl4(context) as sock:
        packet = packets.ipv4(context.address, context.address, _datagram(context))
        with context.at("send"):
            sock.sendto(packet, (OTHER_LOOPBACK4, 0))


@route("udp4")
def raw_unspec_family4(context: Context) -> None:
    """sendto(2) on a raw socket with family AF_UNSPEC in the address."""
    with _hdrincl4(context) as sock:
        packet = packets.ipv4(context.address, context.address, _datagram(context))
        with context.at("send"):
            address = calls.address4(context.address, 0, family=socket.AF_UNSPEC)
            calls.sendto(sock, packet, address)


@route("udp4")
def raw_options4(context: Context) -> None:
    """An IP header with options, so that the ports are not at byte 20."""
    with _hdrincl4(context) as sock:
        padding = bytes((1, 1, 1, 1, 1, 1, 1, 0))  # seven no-operations and the end of options
        packet = packets.ipv4(context.address, context.address, _datagram(context), options=padding)
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@pair("udp")
def raw_udp(context: Context, family: int) -> None:
    """A raw UDP socket: the kernel writes the IP header."""
    with context.make(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock, context.at("send"):
        sock.sendto(_datagram(context), (context.address, 0))


@pair("udp")
def raw_udp_connected(context: Context, family: int) -> None:
    """A raw UDP socket, connected; connect(2) on a raw socket passes no hook."""
    with context.make(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        context.connect(sock, (context.address, 0))
        with context.at("send"):
            sock.send(_datagram(context))


@pair("other")
def raw_other(context: Context, family: int) -> None:
    """A raw socket of an IP protocol that has no ports (253)."""
    with context.make(family, socket.SOCK_RAW, EXPERIMENTAL_PROTOCOL) as sock, context.at("send"):
        sock.sendto(context.token, (context.address, 0))


@route("udp6")
def raw_hdrincl6(context: Context) -> None:
    """A UDP packet with its IPv6 header (IPV6_HDRINCL)."""
    with context.make(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        packet = packets.ipv6(context.address, context.address, _datagram(context))
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@route("udp6")
def raw_extension6(context: Context) -> None:
    """The same behind a destination options header, so that UDP is not the next header."""
    with context.make(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        inner = packets.destination_options(socket.IPPROTO_UDP, _datagram(context))
        packet = packets.ipv6(
            context.address, context.address, inner, next_header=socket.IPPROTO_DSTOPTS
        )
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@route("udp6")
def udp_extension6(context: Context) -> None:
    """A UDP socket with IPV6_DSTOPTS set, so that the kernel itself adds the header."""
    with context.udp(socket.AF_INET6) as sock:
        with context.at("option"):
            header = struct.pack("!BB", 0, 0) + bytes((1, 4, 0, 0, 0, 0))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, header)
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


def _identification(context: Context) -> int:
    """Of this run only: a lone fragment of another waits 30 s to spoil a packet of its number."""
    return zlib.crc32(context.token)


def _pieces4(context: Context) -> list[bytes]:
    datagram, own, number = _datagram(context), context.address, _identification(context) & 0xFFFF
    return [
        packets.ipv4(own, own, datagram[:16], more_fragments=True, identification=number),
        packets.ipv4(own, own, datagram[16:], fragment_offset_bytes=16, identification=number),
    ]


@route("udp4")
def raw_fragments4(context: Context) -> None:
    """Two IP fragments made by hand; the second has no ports."""
    with _hdrincl4(context) as sock, context.at("send"):
        for piece in _pieces4(context):
            sock.sendto(piece, (context.address, 0))


@route("udp4")
def raw_fragments_reversed4(context: Context) -> None:
    """The same with the portless fragment first."""
    with _hdrincl4(context) as sock, context.at("send"):
        for piece in reversed(_pieces4(context)):
            sock.sendto(piece, (context.address, 0))


@route("udp6")
def raw_fragments6(context: Context) -> None:
    """Two IPv6 fragments made by hand."""
    datagram = _datagram(context)
    cuts = ((0, True, datagram[:16]), (16, False, datagram[16:]))
    with context.make(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for offset, more, data in cuts:
            piece = packets.fragment6(
                socket.IPPROTO_UDP,
                offset,
                more=more,
                payload=data,
                identification=_identification(context),
            )
            packet = packets.ipv6(
                context.address, context.address, piece, next_header=socket.IPPROTO_FRAGMENT
            )
            with context.at("send"):
                sock.sendto(packet, (context.address, 0))


def _icmp_protocol(family: int) -> int:
    return socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP


@pair("icmp")
def icmp_raw(context: Context, family: int) -> None:
    """An echo request on a raw ICMP socket."""
    request = packets.echo_request(family, context.token)
    with context.make(family, socket.SOCK_RAW, _icmp_protocol(family)) as sock, context.at("send"):
        sock.sendto(request, (context.address, 0))


@route("icmp4")
def icmp_hdrincl4(context: Context) -> None:
    """An echo request with its IP header."""
    with _hdrincl4(context) as sock:
        message = packets.echo_request(socket.AF_INET, context.token)
        packet = packets.ipv4(
            context.address, context.address, message, protocol=socket.IPPROTO_ICMP
        )
        with context.at("send"):
            sock.sendto(packet, (context.address, 0))


@pair("icmp", network="fresh")
def icmp_ping(context: Context, family: int) -> None:
    """An echo request on a ping socket (SOCK_DGRAM), by sendto(2)."""
    with context.make(family, socket.SOCK_DGRAM, _icmp_protocol(family)) as sock:
        with context.at("send"):
            sock.sendto(packets.echo_request(family, context.token), (context.address, 0))
        context.echo(sock)


@pair("icmp", network="fresh")
def icmp_ping_connected(context: Context, family: int) -> None:
    """An echo request on a connected ping socket."""
    with context.make(family, socket.SOCK_DGRAM, _icmp_protocol(family)) as sock:
        context.connect(sock, (context.address, 0))
        with context.at("send"):
            sock.send(packets.echo_request(family, context.token))
        context.echo(sock)
