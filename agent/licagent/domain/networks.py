# SPDX-License-Identifier: Apache-2.0
"""Flattening: nested networks become classes, of which the longest prefix is the only one to ask.

Each class holds the ports of its own network laid over those of the networks around it, so
that the kernel answers "whose is this address and port?" with two look-ups however deep the
nesting is: address -> class, (class, protocol, port) -> resource.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from licagent.domain.ports import Interval, clip, intervals_to_prefixes, overlay
from licagent.domain.tables import FAILSAFE_RESOURCE, Network, PortFlag, PortPrefix, Protocol

if TYPE_CHECKING:
    from licagent.domain.failsafe import FailsafeEntry

PORT_PREFIXES_MAX: Final = 1_000_000
"""Entries of the kernel's port table; one takes about 100 bytes there."""

WIDTHS: Final = {4: 32, 6: 128}
"""Bits of an address, by family."""


class Claim(NamedTuple):
    """Ports of one protocol in one network that belong to one resource."""

    family: int
    address: int  # host bits are zero
    prefix_length: int
    protocol: Protocol
    first: int  # ports, both included; 0..0 for protocols without ports
    last: int
    resource: int
    enforce: bool


class TooManyPortsError(Exception):
    """The flattened policy has more than PORT_PREFIXES_MAX port entries."""


_PortTable: TypeAlias = dict[Protocol, tuple[Interval, ...]]
"""Disjoint, ascending intervals of each protocol; values are packed by `_packed`."""

_NetworkKey: TypeAlias = tuple[int, int, int]


class _Layer(NamedTuple):
    """A network on the way down the tree, with what its addresses inherit."""

    family: int
    last_address: int
    resources: _PortTable  # what resources name here, most specific network first
    failsafe: _PortTable  # what always passes here
    class_number: int  # of the addresses that no network below claims; 0: none


def _packed(resource: int, *, enforce: bool) -> int:
    return resource << 1 | enforce


@dataclass(slots=True)
class _Own:
    """What the policy says about exactly one network."""

    resources: defaultdict[Protocol, list[Interval]] = field(
        default_factory=lambda: defaultdict(list)
    )
    failsafe: defaultdict[Protocol, list[Interval]] = field(
        default_factory=lambda: defaultdict(list)
    )


class ClassTable:
    """Classes made so far: equal port tables share a number, and their entries stand once."""

    def __init__(self) -> None:
        self.ports: Final[list[PortPrefix]] = []
        self._numbers: Final[dict[tuple[tuple[Protocol, tuple[Interval, ...]], ...], int]] = {}

    def number(self, table: _PortTable) -> int:
        """The class of `table`; raises TooManyPortsError."""
        key = tuple(sorted(table.items()))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers) + 1
            self.write(number, table)
        return number

    def write(self, number: int, table: _PortTable) -> None:
        """Append the port entries of `table` under class `number`."""
        for protocol, intervals in table.items():
            for port, bits, value in intervals_to_prefixes(intervals):
                resource = value >> 1
                flags = PortFlag.ENFORCE if value & 1 else _NO_FLAGS
                if protocol in _PORTLESS:
                    port = bits = 0  # noqa: PLW2901
                self.ports.append(PortPrefix(number, protocol, port, bits, resource, flags))
        if len(self.ports) > PORT_PREFIXES_MAX:
            raise TooManyPortsError


_NO_FLAGS: Final = PortFlag(0)
_PORTLESS: Final = frozenset((Protocol.ICMP, Protocol.OTHER))


def flatten(
    claims: Iterable[Claim], failsafe: Iterable[Claim], classes: ClassTable
) -> list[Network]:
    """The networks of `claims`, each with the class that decides its addresses.

    At each address, protocol and port the claim with the longest prefix wins, then the one
    with the narrowest ports. `failsafe` wins over all of them, but only where a claim would
    otherwise decide: where no resource is named nothing is written, so that unlicensed
    traffic stays without a class. A network whose class is that of the network around it is
    left out. Raises TooManyPortsError.
    """
    networks: list[Network] = []
    stack: list[_Layer] = []
    own = _by_network(claims, failsafe)
    for key in sorted(own):  # a network comes right before the networks inside it
        family, address, prefix_length = key
        while stack and (stack[-1].family != family or stack[-1].last_address < address):
            stack.pop()
        around = stack[-1] if stack else None
        layer = _layer(key, own[key], around, classes)
        stack.append(layer)
        if layer.class_number and (around is None or around.class_number != layer.class_number):
            networks.append(Network(family, address, prefix_length, layer.class_number))
    return networks


def _by_network(claims: Iterable[Claim], failsafe: Iterable[Claim]) -> dict[_NetworkKey, _Own]:
    own: defaultdict[_NetworkKey, _Own] = defaultdict(_Own)
    for claim in claims:
        interval = (claim.first, claim.last, _packed(claim.resource, enforce=claim.enforce))
        own[claim[:3]].resources[claim.protocol].append(interval)
    for claim in failsafe:
        interval = (claim.first, claim.last, _packed(FAILSAFE_RESOURCE, enforce=False))
        own[claim[:3]].failsafe[claim.protocol].append(interval)
    return own


def _layer(key: _NetworkKey, own: _Own, around: _Layer | None, classes: ClassTable) -> _Layer:
    family, address, prefix_length = key
    last_address = address | (1 << (WIDTHS[family] - prefix_length)) - 1
    resources = merged(around.resources if around else {}, own.resources)
    failsafe = merged(around.failsafe if around else {}, own.failsafe)
    table: _PortTable = {}
    for protocol, intervals in resources.items():
        exempt = clip(failsafe[protocol], intervals) if protocol in failsafe else ()
        table[protocol] = overlay(intervals, exempt) if exempt else intervals
    number = classes.number(table) if table else 0
    return _Layer(family, last_address, resources, failsafe, number)


def merged(below: _PortTable, above: Mapping[Protocol, list[Interval]]) -> _PortTable:
    """`above` laid over `below`, protocol by protocol."""
    if not above:
        return below
    result = dict(below)
    for protocol, intervals in above.items():
        result[protocol] = overlay(below.get(protocol, ()), intervals)
    return result


def service_table(claims: Iterable[Claim], failsafe: Iterable[FailsafeEntry]) -> _PortTable:
    """The ports of this host: those that services name, under those that always pass.

    Unlike destinations, exempt ports are written even where no service names them: replies
    from a failsafe port to a licensed network must be recognised too.
    """
    named: defaultdict[Protocol, list[Interval]] = defaultdict(list)
    exempt: defaultdict[Protocol, list[Interval]] = defaultdict(list)
    for claim in claims:
        value = _packed(claim.resource, enforce=claim.enforce)
        named[claim.protocol].append((claim.first, claim.last, value))
    for entry in failsafe:
        for protocol in entry.protocols:
            value = _packed(FAILSAFE_RESOURCE, enforce=False)
            exempt[protocol].append((entry.ports.first, entry.ports.last, value))
    return merged(merged({}, named), exempt)
