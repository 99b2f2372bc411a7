# SPDX-License-Identifier: Apache-2.0
"""Resources between which no rule decides: hosts would refuse the whole policy for one pair.

A destination belongs to the resource of the longest prefix, then of the narrowest range of
ports (docs/reference/policy.md). Two that are equal in both are refused here, where somebody can
mend it, unless their scopes keep them from ever meeting on a host.
"""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

from licplane.errors import ExitCode, PlaneError
from licplane.service.values import Scope
from licplane.store.catalog_model import CatalogObject

_PORTED: Final = ("tcp", "udp", "sctp")
_ALL: Final = (*_PORTED, "icmp", "other")


class _Target(NamedTuple):
    """What several resources may compete for; "" stands for ports of the host itself."""

    network: str
    protocol: str
    width: int


class _Claim(NamedTuple):
    first: int
    last: int
    owner: str


def check_overlaps(resources: Iterable[CatalogObject], changed: frozenset[str]) -> None:
    """Raise PlaneError USAGE for two of `resources`, one of them `changed`, that collide."""
    scopes: dict[str, Scope] = {}
    targets: defaultdict[_Target, list[_Claim]] = defaultdict(list)
    for one in resources:
        scopes[one.name] = one.scope
        for target, first, last in _claims(json.loads(one.payload)):
            targets[target].append(_Claim(first, last, one.name))
    for target, claims in targets.items():
        if len(claims) < 2:
            continue
        for claim, other in _meeting(sorted(claims)):
            if claim.owner == other.owner or not {claim.owner, other.owner} & changed:
                continue
            if meet(scopes[claim.owner], scopes[other.owner]):
                raise _refusal(target, claim, other, changed)


def _refusal(target: _Target, one: _Claim, other: _Claim, changed: frozenset[str]) -> PlaneError:
    late, early = (other, one) if other.owner in changed else (one, other)
    where = f" to {target.network}" if target.network else ""
    ports = f"{max(one.first, other.first)}-{min(one.last, other.last)}"
    return PlaneError(
        ExitCode.USAGE,
        f"resource {late.owner}: it and {early.owner} both name {target.protocol}{where},"
        f" ports {ports}",
        "Name it once, or make one of them narrower (the narrower one wins); nothing was changed",
    )


def meet(one: Scope, other: Scope) -> bool:
    """Whether some host could see objects of both scopes."""

    def share(some: tuple[str, ...], more: tuple[str, ...]) -> bool:
        return not some or not more or bool(set(some) & set(more))

    return (
        (not one.org or not other.org or one.org == other.org)
        and (not one.project or not other.project or one.project == other.project)
        and share(one.environments, other.environments)
        and share(one.regions, other.regions)
    )


def _meeting(claims: list[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs of claims, sorted and equally wide, that have a port in common."""
    if all(one.last < other.first for one, other in pairwise(claims)):
        return
    for at, one in enumerate(claims):
        for other in claims[at + 1 :]:
            if other.first > one.last:
                break
            yield one, other


def _claims(table: dict[str, Any]) -> Iterator[tuple[_Target, int, int]]:
    if table.get("kind") == "service":
        yield from _ranges("", table.get("protocol", "any"), table.get("ports", []))
    elif table.get("kind") == "network":
        for one in table.get("destinations", []):
            for network in _networks(str(one["cidr"])):
                yield from _ranges(network, one.get("protocol", "any"), one.get("ports"))


def _ranges(
    network: str, protocol: str, ports: list[str | int] | None
) -> Iterator[tuple[_Target, int, int]]:
    protocols = _ALL if protocol == "any" else (protocol,)
    for word in protocols:
        if word not in _PORTED:
            if ports is None:
                yield _Target(network, word, 0), 0, 0
            continue
        for text in ["0-65535"] if ports is None else map(str, ports):
            first_text, _, last_text = text.partition("-")
            first = int(first_text)
            last = int(last_text or first_text)
            yield _Target(network, word, last - first), first, last


def _networks(text: str) -> list[str]:
    if text == "any":
        return ["0.0.0.0/0", "::/0"]
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return [f"{mapped}/{network.prefixlen - 96}"]
    return [str(network)]
