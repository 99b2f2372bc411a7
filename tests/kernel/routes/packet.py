# SPDX-License-Identifier: Apache-2.0
"""Routes below IP: AF_PACKET and TUN. No cgroup hook sees them; tc sees what passes a qdisc."""

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
THROUGH_QDISC: Final = "AF_PACKET through the qdisc"
PAST_QDISC: Final = "AF_PACKET with PACKET_QDISC_BYPASS"
"""As the coverage table names them."""

TUNSETIFF: Final = 0x400454CA
IFF_TUN_NO_PI: Final = 0x1001


def _packet(context: Context, source: str) -> tuple[int, bytes]:
    datagram = packets.udp((source, SOURCE_PORT), context.target, context.token)
    if ":" in source:
        return packets.ETHERTYPE6, packets.ipv6(source, context.address, datagram)
    return packets.ETHERTYPE4, packets.ipv4(source, context.address, datagram)


def _fragments(context: Context, source: str) -> list[bytes]:
    datagram = packets.udp((source, SOURCE_PORT), context.target, context.token)
    return [
        packets.ipv4(source, context.address, datagram[:8], more_fragments=True),
        packets.ipv4(source, context.address, datagram[8:], fragment_offset_bytes=8),
    ]


def _send(
    context: Context,
    link: str,
    ethertype: int,
    packet: bytes,
    *,
    bypass: bool = False,
    protocol: int = 0,
) -> None:
    ends = (NO_MAC, NO_MAC) if link == "lo" else (SERVER_MAC, CLIENT_MAC)
    with context.make(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        if bypass:
            with context.at("option"):
                sock.setsockopt(SOL_PACKET, calls.PACKET_QDISC_BYPASS, 1)
        with context.at("send"):
            sock.bind((link, protocol))
            sock.send(packets.ethernet(*ends, ethertype, packet))


def _send_frame(
    context: Context,
    source: str,
    link: str,
    *,
    bypass: bool = False,
    protocol: int = 0,
    vlan_tags: int = 0,
) -> None:
    ethertype, packet = _packet(context, source)
    for _ in range(vlan_tags):
        packet = struct.pack("!HH", 0, ethertype) + packet  # priority 0, VLAN 0
        ethertype = packets.ETHERTYPE_VLAN
    _send(context, link, ethertype, packet, bypass=bypass, protocol=protocol)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
def packet_raw4(context: Context) -> None:
    """A whole Ethernet frame on an AF_PACKET socket."""
    _send_frame(context, CLIENT4, CLIENT_LINK)


@route("udp6", network="veth", open_as=THROUGH_QDISC)
def packet_raw6(context: Context) -> None:
    """A whole Ethernet frame with IPv6 in it on an AF_PACKET socket."""
    _send_frame(context, CLIENT6, CLIENT_LINK)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
def packet_vlan4(context: Context) -> None:
    """A frame with two VLAN tags that name no VLAN: the receiver takes them off."""
    _send_frame(context, CLIENT4, CLIENT_LINK, vlan_tags=2)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
def packet_many_vlans4(context: Context) -> None:
    """A frame with more VLAN tags than anybody looks behind."""
    _send_frame(context, CLIENT4, CLIENT_LINK, vlan_tags=20)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
def packet_other_protocol4(context: Context) -> None:
    """A frame with IPv4 in it, on a socket that says it sends ARP."""
    _send_frame(context, CLIENT4, CLIENT_LINK, protocol=packets.ETHERTYPE_ARP)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
def packet_fragments4(context: Context) -> None:
    """A datagram in two fragments, each a frame: the second has no port in it."""
    for fragment in _fragments(context, CLIENT4):
        _send(context, CLIENT_LINK, packets.ETHERTYPE4, fragment)


@route("udp4", network="veth", open_as=PAST_QDISC)
def packet_bypass4(context: Context) -> None:
    """The same with PACKET_QDISC_BYPASS, which skips tc as well."""
    _send_frame(context, CLIENT4, CLIENT_LINK, bypass=True)


@route("udp4", network="fresh", address=FRESH4, open_as=THROUGH_QDISC)
def packet_loopback4(context: Context) -> None:
    """A frame on loopback."""
    _send_frame(context, FRESH_SOURCE4, "lo")


@route("udp4", network="fresh", address=FRESH4, open_as=PAST_QDISC)
def packet_loopback_bypass4(context: Context) -> None:
    """A frame on loopback with PACKET_QDISC_BYPASS."""
    _send_frame(context, FRESH_SOURCE4, "lo", bypass=True)


@route("udp4", network="veth", open_as=THROUGH_QDISC)
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
