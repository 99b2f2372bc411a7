# SPDX-License-Identifier: Apache-2.0
"""What resources claim: the networks, protocols and ports that are theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from licagent.domain.networks import PORT_PREFIXES_MAX, Claim
from licagent.domain.policy_model import PORT_PROTOCOLS, Resource
from licagent.domain.ports import PortRange
from licagent.domain.problem import PolicyProblem

_PORTLESS: Final = (PortRange(0, 0),)


def destination_claims(resources: Iterable[tuple[int, Resource]]) -> Iterator[Claim]:
    """The destinations of numbered resources."""
    for number, resource in resources:
        for destination in resource.destinations:
            place = (destination.family, destination.address, destination.prefix_length)
            for protocol in destination.protocols:
                ports = destination.ports if protocol in PORT_PROTOCOLS else _PORTLESS
                for entry in ports:
                    yield Claim(*place, protocol, entry.first, entry.last, number, resource.enforce)


def service_claims(resources: Iterable[tuple[int, Resource]]) -> Iterator[Claim]:
    """The ports of this host that numbered resources name."""
    for number, resource in resources:
        for protocol in resource.protocols:
            for entry in resource.ports:
                yield Claim(0, 0, 0, protocol, entry.first, entry.last, number, resource.enforce)


def too_many_ports(resources: Sequence[Resource]) -> PolicyProblem:
    """The problem of a policy that TooManyPortsError stopped."""
    first = resources[0]
    return PolicyProblem(
        first.file,
        first.line,
        "resource.destinations",
        f"nested networks and port ranges come to more than {PORT_PREFIXES_MAX} port entries",
        "name ports in fewer of the networks that lie in one another",
    )
