# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from licagent.domain.compiler import compile_policy
from licagent.domain.entitlements import judge_entitlements
from licagent.domain.license import HostFacts, LicenseState, judge
from licagent.domain.policy import parse_policy
from licagent.domain.reason import Reason
from licagent.domain.slot import SlotValues, slot_values
from lictoken.claims import Condition, Entitlement, License, Limit

Make = Callable[..., License]

EU = (Condition("label:region", ("eu",)),)
NIGHT = (Condition("hours", ("Mon-Sun 00:00-06:00 UTC",)),)
MORNING_S = 1_770_000_000 // 86_400 * 86_400 + 6 * 3600  # 06:00 UTC
IN_EU = {"region": "eu"}
USERS: dict[str, int] = {}


def of(make: Make, *entitlements: Entitlement) -> License:
    return make(entitlements=entitlements, not_before_s=0, expires_at_s=2_000_000_000)


def test_of_a_license_with_nothing_left_nothing_counts(make_license: Make) -> None:
    license_ = of(make_license, Entitlement("db", conditions=EU), Entitlement("web", conditions=EU))
    assert judge(license_, 1_000, HostFacts(labels=IN_EU)).valid
    judgement = judge(license_, 1_000, HostFacts(labels={"region": "us"}))
    assert judgement.state is LicenseState.CONDITION
    assert "region must be eu, and this host has us" in judgement.detail
    assert judgement.hint


def test_a_license_with_something_left_counts(make_license: Make) -> None:
    license_ = of(make_license, Entitlement("db", conditions=EU), Entitlement("web"))
    assert judge(license_, 1_000, HostFacts()).valid
    found = judge_entitlements(license_, {}, {}, 1_000)
    assert found.failing == {"db"}
    assert not found.none_left
    assert [each.kind for each in found.problems()] == ["label:region"]


def test_what_this_version_refuses_leaves_nothing_either(make_license: Make) -> None:
    limited = Entitlement("web", limits=(Limit("egress_bytes", 5),))
    license_ = of(make_license, Entitlement("db", conditions=EU), limited)
    assert judge_entitlements(license_, {}, {}, 0).none_left
    # A license of which nothing is left whatever the host does keeps its own state.
    assert judge(of(make_license, limited), 1_000, HostFacts()).valid


def test_ends_and_changes_by_hours(make_license: Make) -> None:
    license_ = of(make_license, Entitlement("db", conditions=NIGHT), Entitlement("web"))
    before = judge_entitlements(license_, {}, {}, MORNING_S - 60)
    assert set(before.ends_s) == {MORNING_S, None}
    assert before.changes_at_s == MORNING_S
    after = judge_entitlements(license_, {}, {}, MORNING_S)
    assert after.failing == {"db"}
    assert after.ends_s == (None,)
    assert after.changes_at_s == MORNING_S + 18 * 3600


def test_hours_count_only_when_it_is_certain_that_they_are(make_license: Make) -> None:
    license_ = of(make_license, Entitlement("db", conditions=NIGHT))
    midnight = MORNING_S - 6 * 3600
    assert not judge_entitlements(license_, {}, {}, midnight + 5, midnight + 5).none_left
    assert judge_entitlements(license_, {}, {}, midnight + 5, midnight - 5).none_left
    assert judge_entitlements(license_, {}, {}, MORNING_S + 5, MORNING_S - 5).none_left


def test_what_conditions_take_keeps_its_rule_and_grants_nothing(
    make_license: Make, counting: type[Any]
) -> None:
    policy = parse_policy(
        [
            (
                "p.toml",
                "".join(
                    f'[[resource]]\nname = "{name}"\nkind = "service"\nmode = "enforce"\n'
                    f'ports = ["{port}"]\n'
                    for name, port in (("db", 1), ("web", 2))
                )
                + '[[binding]]\nlicense = "acme"\nselectors = ["unix:uid:1"]\n'
                + '[[binding]]\nlicense = "other"\nselectors = ["host"]\n',
            )
        ]
    )
    licenses = {
        "acme": make_license("acme", 1, "db", "web"),
        "other": make_license("other", 2, "db", "web"),
    }
    numbering = counting()
    whole = compile_policy(policy, licenses, numbering, USERS.get)
    tables = compile_policy(
        policy, licenses, numbering, USERS.get, withheld=frozenset({("acme", "db")})
    )
    assert {rule.key for rule in tables.rules} == {rule.key for rule in whole.rules}
    names = {entry.number: entry.name for entry in tables.resources}
    assert {
        (rule.key.uid == 1, names[rule.key.resource]): rule.licenses for rule in tables.rules
    } == {
        (True, "db"): (),  # and not the wider rule's license in its place
        (True, "web"): (1,),
        (False, "db"): (2,),
        (False, "web"): (2,),
    }
    assert tables.withheld == {("acme", "db")}


def test_the_first_end_counts_and_says_why() -> None:
    def ends(**more: int) -> SlotValues:
        return slot_values(LicenseState.VALID, 5, 100, **more)

    assert ends() == SlotValues(Reason.LICENSED, 5, 100, Reason.EXPIRED)
    assert ends(lease_end_ns=90) == SlotValues(Reason.LICENSED, 5, 90, Reason.LEASE_LOST)
    assert ends(condition_end_ns=80) == SlotValues(Reason.LICENSED, 5, 80, Reason.CONDITION)
    assert ends(lease_end_ns=70, condition_end_ns=80).end_reason is Reason.LEASE_LOST
    assert ends(lease_end_ns=100, condition_end_ns=100).end_reason is Reason.EXPIRED
    assert ends(lease_end_ns=200).not_after_ns == 100


def test_a_slot_grants_between_its_times_only() -> None:
    values = slot_values(LicenseState.VALID, 5, 100)
    assert [values.grants(now) for now in (4, 5, 99, 100)] == [False, True, True, False]
    assert not slot_values(LicenseState.LEASE_LOST, 5, 100).grants(50)
    # Time is the kernel's own business.
    assert slot_values(LicenseState.NOT_YET_VALID, 5, 100).grants(50)


def test_leases(make_license: Make) -> None:
    license_ = make_license()
    assert judge(license_, 1_500, HostFacts()).valid
    lost = judge(license_, 1_500, HostFacts(), lease_end_s=None)
    assert lost.state is LicenseState.LEASE_LOST
    assert lost.state.reason is Reason.LEASE_LOST
    assert judge(license_, 1_500, HostFacts(), lease_end_s=1_501).valid
    ended = judge(license_, 1_500, HostFacts(), lease_end_s=1_500)
    assert ended.state is LicenseState.LEASE_LOST
    assert "ended at" in ended.detail
    assert judge(license_, 2_500, HostFacts(), lease_end_s=2_400).state is LicenseState.EXPIRED
    assert judge(license_, 1_500, HostFacts(), lease_end_s=None, revoked=True).state is (
        LicenseState.REVOKED
    )
