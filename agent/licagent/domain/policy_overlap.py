# SPDX-License-Identifier: Apache-2.0
"""Names used twice, and resources between which no rule of precedence decides.

A destination belongs to the resource of the longest prefix, then of the narrowest port
range. Two resources equal in both would leave the choice to chance: the policy is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from licagent.domain.policy_model import (
    PORT_PROTOCOLS,
    Binding,
    Destination,
    Resource,
    ResourceKind,
)
from licagent.domain.ports import ALL_PORTS, PortRange
from licagent.domain.problem import PolicyProblem, shown
from licagent.domain.tables import Protocol


class Place(NamedTuple):
    """Where a resource names something; the order is that of the policy's text."""

    resource: int  # index into the policy's resources
    position: int  # index into the resource's destinations; -1: the resource's ports


class _Claim(NamedTuple):
    """One range of ports that a resource names at one place."""

    first: int
    last: int
    place: Place


class _Target(NamedTuple):
    """What several claims compete for; family 0 stands for services."""

    family: int
    address: int
    prefix_length: int
    protocol: Protocol
    width: int  # of the port range, less one


LineOf: TypeAlias = Callable[[Place], int]


def duplicate_names(
    resources: Iterable[Resource], bindings: Iterable[Binding]
) -> Iterator[PolicyProblem]:
    """A problem for each resource and binding whose name another one has already."""
    for word, entries in (("resource", resources), ("binding", bindings)):
        seen: dict[str, Resource | Binding] = {}
        for entry in entries:
            first = seen.setdefault(entry.name.lower(), entry)
            if first is entry or not entry.name:
                continue
            how = "is also" if first.name == entry.name else "differs only in case from"
            yield PolicyProblem(
                entry.file,
                entry.line,
                f"{word}.name",
                f"{shown(entry.name)} {how} the {word} {shown(first.name)} at {first.source}",
                "give one of them another name, or merge them",
            )


def conflicting_claims(resources: Sequence[Resource], line_of: LineOf) -> Iterator[PolicyProblem]:
    """A problem for each pair of resources that name the same destination or port.

    `line_of` says at which line of its file a place stands.
    """
    targets: defaultdict[_Target, list[_Claim]] = defaultdict(list)
    for index, resource in enumerate(resources):
        if resource.kind is ResourceKind.NETWORK:
            for entry in resource.destinations:
                network = (entry.family, entry.address, entry.prefix_length)
                place = Place(index, entry.position)
                _claim(targets, network, entry.protocols, entry.ports, place)
        elif resource.kind is ResourceKind.SERVICE:
            place = Place(index, -1)
            _claim(targets, (0, 0, 0), resource.protocols, resource.ports, place)
    reported: set[tuple[int, Place]] = set()
    for target, claims in targets.items():
        if len(claims) > 1:
            yield from _conflicts_at(resources, target, claims, line_of, reported)


def _claim(
    targets: defaultdict[_Target, list[_Claim]],
    network: tuple[int, int, int],
    protocols: Iterable[Protocol],
    ports: tuple[PortRange, ...],
    place: Place,
) -> None:
    for protocol in protocols:
        for entry in ports if protocol in PORT_PROTOCOLS else (PortRange(0, 0),):
            target = _Target(*network, protocol, entry.last - entry.first)
            targets[target].append(_Claim(entry.first, entry.last, place))


def _conflicts_at(
    resources: Sequence[Resource],
    target: _Target,
    claims: list[_Claim],
    line_of: LineOf,
    reported: set[tuple[int, Place]],
) -> Iterator[PolicyProblem]:
    # All ranges here are equally wide, so if any two of different resources overlap, then two
    # that are neighbours in this order do.
    claims.sort()
    for one, other in pairwise(claims):
        if other.first > one.last or one.place.resource == other.place.resource:
            continue
        early, late = sorted((one.place, other.place))  # the later one is at fault
        if (early.resource, late) in reported:
            continue  # the same two for each protocol
        reported.add((early.resource, late))
        first, second = resources[early.resource], resources[late.resource]
        ports = PortRange(other.first, min(one.last, other.last))
        key = "ports" if late.position < 0 else f"destinations[{late.position}]"
        yield PolicyProblem(
            second.file,
            line_of(late),
            f"resource.{key}",
            f"{shown(second.name)} and {shown(first.name)} ({_at(first, line_of(early))}) "
            f"both name {_words(target, ports)}",
            "name it once, or make one of them narrower: the narrower one wins",
        )


def _at(resource: Resource, line: int) -> str:
    return f"{resource.file}:{line}" if line else resource.file


def _words(target: _Target, ports: PortRange) -> str:
    protocol = target.protocol.name.lower()
    if target.family == 0:
        return f"{protocol} port {ports}"
    network = Destination(target.family, target.address, target.prefix_length).cidr
    if target.protocol not in PORT_PROTOCOLS:
        return f"{protocol} to {network}"
    return f"{protocol} to {network} " + ("on any port" if ports == ALL_PORTS else f"port {ports}")
