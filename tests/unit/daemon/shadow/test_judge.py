# SPDX-License-Identifier: Apache-2.0
"""Recorded uses against real policies: what is certain, and what a record cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from licagent.daemon.shadow.judge import Licenses, Now, Worth, Would, judge
from licagent.daemon.shadow.rules import Candidates, RuleFinder
from licagent.daemon.shadow.uses import Actor
from licagent.domain.compiler import compile_policy
from licagent.domain.conditions import Standing
from licagent.domain.license import LicenseState
from licagent.domain.policy import parse_policy
from licagent.domain.tables import Rule, Tables
from lictoken.claims import Entitlement, License, LicenseScope

RESOURCE = """
[[resource]]
name = "db"
kind = "network"
destinations = [{ cidr = "10.0.0.0/24" }]
"""
DIGEST = "a" * 64
CONTAINER = "4f1c" * 16


class Numbers:
    """The same number for the same name."""

    def __init__(self) -> None:
        self._names: list[tuple[str, str]] = []

    def number(self, space: str, name: str) -> int:
        if (space, name) not in self._names:
            self._names.append((space, name))
        return self._names.index((space, name)) + 1


def license_(jti: str, number: int, **fields: Any) -> License:
    given = {"entitlements": (Entitlement("db"),), "scope": LicenseScope("acme"), **fields}
    return License(jti, "iss", "sub", "licagent", number, 1, 0, 0, 10, **given)


NARROW, WIDE = license_("narrow", 1), license_("wide", 2)


def tables(*bindings: tuple[str, str], licenses: Sequence[License] = (NARROW, WIDE)) -> Tables:
    text = RESOURCE
    for jti, selectors in bindings:
        listed = ", ".join(f'"{each}"' for each in selectors.split(" & "))
        text += f'[[binding]]\nlicense = "{jti}"\nselectors = [{listed}]\n'
    known = {each.jti: each for each in licenses}
    policy = parse_policy([("test.toml", text)], known_licenses=known)
    return compile_policy(policy, known, Numbers(), lambda _name: None)


def actor(**fields: Any) -> Actor:
    found = Actor(
        *("db", 1000, 100, "alice", "/usr/bin/curl", None, "etl.service", "system.slice", None),
        "/system.slice/etl.service",
    )
    return found._replace(**fields)


def told(
    policy: Tables,
    who: Actor,
    states: Mapping[str, LicenseState | Worth] | None = None,
    licenses: Sequence[License] = (NARROW, WIDE),
    withheld: Sequence[License] = (),
    *,
    links: Mapping[str, str] | None = None,
) -> Now:
    """What is said of a use; licenses are valid where `states` says nothing else.

    `links` are those of the policy's paths that lead elsewhere.
    """

    def worth(of: License, _resource: str) -> Worth:
        found = (states or {}).get(of.jti, LicenseState.VALID)
        return found if isinstance(found, Worth) else Worth(found, f"{of.jti} is {found.value}")

    def left_out(_rule: Rule, _resource: str) -> Sequence[License]:
        return withheld

    finder = RuleFinder(policy, {path: path for _number, path in policy.paths} | (links or {}))
    by_number = {each.number: each for each in licenses}
    found = finder.find(who)
    return judge(found, Licenses(by_number, worth, left_out), finder.asks(found.resource))


@pytest.mark.parametrize(
    "selectors",
    [
        "host",
        "unix:uid:1000",
        "unix:gid:100",
        "unix:path:/usr/bin/curl",
        "systemd:unit:etl.service",
        "systemd:slice:system.slice",
        "cgroup:path:/system.slice",
        "unix:uid:1000 & unix:path:/usr/bin/curl & systemd:unit:etl.service",
    ],
)
def test_what_a_record_shows_is_enough(selectors: str) -> None:
    found = told(tables(("narrow", selectors)), actor())
    assert found == Now(Would.ALLOW, "licensed", "narrow", "narrow/1")


@pytest.mark.parametrize(
    "selectors",
    [
        "unix:uid:1",
        "unix:gid:1",
        "unix:path:/usr/bin/wget",
        "systemd:unit:other.service",
        "cgroup:path:/system.slice/etl.service/deeper",
        f"container:id:{CONTAINER}",
        f"unix:uid:1 & unix:sha256:{DIGEST}",
    ],
)
def test_what_does_not_hold_is_refused_and_said(selectors: str) -> None:
    found = told(tables(("narrow", selectors)), actor())
    assert (found.verdict, found.reason) == (Would.DENY, "no_binding")
    assert found.why.startswith("binding narrow/1 asks for unix:") or selectors in found.why


def test_only_the_most_specific_binding_counts() -> None:
    policy = tables(("wide", "unix:uid:1000"), ("narrow", "unix:path:/usr/bin/curl"))
    assert told(policy, actor()).license == "narrow"
    ended = told(policy, actor(), {"narrow": LicenseState.EXPIRED})
    assert (ended.verdict, ended.reason, ended.why) == (Would.DENY, "expired", "narrow is expired")
    assert told(policy, actor(executable="/usr/bin/psql")).license == "wide"
    deeper = tables(("wide", "systemd:slice:system.slice"), ("narrow", "systemd:unit:etl.service"))
    assert told(deeper, actor()).license == "narrow"
    assert told(deeper, actor(cgroup="/system.slice/a.service")).license == "wide"


def test_licenses_beside_each_other_need_one_that_is_valid() -> None:
    policy = tables(("wide", "host"), ("narrow", "host"))
    assert told(policy, actor(), {"narrow": LicenseState.REVOKED}).license == "wide"
    both = dict.fromkeys(("narrow", "wide"), LicenseState.LEASE_LOST)
    assert (told(policy, actor(), both).verdict) is Would.DENY


def test_what_a_program_contains_no_record_shows() -> None:
    policy = tables(("narrow", f"unix:sha256:{DIGEST}"))
    found = told(policy, actor())
    assert found.verdict is Would.UNKNOWN
    assert "unix:sha256" in found.why
    # It hangs on nothing where either way comes to the same.
    either = tables(("narrow", f"unix:sha256:{DIGEST}"), ("wide", "unix:uid:1000"))
    assert told(either, actor()).verdict is Would.ALLOW
    ended = told(either, actor(), {"narrow": LicenseState.EXPIRED})
    assert ended.verdict is Would.UNKNOWN


@pytest.mark.parametrize(
    "changed",
    [
        {"executable": None, "name": "curl"},
        {"executable": "/bin/curl"},
        {"executable": "/usr/bin/curl (deleted)"},
        {"container": CONTAINER},
    ],
)
def test_another_way_to_an_executable_may_be_the_same_file(changed: dict[str, Any]) -> None:
    policy = tables(("narrow", "unix:path:/usr/bin/curl"))
    assert told(policy, actor(**changed)).verdict is Would.UNKNOWN
    wide = tables(("narrow", "unix:path:/usr/bin/curl"), ("wide", "unix:uid:1000"))
    assert told(wide, actor(**changed)).verdict is Would.ALLOW
    ended = told(wide, actor(**changed), {"narrow": LicenseState.EXPIRED})
    assert ended.verdict is Would.UNKNOWN


def test_a_link_names_the_file_that_it_leads_to() -> None:
    link, links = "/usr/bin/python3", {"/usr/bin/python3": "/usr/bin/python3.11"}
    who = actor(executable="/usr/bin/python3.11")
    narrow = tables(("narrow", f"unix:path:{link}"))
    assert told(narrow, who, links=links).license == "narrow"
    # The narrow binding decides, whatever another one would allow.
    both = tables(("narrow", f"unix:path:{link}"), ("wide", "host"))
    ended = told(both, who, {"narrow": LicenseState.EXPIRED}, links=links)
    assert (ended.verdict, ended.reason) == (Would.DENY, "expired")
    # By the link's own name nothing runs.
    assert told(both, actor(executable="/opt/python3"), links=links).license == "wide"


def test_a_path_that_was_not_found_is_not_certain() -> None:
    both = tables(("narrow", "unix:path:/net/tool"), ("wide", "host"))
    states = {"narrow": LicenseState.EXPIRED}
    finder = RuleFinder(both, {})
    found = finder.find(actor(executable="/net/tool"))
    assert {rule.binding if rule else None for rule in found.rules} == {"narrow/1", "wide/1"}
    assert told(both, actor(executable="/net/tool"), states).verdict is Would.DENY


@pytest.mark.parametrize(
    ("selectors", "gone"),
    [
        ("unix:uid:1000", {"uid": None}),
        ("unix:gid:100", {"gid": None}),
        ("systemd:unit:etl.service", {"cgroup": None}),
    ],
)
def test_who_is_not_shown_is_not_guessed(selectors: str, gone: dict[str, Any]) -> None:
    assert told(tables(("narrow", selectors)), actor(**gone)).verdict is Would.UNKNOWN
    assert told(tables(("narrow", "host")), actor(**gone)).verdict is Would.ALLOW


def test_too_many_possible_answers_are_none() -> None:
    many = [("narrow", f"unix:uid:{number}") for number in range(1, 600)]
    found = told(tables(*many), actor(uid=None))
    assert (found.verdict, found.why) == (Would.UNKNOWN, "the record does not show the user")


def test_an_entitlement_for_another_action_grants_nothing() -> None:
    binder = license_("narrow", 1, entitlements=(Entitlement("db", ("bind",)),))
    found = told(tables(("narrow", "host"), licenses=[binder]), actor(), licenses=[binder])
    assert (found.verdict, found.reason) == (Would.DENY, "no_binding")


def test_a_licenses_own_selectors_count() -> None:
    picky = license_("narrow", 1, selectors=("systemd:unit:other.service",))
    policy = tables(("narrow", "unix:uid:1000"), licenses=[picky])
    assert told(policy, actor(), licenses=[picky]).verdict is Would.DENY
    inside = actor(cgroup="/system.slice/other.service")
    assert told(policy, inside, licenses=[picky]).verdict is Would.ALLOW


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    ("kind", "verdict"), [("hours", Would.UNKNOWN), ("posture:secure_boot", Would.UNKNOWN)]
)
def test_what_changes_by_itself_is_not_known(kind: str, verdict: Would, holds: bool) -> None:
    state = LicenseState.VALID if holds else LicenseState.CONDITION
    worth = Worth(state, standings=(Standing(kind, ("x",), holds, "x"),))
    found = told(tables(("narrow", "host")), actor(), {"narrow": worth})
    assert (found.verdict, found.reason) == (verdict, "condition")
    assert kind in found.why
    # A renewal without it is enough.
    beside = tables(("narrow", "host"), ("wide", "host"))
    assert told(beside, actor(), {"narrow": worth}).license == "wide"


def test_a_label_is_as_it_is_until_somebody_changes_it() -> None:
    label = Standing("label:region", ("eu",), False, "us", "the label region must be eu")
    worth = Worth(LicenseState.CONDITION, standings=(label,))
    found = told(tables(("narrow", "host")), actor(), {"narrow": worth})
    assert (found.verdict, found.reason) == (Would.DENY, "condition")
    # Hours change nothing where it must fail all the same.
    hours = Standing("hours", ("x",), False, "x")
    worse = Worth(LicenseState.CONDITION, standings=(label, hours))
    assert told(tables(("narrow", "host")), actor(), {"narrow": worse}).verdict is Would.DENY
    ended = Worth(LicenseState.EXPIRED, standings=(hours,))
    assert told(tables(("narrow", "host")), actor(), {"narrow": ended}).verdict is Would.DENY


def test_a_resource_that_is_gone_is_not_judged() -> None:
    found = told(tables(("narrow", "host")), actor(resource="old"))
    assert (found.verdict, found.license) == (Would.UNKNOWN, None)
    assert "no such resource" in found.why
    assert RuleFinder(Tables(), {}).find(actor()) == Candidates(why_not=found.why)


def test_sockets_of_other_families_are_refused_where_no_resource_names_them() -> None:
    other = actor(resource="other-families")
    found = told(tables(("narrow", "host")), other)
    assert (found.verdict, found.reason) == (Would.DENY, "no_binding")
    raw = '[[resource]]\nname = "raw"\nkind = "network"\n'
    raw += 'destinations = [{ cidr = "0.0.0.0/0", protocol = "other" }]\n'
    raw += '[[binding]]\nlicense = "wide"\nselectors = ["unix:uid:1000"]\n'
    wide = license_("wide", 2, entitlements=(Entitlement("raw"),))
    policy = parse_policy([("test.toml", RESOURCE + raw)], known_licenses={"wide"})
    named = compile_policy(policy, {"wide": wide}, Numbers(), lambda _name: None)
    assert told(named, other, licenses=[wide]).license == "wide"
    assert told(named, other._replace(uid=5), licenses=[wide]).verdict is Would.DENY
    nothing = compile_policy(parse_policy([]), {}, Numbers(), lambda _name: None)
    assert told(nothing, other).verdict is Would.UNKNOWN
