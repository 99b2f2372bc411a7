# SPDX-License-Identifier: Apache-2.0
"""Networks and ports as documents may write them; docs/reference/policy.md describes them."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from licplane.service.texts import shown

PORT_MAX: Final = 65535
_MAPPED: Final = 0xFFFF  # ::ffff:0:0/96, IPv4 in IPv6
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


class NetworkProblem(ValueError):
    """A network or port that the agent would refuse."""


def check_network(text: str) -> None:
    """Raise NetworkProblem unless `text` is a network, an address, or `any`."""
    if text == "any":
        return
    address_text, slash, length_text = text.partition("/")
    try:
        address = ipaddress.ip_address(address_text)
    except ValueError as error:
        raise NetworkProblem(
            f"{shown(text)} is no network (names are not resolved; write 10.0.5.0/24)"
        ) from error
    if getattr(address, "scope_id", None) is not None:
        raise NetworkProblem(f"{shown(text)}: a network has no zone")
    if slash and not _LENGTH.fullmatch(length_text):
        raise NetworkProblem(f"{shown(text)}: after the slash stands the number of network bits")
    width = address.max_prefixlen
    length = int(length_text) if slash else width
    if length > width:
        raise NetworkProblem(
            f"{shown(text)}: an IPv{address.version} network has 0 to {width} bits"
        )
    value = int(address)
    start = value >> (width - length) << (width - length)
    if start != value:
        network = type(address)(start)
        raise NetworkProblem(
            f"{shown(text)} has host bits set (did you mean {network}/{length},"
            f" or {address}/{width} alone?)"
        )
    if width == 128 and length >= 96 and value >> 32 == _MAPPED:
        value, length, width = value & 0xFFFFFFFF, length - 96, 32
    if value == 0 and length == width:
        raise NetworkProblem(
            f"{shown(text)} is no destination: connecting to it reaches the host itself"
        )


def check_ports(text: str) -> None:
    """Raise NetworkProblem unless `text` is a port or a range of ports."""
    match = _PORTS.fullmatch(text)
    if match is None:
        raise NetworkProblem(f"{shown(text)} is no port and no range (write 443 or 8000-8010)")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= PORT_MAX or not last <= PORT_MAX:
        raise NetworkProblem(f"{shown(text)}: ports are 1 to {PORT_MAX}")
    if first > last:
        raise NetworkProblem(f"{shown(text)} runs backwards (did you mean {last}-{first}?)")
