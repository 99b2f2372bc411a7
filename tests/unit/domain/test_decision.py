# SPDX-License-Identifier: Apache-2.0
"""decide() on compiled tables against a naive reading of the policy itself."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from licagent.domain.compiler import compile_policy
from licagent.domain.decision import Subject, decide, normalised
from licagent.domain.failsafe import FailsafeEntry
from licagent.domain.license import LicenseState
from licagent.domain.policy_model import (
    ALL_PROTOCOLS,
    PORT_PROTOCOLS,
    Binding,
    Destination,
    Policy,
    Resource,
    ResourceKind,
)
from licagent.domain.policy_overlap import conflicting_claims
from licagent.domain.ports import ALL_PORTS, PortRange
from licagent.domain.reason import Reason, Verdict
from licagent.domain.selector import Selector, SelectorKind, parse
from licagent.domain.tables import Protocol, Shape, Tables
from lictoken.claims import Entitlement, License, LicenseScope, Limit

# Few values, so that random policies and random flows meet.
ADDRESS4 = st.sampled_from([0, 1, 0x0A000000, 0x0A000001, 0x0A000080, 0x0A000500, 0x7F000001])
ADDRESS6 = st.sampled_from([0, 1, 2 << 124, 2 << 124 | 1, 0xFFFF << 32 | 0x0A000001, 0xFFFF << 32])
PORTS = st.sampled_from([0, 1, 52, 53, 54, 80, 443, 1023, 1024, 5432, 65535])
RANGES = st.tuples(PORTS, PORTS).map(lambda pair: PortRange(min(pair), max(pair)))
LENGTHS4 = st.sampled_from([0, 1, 8, 24, 25, 30, 32])
LENGTHS6 = st.sampled_from([0, 3, 64, 127, 128])
NAMES = ["r1", "r2", "r3"]
LICENSES = ["l1", "l2", "l3"]
SELECTORS = [
    "host",
    "unix:uid:1",
    "unix:uid:2",
    "unix:gid:1",
    "unix:path:/bin/a",
    "unix:sha256:" + "a" * 64,
    "cgroup:path:/a",
    "cgroup:path:/a/b",
    "systemd:unit:x.service",
]


def can_hold(texts: list[str]) -> bool:
    """Whether a rule can say it: one user, one place in the cgroup tree (or one in the other)."""
    users = {text for text in texts if text.startswith("unix:uid:")}
    places = {text.partition(":")[0] for text in texts} & {"cgroup", "systemd"}
    return len(users) <= 1 and len(places) <= 1


def destination(family: int, address: int, length: int, ports: Any, protocols: Any) -> Destination:
    width = 32 if family == 4 else 128
    start = address >> (width - length) << (width - length)
    if ports != (ALL_PORTS,):
        protocols = tuple(entry for entry in protocols if entry in PORT_PROTOCOLS)
    return Destination(family, start, length, ports, protocols)


PORT_SETS = st.just((ALL_PORTS,)) | st.lists(RANGES, min_size=1, max_size=3).map(tuple)
PROTOCOL_SETS = st.just(ALL_PROTOCOLS) | st.sampled_from(ALL_PROTOCOLS).map(lambda one: (one,))
DESTINATIONS = st.one_of(
    st.builds(destination, st.just(4), ADDRESS4, LENGTHS4, PORT_SETS, PROTOCOL_SETS),
    st.builds(destination, st.just(6), ADDRESS6, LENGTHS6, PORT_SETS, PROTOCOL_SETS),
).filter(lambda entry: not (entry.family == 6 and entry.address >> 32 == 0xFFFF))
RESOURCES = st.tuples(
    *(
        st.one_of(
            st.builds(
                Resource,
                st.just(name),
                st.just(ResourceKind.NETWORK),
                st.booleans(),
                destinations=st.lists(DESTINATIONS, min_size=2, max_size=5).map(tuple),
            ),
            st.builds(
                Resource,
                st.just(name),
                st.just(ResourceKind.SERVICE),
                st.booleans(),
                ports=st.lists(RANGES, max_size=3).map(tuple),
                protocols=st.sampled_from([PORT_PROTOCOLS, (Protocol.TCP,)]),
            ),
        )
        for name in NAMES
    )
)
BINDINGS = st.lists(
    st.builds(
        Binding,
        st.just("b"),
        st.sampled_from(LICENSES),
        st.lists(st.sampled_from(["host", *SELECTORS]), min_size=1, max_size=3)
        .filter(can_hold)
        .map(lambda texts: tuple(map(parse, texts))),
        st.none()
        | st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple),
    ),
    min_size=4,
    max_size=9,
)
ENTITLEMENTS = st.lists(
    st.builds(
        Entitlement,
        st.sampled_from(NAMES),
        st.just(("connect", "bind")),
        st.sampled_from([(), (), (), (Limit("egress_bytes", 1),)]),
    ),
    min_size=2,
    max_size=3,
    unique_by=lambda entry: entry.resource,
).map(tuple)
FAILSAFES = st.lists(
    st.builds(
        FailsafeEntry,
        st.just("out"),
        st.sampled_from([None, "10.0.0.0/25", "2000::/3"]),
        st.sampled_from([None, Protocol.TCP, Protocol.UDP]),
        st.none() | PORTS | RANGES,
    )
    | st.builds(FailsafeEntry, st.just("in"), st.none(), st.just(Protocol.TCP), PORTS),
    max_size=2,
)


@dataclass(frozen=True)
class Who:
    """A process as the oracle sees it: what it is, not how the tables number it."""

    uid: int
    gid: int
    path: str | None
    digest: str | None
    scopes: tuple[Selector, ...]  # deepest first


WHO = st.builds(
    Who,
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([None, "/bin/a", "/bin/b"]),
    st.sampled_from([None, "a" * 64]),
    st.sampled_from(
        [
            (),
            ("cgroup:path:/a",),
            ("cgroup:path:/a/b", "cgroup:path:/a"),
            ("systemd:unit:x.service", "cgroup:path:/a/b", "cgroup:path:/a"),
        ]
    ).map(lambda texts: tuple(map(parse, texts))),
)


def holds(selector: Selector, who: Who) -> bool:
    match selector.kind:
        case SelectorKind.HOST:
            return True
        case SelectorKind.UID:
            return who.uid == int(selector.value)
        case SelectorKind.GID:
            return who.gid == int(selector.value)
        case SelectorKind.PATH:
            return who.path == selector.value
        case SelectorKind.SHA256:
            return who.digest == selector.value
        case _:
            return selector in who.scopes


WEIGHTS = {
    SelectorKind.GID: Shape.GID,
    SelectorKind.UID: Shape.UID,
    SelectorKind.PATH: Shape.PATH,
    SelectorKind.SHA256: Shape.DIGEST,
    SelectorKind.HOST: Shape.HOST,
}


def specificity(binding: Binding, who: Who) -> tuple[int, int]:
    """How much a binding that holds names, then how deep its cgroup is."""
    shape, depth = Shape.HOST, 0
    for selector in binding.selectors:
        shape |= WEIGHTS.get(selector.kind, Shape.SCOPE)
        if selector in who.scopes:
            depth = max(depth, len(who.scopes) - who.scopes.index(selector))
    return int(shape), depth


def covers(entry: Destination, family: int, address: int) -> bool:
    text = f"{ipaddress.ip_address(address.to_bytes(4 if family == 4 else 16, 'big'))}"
    return entry.family == family and ipaddress.ip_address(text) in ipaddress.ip_network(entry.cidr)


def owner(
    resources: tuple[Resource, ...], flow: dict[str, Any], family: int, address: int
) -> Resource | None:
    """The resource of a flow: longest prefix, then narrowest ports, over all of them."""
    found: list[tuple[int, int, int, Resource]] = []
    protocol = flow["protocol"]
    port = flow["port"] if protocol in PORT_PROTOCOLS else 0
    for index, resource in enumerate(resources):
        if flow["direction"] == "in":
            if protocol in resource.protocols:
                found += [
                    (0, entry.first - entry.last, index, resource)
                    for entry in resource.ports
                    if entry.first <= port <= entry.last
                ]
            continue
        for place in resource.destinations:
            if protocol in place.protocols and covers(place, family, address):
                found += [
                    (place.prefix_length, entry.first - entry.last, index, resource)
                    for entry in place.ports
                    if entry.first <= port <= entry.last
                ]
    return max(found, key=lambda entry: entry[:2])[3] if found else None


def is_exempt(
    entries: list[FailsafeEntry], flow: dict[str, Any], family: int, address: int
) -> bool:
    for entry in entries:
        port = flow["port"] if flow["protocol"] in PORT_PROTOCOLS else 0
        if entry.direction != flow["direction"] or flow["protocol"] not in entry.protocols:
            continue
        if not entry.ports.first <= port <= entry.ports.last:
            continue
        where = Destination(family, 0, 0).cidr if entry.cidr is None else entry.cidr
        raw = address.to_bytes(4 if family == 4 else 16, "big")
        if ipaddress.ip_address(raw) in ipaddress.ip_network(where):
            return True
    return False


def expected(
    *,
    policy: Policy,
    licenses: dict[str, License],
    states: dict[int, LicenseState],
    failsafe: list[FailsafeEntry],
    who: Who,
    flow: dict[str, Any],
) -> tuple[Verdict, Reason]:
    family, address = normalised(flow["family"], flow["address"])
    resource = owner(policy.resources, flow, family, address)
    exempt = is_exempt(failsafe, flow, family, address)
    if exempt and (resource is not None or flow["direction"] == "in"):
        return Verdict.NONE, Reason.FAILSAFE
    if resource is None:
        return Verdict.NONE, Reason.NO_RESOURCE
    matching = []
    for binding in policy.bindings:
        rights = {e.resource: e for e in licenses[binding.license].entitlements}
        wanted = rights if binding.resources is None else binding.resources
        if resource.name in wanted and all(holds(s, who) for s in binding.selectors):
            matching.append((specificity(binding, who), binding, rights[resource.name]))
    reason = Reason.NO_BINDING
    if matching:
        top = max(entry[0] for entry in matching)
        rights_by_license = {
            binding.license: right for weight, binding, right in matching if weight == top
        }
        usable = [licenses[name] for name, right in rights_by_license.items() if not right.limits]
        usable.sort(key=lambda entry: (-entry.expires_at_s, entry.number))
        reasons = [states[entry.number].reason for entry in usable]
        reason = Reason.CONDITION
        if reasons:
            reason = Reason.LICENSED if Reason.LICENSED in reasons else reasons[0]
    if reason is Reason.LICENSED:
        return Verdict.ALLOW, reason
    return (Verdict.DENY if resource.enforce else Verdict.SHADOW), reason


FLOWS = st.fixed_dictionaries(
    {
        "protocol": st.sampled_from(ALL_PROTOCOLS),
        "port": PORTS,
        "direction": st.sampled_from(["out", "out", "out", "in"]),
    }
).flatmap(
    lambda flow: st.one_of(
        ADDRESS4.map(lambda address: flow | {"family": 4, "address": address}),
        ADDRESS6.map(lambda address: flow | {"family": 6, "address": address}),
    )
)


@settings(max_examples=400)
@given(data=st.data())
def test_decides_as_the_policy_reads(data: st.DataObject, counting: type[Any]) -> None:
    resources = data.draw(RESOURCES)
    assume(not list(conflicting_claims(resources, lambda _place: 1)))
    licenses = {
        name: License(
            *(name, "iss", "sub", "licagent", number, 1, 0, 0, data.draw(st.integers(1, 3))),
            scope=LicenseScope("acme"),
            entitlements=data.draw(ENTITLEMENTS),
        )
        for number, name in enumerate(LICENSES, 1)
    }
    bindings = []
    for binding in data.draw(BINDINGS):
        rights = [entry.resource for entry in licenses[binding.license].entitlements]
        if binding.resources is None or all(name in rights for name in binding.resources):
            bindings.append(binding)
    reached = {
        entry.resource
        for binding in bindings
        for entry in licenses[binding.license].entitlements
        if binding.resources is None or entry.resource in binding.resources
    }
    policy = Policy(tuple(r for r in resources if r.name in reached), tuple(bindings))
    failsafe = data.draw(FAILSAFES)
    numbers = counting()
    tables = compile_policy(policy, licenses, numbers, lambda _name: None, failsafe)
    states = {number: data.draw(st.sampled_from(LicenseState)) for number in (1, 2, 3)}
    told = {"policy": policy, "licenses": licenses, "states": states, "failsafe": failsafe}
    for _ in range(16):
        who, flow = data.draw(WHO), data.draw(FLOWS)
        decision = decide(tables, states, numbered(who, tables), **flow)
        found = (decision.verdict, decision.reason)
        event(decision.reason.name)
        assert found == expected(**told, who=who, flow=flow), (who, flow)
        assert decision.passes == (decision.verdict is not Verdict.DENY)


def numbered(who: Who, tables: Tables) -> Subject:
    paths = {name: number for number, name in tables.paths}
    digests = {name: number for number, name in tables.digests}
    scopes = {scope.name: scope.number for scope in tables.scopes}
    return Subject(
        paths.get(who.path or "", 0),
        digests.get(who.digest or "", 0),
        tuple(scopes[entry.value] for entry in who.scopes if entry.value in scopes),
        who.uid,
        who.gid,
    )


@pytest.mark.parametrize(
    ("family", "address", "normal"),
    [
        (4, 0, (4, 0x7F000001)),
        (6, 0, (6, 1)),
        (6, 0xFFFF << 32, (4, 0x7F000001)),
        (6, 0xFFFF << 32 | 0x0A000001, (4, 0x0A000001)),
        (6, 0x0A000001, (6, 0x0A000001)),
    ],
)
def test_one_form_for_every_address(family: int, address: int, normal: tuple[int, int]) -> None:
    assert normalised(family, address) == normal


@pytest.fixture
def small(counting: type[Any], make_license: Any) -> Tables:
    entry = Destination(4, 0x0A000000, 8)
    resource = Resource("db", ResourceKind.NETWORK, enforce=True, destinations=(entry,))
    binding = Binding("b", "acme", (parse("unix:uid:1"),))
    policy = Policy((resource,), (binding,))
    return compile_policy(policy, {"acme": make_license("acme", 7, "db")}, counting(), {}.get)


@pytest.mark.parametrize(
    ("options", "verdict", "reason"),
    [
        ({}, Verdict.DENY, Reason.NO_BINDING),
        ({"enforcing": False}, Verdict.SHADOW, Reason.NO_BINDING),
        ({"break_glass": True}, Verdict.ALLOW, Reason.BREAK_GLASS),
        ({"enforcing": False, "break_glass": True}, Verdict.SHADOW, Reason.NO_BINDING),
    ],
)
def test_modes(small: Tables, options: dict[str, bool], verdict: Verdict, reason: Reason) -> None:
    flow = (Subject(uid=2), 4, 0x0A000001, Protocol.TCP, 80)
    decision = decide(small, {7: LicenseState.VALID}, *flow, **options)
    assert (decision.verdict, decision.reason) == (verdict, reason)


def test_a_license_that_is_gone_is_no_binding(small: Tables) -> None:
    decision = decide(small, {}, Subject(uid=1), 4, 0x0A000001, Protocol.TCP, 80)
    assert (decision.reason, decision.license) == (Reason.NO_BINDING, 0)
    assert decision.rule is small.rules[0]
