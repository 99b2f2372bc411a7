# SPDX-License-Identifier: Apache-2.0
"""A policy as its author wrote it, checked: resources and bindings as plain values."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from licagent.domain.ports import ALL_PORTS, PortRange
from licagent.domain.selector import Selector
from licagent.domain.tables import Protocol

ALL_PROTOCOLS: Final = (
    Protocol.ICMP,
    Protocol.TCP,
    Protocol.UDP,
    Protocol.SCTP,
    Protocol.OTHER,
)

PORT_PROTOCOLS: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
"""Protocols that have ports; in the others everything stands at port 0."""


class ResourceKind(StrEnum):
    """What a resource is."""

    NETWORK = "network"  # destinations that workloads connect to
    SERVICE = "service"  # ports that workloads offer on this host
    COMPUTE = "compute"
    STORAGE = "storage"
    FEATURE = "feature"


ENFORCED_KINDS: Final = (ResourceKind.NETWORK, ResourceKind.SERVICE)
"""Kinds that this version decides on; the others are known by name only."""


@dataclass(frozen=True, slots=True, order=True)
class Destination:
    """One network of a `network` resource, with the ports and protocols that belong to it."""

    family: int  # 4 or 6; IPv4-mapped networks are 4
    address: int  # host bits are zero
    prefix_length: int  # 0..32 or 0..128
    ports: tuple[PortRange, ...] = (ALL_PORTS,)
    protocols: tuple[Protocol, ...] = ALL_PROTOCOLS
    position: int = 0  # in the resource's array of destinations

    @property
    def cidr(self) -> str:
        """The network as people write it."""
        kind = ipaddress.IPv4Network if self.family == 4 else ipaddress.IPv6Network
        return str(kind((self.address, self.prefix_length)))


@dataclass(frozen=True, slots=True)
class Resource:
    """Something whose use is licensed on this host."""

    name: str
    kind: ResourceKind
    enforce: bool  # mode = "enforce"; else observe
    destinations: tuple[Destination, ...] = ()  # of NETWORK
    ports: tuple[PortRange, ...] = ()  # of SERVICE
    protocols: tuple[Protocol, ...] = ()  # of SERVICE
    paths: tuple[str, ...] = ()  # of STORAGE; kept for the metering of storage
    description: str = ""
    file: str = ""
    line: int = 0

    @property
    def source(self) -> str:
        """Where it stands: "orders.toml:12", or whatever has no lines, by its name."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Binding:
    """Selectors, all of which must hold, tied to a license."""

    name: str
    license: str  # the license's jti
    selectors: tuple[Selector, ...]  # never empty
    resources: tuple[str, ...] | None = None  # None: all that the license entitles
    file: str = ""
    line: int = 0

    @property
    def source(self) -> str:
        """Where it stands: "orders.toml:12", or whatever has no lines, by its name."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the policy files say."""

    resources: tuple[Resource, ...] = ()
    bindings: tuple[Binding, ...] = ()
