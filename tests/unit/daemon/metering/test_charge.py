# SPDX-License-Identifier: Apache-2.0
"""What use is charged to, by the policy that was in force while it went on."""

from __future__ import annotations

from typing import Any

from licagent.daemon.metering.charge import PolicyCharge
from licagent.domain.attribution import Attribution, AttributionTable, Claim
from licagent.domain.decision import Subject
from licagent.domain.tables import (
    FAILSAFE_RESOURCE,
    Rule,
    RuleKey,
    Scope,
    ScopeKind,
    Tables,
)
from licagent.kernel.numbers import MAX_SCOPES

EVERYBODY = (0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)


def charge(tables: Tables | None = None, **table: Any) -> PolicyCharge:
    return PolicyCharge(
        AttributionTable(**table),
        frozenset(("acme",)),
        tables or Tables(),
        license_id={7: "acme", 8: "other"}.get,
        resource_name={1: "db"}.get,
    )


def rule(number: int, binding: str, *licenses: int, **key: int) -> Rule:
    return Rule(number, RuleKey(1, **key), licenses, binding, (), "")


def test_compute_and_footprints_go_by_the_table() -> None:
    claim = Claim("cpu", (("acme", "b"),))
    stored = Claim("disk", (("other", "b"), ("acme", "c")))
    found = charge(
        compute={EVERYBODY: (claim,)}, shapes=(0,), storage={"disk": ((EVERYBODY, stored),)}
    )
    assert found.compute(Subject(uid=5)) == Attribution("acme", "cpu", "b")
    assert found.footprint("disk", None) == Attribution("acme", "disk", "c")
    assert found.footprint("", None) == Attribution()


def test_network_use_is_the_kernels_license_with_its_binding() -> None:
    found = charge(Tables(rules=(rule(1, "b", 7),)))
    assert found.network(7, 1, Subject(uid=5)) == Attribution("acme", "db", "b")
    assert found.network(0, 1, Subject(uid=5)) == Attribution("", "db")
    assert found.network(0, 0, Subject()) == Attribution()
    assert found.network(7, FAILSAFE_RESOURCE, Subject()) == Attribution()
    # Gone from the policy since: the numbers still say what it was.
    assert found.network(9, 1, Subject()) == Attribution("number 9", "db")
    assert found.network(8, 3, Subject()) == Attribution("other", "number 3")


def test_of_several_bindings_the_one_of_the_subject_counts() -> None:
    rules = (
        rule(1, "wide", 7),
        rule(2, "user", 7, uid=5),
        rule(3, "unit", 7, scope=4),
        rule(4, "program", 7, path=2, gid=9),
        rule(5, "elsewhere", 8, uid=5),
    )
    found = charge(Tables(rules=rules))

    def binding(**subject: Any) -> str:
        return found.network(7, 1, Subject(**subject)).binding

    assert binding(uid=1) == "wide"
    assert binding(uid=5) == "user"
    assert binding(uid=5, scopes=(4,)) == "unit"
    assert binding(uid=5, scopes=(4,), path=2) == "unit"
    assert binding(uid=5, scopes=(4,), path=2, gid=9) == "program"
    # Nobody it could be: the socket is another's by now.
    only = charge(Tables(rules=rules[1:4]))
    assert only.network(7, 1, Subject(uid=1)) == Attribution("acme", "db")


def test_scopes_are_those_of_the_cgroup_and_above_the_deepest_first() -> None:
    scopes = (
        Scope(1, ScopeKind.UNIT, "a.slice"),
        Scope(2, ScopeKind.UNIT, "x.service"),
        Scope(3, ScopeKind.PATH, "/a.slice/x.service"),
        *(Scope(10 + depth, ScopeKind.PATH, "/d" * depth) for depth in range(1, 20)),
    )
    found = charge(Tables(scopes=scopes))
    assert found.scopes("/") == ()
    assert found.scopes("/a.slice/x.service/sub") == (3, 2, 1)
    assert found.scopes("/a.slice") == (1,)
    assert found.scopes("/d" * 19) == tuple(range(29, 29 - MAX_SCOPES, -1))
    assert charge().scopes("/a.slice") == ()
