# SPDX-License-Identifier: Apache-2.0
"""The failsafe list: what always passes, so that no policy locks its owner out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from licagent.domain.config import RESOLVERS
from licagent.domain.networks import Claim
from licagent.domain.policy_model import ALL_PROTOCOLS, PORT_PROTOCOLS
from licagent.domain.ports import ALL_PORTS, PortRange
from licagent.domain.tables import FAILSAFE_RESOURCE, Protocol

if TYPE_CHECKING:
    from licagent.domain.config import FailsafeSetting

RESOLVER_FILES: Final = (
    Path("/etc/resolv.conf"),
    # Where systemd-resolved answers on loopback, it asks these.
    Path("/run/systemd/resolve/resolv.conf"),
)
_RESOLVER_FILE_BYTES: Final = 64 * 1024

_PORTLESS: Final = PortRange(0, 0)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class FailsafeEntry:
    """One destination ("out") or port of this host ("in") that always passes."""

    direction: str  # "out" or "in"
    cidr: str | None  # None: every address; always None for "in"
    protocol: Protocol | None  # None: every protocol
    port: int | PortRange | None  # None: every port

    def __post_init__(self) -> None:
        if self.direction not in ("out", "in"):
            raise ValueError(f"direction {self.direction!r} is neither out nor in")
        if self.direction == "in" and self.cidr is not None:
            raise ValueError("inbound failsafe entries have a port and a protocol only")
        if self.port is not None and self.protocol not in (None, *PORT_PROTOCOLS):
            raise ValueError("only tcp, udp and sctp have ports")

    @property
    def ports(self) -> PortRange:
        """The ports as a range."""
        if self.port is None:
            return ALL_PORTS
        return PortRange(self.port, self.port) if isinstance(self.port, int) else self.port

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols; with a port named, only those that have ports."""
        if self.protocol is not None:
            return (self.protocol,)
        return ALL_PROTOCOLS if self.port is None else PORT_PROTOCOLS


def read_resolvers(files: Iterable[Path] = RESOLVER_FILES) -> tuple[str, ...]:
    """Name servers of this host (resolv.conf(5)), each once.

    A file that is missing, and a line that makes no sense, name none.
    """
    found = []
    for file in files:
        try:
            with file.open("rb") as stream:
                text = stream.read(_RESOLVER_FILE_BYTES).decode("utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver":
                continue
            try:
                found.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


def failsafe_entries(
    settings: Iterable[FailsafeSetting], resolvers: Iterable[str]
) -> tuple[FailsafeEntry, ...]:
    """The entries that lines of agent.toml stand for (checked by `licagent.domain.setting_tables`).

    A line whose cidr is RESOLVERS stands for one entry for each of `resolvers`.
    """
    servers = tuple(resolvers)
    entries = []
    for setting in settings:
        protocol = None if setting.protocol == "any" else Protocol[setting.protocol.upper()]
        cidrs: tuple[str | None, ...] = (setting.cidr,)
        if setting.cidr == "any":
            cidrs = (None,)
        elif setting.cidr == RESOLVERS:
            cidrs = servers
        ports: list[PortRange | None] = []
        for text in setting.ports if protocol in (None, *PORT_PROTOCOLS) else ():
            first, _, last = text.partition("-")
            ports.append(PortRange(int(first), int(last or first)))
        entries += [
            FailsafeEntry(setting.direction, cidr, protocol, port)
            for cidr in cidrs
            for port in ports or [None]
        ]
    return tuple(entries)


def network_claims(entries: Iterable[FailsafeEntry]) -> Iterator[Claim]:
    """What the outbound entries exempt; raises ValueError for a cidr that is none."""
    for entry in entries:
        if entry.direction != "out":
            continue
        for family, address, prefix_length in _networks(entry.cidr):
            for protocol in entry.protocols:
                ports = entry.ports if protocol in PORT_PROTOCOLS else _PORTLESS
                yield Claim(
                    family,
                    address,
                    prefix_length,
                    protocol,
                    ports.first,
                    ports.last,
                    FAILSAFE_RESOURCE,
                    enforce=False,
                )


def _networks(cidr: str | None) -> list[tuple[int, int, int]]:
    if cidr is None:
        return [(4, 0, 0), (6, 0, 0)]
    network = ipaddress.ip_network(cidr)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        address = int(network.network_address) & 0xFFFFFFFF
        return [(4, address, network.prefixlen - 96)]
    return [(network.version, int(network.network_address), network.prefixlen)]
