# SPDX-License-Identifier: Apache-2.0
"""Routes below IP: AF_PACKET and TUN. No cgroup hook sees them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Final

from tests.kernel.routes import calls, packets
from tests.kernel.routes.addresses import (
    CLIENT4,
    CLIENT6,
    CLIENT_LINK,
    CLIENT_MAC,
    FRESH4,
    FRESH_SOURCE4,
    SERVER_MAC,
    SOURCE_PORT,
)
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import route

SOL_PACKET: Final = 263
NO_MAC: Final = "00:00:00:00:00:00"
TUNSETIFF: Final = 0x400454CA
IFF_TUN_NO_PI: Final = 0x1001


def _packet(context: Context, source: str) -> tuple[int, bytes]:
    datagram = packets.udp((source, SOURCE_PORT), context.target, context.token)
    if ":" in source:
        return packets.ETHERTYPE6, packets.ipv6(source, context.address, datagram)
    return packets.ETHERTYPE4, packets.ipv4(source, context.address, datagram)


def _send_frame(context: Context, source: str, link: str, *, bypass: bool) -> None:
    ethertype, packet = _packet(context, source)
    ends = (NO_MAC, NO_MAC) if link == "lo" else (SERVER_MAC, CLIENT_MAC)
    with context.make(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        if bypass:
            with context.at("option"):
                sock.setsockopt(SOL_PACKET, calls.PACKET_QDISC_BYPASS, 1)
        with context.at("send"):
            sock.bind((link, 0))
            sock.send(packets.ethernet(*ends, ethertype, packet))


@route("udp4", network="veth", open_as="AF_PACKET")
def packet_raw4(context: Context) -> None:
    """A whole Ethernet frame on an AF_PACKET socket."""
    _send_frame(context, CLIENT4, CLIENT_LINK, bypass=False)


@route("udp6", network="veth", open_as="AF_PACKET")
def packet_raw6(context: Context) -> None:
    """A whole Ethernet frame with IPv6 in it on an AF_PACKET socket."""
    _send_frame(context, CLIENT6, CLIENT_LINK, bypass=False)


@route("udp4", network="veth", open_as="AF_PACKET")
def packet_bypass4(context: Context) -> None:
    """The same with PACKET_QDISC_BYPASS, which skips tc as well."""
    _send_frame(context, CLIENT4, CLIENT_LINK, bypass=True)


@route("udp4", network="fresh", address=FRESH4, open_as="AF_PACKET")
def packet_loopback4(context: Context) -> None:
    """A frame on loopback."""
    _send_frame(context, FRESH_SOURCE4, "lo", bypass=False)


@route("udp4", network="fresh", address=FRESH4, open_as="AF_PACKET")
def packet_loopback_bypass4(context: Context) -> None:
    """A frame on loopback with PACKET_QDISC_BYPASS."""
    _send_frame(context, FRESH_SOURCE4, "lo", bypass=True)


@route("udp4", network="veth", open_as="AF_PACKET")
def packet_datagram4(context: Context) -> None:
    """An AF_PACKET socket of type SOCK_DGRAM: the kernel writes the Ethernet header."""
    ethertype, packet = _packet(context, CLIENT4)
    hardware = bytes.fromhex(SERVER_MAC.replace(":", ""))
    with context.make(socket.AF_PACKET, socket.SOCK_DGRAM) as sock, context.at("send"):
        sock.sendto(packet, (CLIENT_LINK, ethertype, 0, 0, hardware))


@route("udp4", network="fresh", address=FRESH4, open_as="TUN")
def tun_inject4(context: Context) -> None:
    """A packet written into a TUN device comes in from outside, as far as the kernel knows."""
    name = "routetun"
    with context.at("setup"):
        device = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with context.at("setup"):
            fcntl.ioctl(device, TUNSETIFF, struct.pack("=16sH22x", name.encode(), IFF_TUN_NO_PI))
            calls.link_up(name)
        with context.at("send"):
            os.write(device, _packet(context, FRESH_SOURCE4)[1])
    finally:
        os.close(device)
