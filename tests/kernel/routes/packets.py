# SPDX-License-Identifier: Apache-2.0
"""Packets made by hand: IPv4, IPv6, UDP, ICMP echo, fragments, extension headers."""

from __future__ import annotations

import socket
import struct
from typing import Final

IDENTIFICATION: Final = 0x4C49
ETHERTYPE4: Final = 0x0800
ETHERTYPE6: Final = 0x86DD
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_VLAN: Final = 0x8100
ECHO_REQUEST4: Final = 8
ECHO_REQUEST6: Final = 128


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(
    source: tuple[str, int], destination: tuple[str, int], payload: bytes, *, protocol: int = 17
) -> bytes:
    """A UDP header with its checksum, and the payload."""
    length = 8 + len(payload)
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    ends = socket.inet_pton(family, source[0]) + socket.inet_pton(family, destination[0])
    if family == socket.AF_INET6:
        pseudo = ends + struct.pack("!II", length, protocol)
    else:
        pseudo = ends + struct.pack("!HH", protocol, length)
    ports = struct.pack("!HHH", source[1], destination[1], length)
    total = checksum(pseudo + ports + b"\0\0" + payload) or 0xFFFF
    return ports + struct.pack("!H", total) + payload


def ipv4(
    source: str,
    destination: str,
    payload: bytes,
    *,
    protocol: int = socket.IPPROTO_UDP,
    options: bytes = b"",
    fragment_offset_bytes: int = 0,
    more_fragments: bool = False,
    identification: int = IDENTIFICATION,
) -> bytes:
    """An IPv4 header and the payload; `options` is a multiple of 4 bytes."""
    words = 5 + len(options) // 4
    fragment = fragment_offset_bytes // 8 | (0x2000 if more_fragments else 0)
    total = words * 4 + len(payload)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBB", 0x40 | words, 0, total, identification, fragment, 64, protocol)
    summed = checksum(head + b"\0\0" + ends + options)
    return head + struct.pack("!H", summed) + ends + options + payload


def ipv6(
    source: str, destination: str, payload: bytes, *, next_header: int = socket.IPPROTO_UDP
) -> bytes:
    """An IPv6 header and the payload."""
    head = struct.pack("!IHBB", 0x60000000, len(payload), next_header, 64)
    ends = (socket.inet_pton(socket.AF_INET6, end) for end in (source, destination))
    return head + b"".join(ends) + payload


def destination_options(next_header: int, payload: bytes) -> bytes:
    """An IPv6 destination options header (all padding) in front of the payload."""
    return struct.pack("!BB", next_header, 0) + bytes((1, 4, 0, 0, 0, 0)) + payload


def fragment6(
    next_header: int, offset_bytes: int, *, more: bool, payload: bytes, identification: int
) -> bytes:
    """An IPv6 fragment header in front of a piece of a packet."""
    place = offset_bytes | (1 if more else 0)
    return struct.pack("!BBHI", next_header, 0, place, identification) + payload


def echo_request(family: int, payload: bytes) -> bytes:
    """An ICMP echo request; the kernel writes the checksum of an ICMPv6 one."""
    kind = ECHO_REQUEST6 if family == socket.AF_INET6 else ECHO_REQUEST4
    rest = struct.pack("!HH", IDENTIFICATION, 1) + payload
    summed = checksum(struct.pack("!BBH", kind, 0, 0) + rest)
    return struct.pack("!BBH", kind, 0, summed) + rest


def ethernet(destination: str, source: str, ethertype: int, packet: bytes) -> bytes:
    """An Ethernet frame."""
    ends = (bytes.fromhex(end.replace(":", "")) for end in (destination, source))
    return b"".join(ends) + struct.pack("!H", ethertype) + packet
