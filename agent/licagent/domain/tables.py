# SPDX-License-Identifier: Apache-2.0
"""The compiled policy: what the kernel's tables hold, as plain values.

`licagent.domain.compiler` makes it, `licagent.kernel.tables` writes it. Every field maps
onto one field of a struct in bpf/layout/policy.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

ANY_ID: Final = 0
"""Wildcard of `RuleKey.path`, `.digest` and `.scope`; numbers start at 1."""

ANY_OWNER: Final = 0xFFFFFFFF
"""Wildcard of `RuleKey.uid` and `.gid`: (uid_t)-1, which no process can have (setuid(2))."""

FAILSAFE_RESOURCE: Final = 0xFFFFFFFF
"""Resource number of destinations that always pass (DESIGN: failsafe list)."""

FAMILY_RESOURCE: Final = 0xFFFFFFFE
"""Stands for sockets of other families (AF_PACKET, AF_VSOCK...) where no resource names them."""

SERVICE_CLASS: Final = 0
"""Class number under which the ports of `service` resources stand."""

MAX_LICENSES_PER_RULE: Final = 4
"""Alternatives of one rule (a renewal beside the running license); the first valid one counts."""


class Protocol(IntEnum):
    """Protocols as the kernel's tables know them; everything else is OTHER."""

    ICMP = 1  # ICMPv6 (58) is folded into it
    TCP = 6  # MPTCP (262) is folded into it
    UDP = 17  # UDP-Lite (136) is folded into it
    SCTP = 132
    OTHER = 255


class Shape(IntFlag):
    """Which selectors a rule names. The numeric order is the order of specificity."""

    HOST = 0
    GID = 1
    UID = 2
    SCOPE = 4
    PATH = 8
    DIGEST = 16


class PortFlag(IntFlag):
    """Flags of a port entry."""

    ENFORCE = 1  # the resource's own mode is enforce (else observe)


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """One network of the flattened tree and the class its addresses belong to."""

    family: int  # 4 or 6
    address: int  # host bits are zero
    prefix_length: int  # 0..32 or 0..128
    class_number: int  # 1.. ; the ports of the class stand in Tables.ports


@dataclass(frozen=True, slots=True, order=True)
class PortPrefix:
    """Ports [port, port + 2**(16-bits)) of one protocol in one class, and their resource."""

    class_number: int
    protocol: Protocol
    port: int
    bits: int  # 0..16: how many leading bits of `port` count; 0 means every port
    resource: int
    flags: PortFlag


@dataclass(frozen=True, slots=True, order=True)
class RuleKey:
    """Who (selectors that all must hold) may use what."""

    resource: int
    path: int = ANY_ID
    digest: int = ANY_ID
    scope: int = ANY_ID
    uid: int = ANY_OWNER
    gid: int = ANY_OWNER

    @property
    def shape(self) -> Shape:
        """The selectors that this key names."""
        shape = Shape.HOST
        if self.gid != ANY_OWNER:
            shape |= Shape.GID
        if self.uid != ANY_OWNER:
            shape |= Shape.UID
        if self.scope != ANY_ID:
            shape |= Shape.SCOPE
        if self.path != ANY_ID:
            shape |= Shape.PATH
        if self.digest != ANY_ID:
            shape |= Shape.DIGEST
        return shape


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the compiled policy."""

    number: int  # 1.. , position in the compiled policy, shown in events
    key: RuleKey
    licenses: tuple[int, ...]  # fleet-wide license numbers, at most MAX_LICENSES_PER_RULE
    binding: str  # name of the binding it came from
    selectors: tuple[str, ...]  # as written, for events and explain
    source: str  # "file.toml:12"


class ScopeKind(IntEnum):
    """How a cgroup is recognised (see licagent.domain.selector)."""

    UNIT = 1  # a system unit: base name equal, every ancestor below the root is a .slice
    PATH = 2  # exact path below the cgroup root
    CONTAINER = 3  # container id in the base name, no ancestor is user@*.service


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """A set of cgroups named by one selector; their descendants count."""

    number: int
    kind: ScopeKind
    name: str  # unit or slice name, "/path", or container id (12..64 hex digits)


@dataclass(frozen=True, slots=True)
class ResourceEntry:
    """A resource as the compiled policy knows it."""

    number: int
    name: str
    kind: str
    enforce: bool
    source: str


@dataclass(frozen=True, slots=True)
class Tables:
    """A whole compiled policy."""

    networks: tuple[Network, ...] = ()
    ports: tuple[PortPrefix, ...] = ()
    rules: tuple[Rule, ...] = ()
    shapes: tuple[Shape, ...] = ()  # in use, most specific first
    scopes: tuple[Scope, ...] = ()
    paths: tuple[tuple[int, str], ...] = ()  # (number, absolute path)
    digests: tuple[tuple[int, str], ...] = ()  # (number, lower-case hex SHA-256)
    resources: tuple[ResourceEntry, ...] = field(default=())
    withheld: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)
    """(license id, resource) of entitlements left out because their conditions did not hold."""
