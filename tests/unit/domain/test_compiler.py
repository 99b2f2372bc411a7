# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from licagent.domain import networks
from licagent.domain.compiler import compile_policy
from licagent.domain.config import RESOLVERS, FailsafeSetting
from licagent.domain.decision import Decision, Subject, decide
from licagent.domain.failsafe import FailsafeEntry, failsafe_entries
from licagent.domain.license import LicenseState
from licagent.domain.policy import PolicyError, PolicyProblem, parse_policy
from licagent.domain.ports import PortRange
from licagent.domain.reason import Reason, Verdict
from licagent.domain.tables import (
    Protocol,
    RuleKey,
    Scope,
    ScopeKind,
    Shape,
    Tables,
)
from lictoken.claims import Entitlement, License, Limit

Make = Callable[..., License]
USERS = {"postgres": 70, "pg": 70, "bob": 1000}
DB = (
    '[[resource]]\nname = "db"\nkind = "network"\nmode = "enforce"\n'
    'destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"], protocol = "tcp" }]\n'
)
WEB = '[[resource]]\nname = "web"\nkind = "service"\nmode = "enforce"\nports = ["443"]\n'
IN_DB = 0x0A000507


def binding(*selectors: str, license_id: str = "acme", more: str = "") -> str:
    words = ", ".join(f'"{entry}"' for entry in selectors)
    return f'[[binding]]\nlicense = "{license_id}"\nselectors = [{words}]\n{more}'


@pytest.fixture
def tables_of(counting: type[Any]) -> Callable[..., Tables]:
    def compiled(text: str, *licenses: License, failsafe: Sequence[FailsafeEntry] = ()) -> Tables:
        by_id: Mapping[str, License] = {entry.jti: entry for entry in licenses}
        policy = parse_policy([("p.toml", text)])
        return compile_policy(
            policy, by_id, counting(), USERS.get, failsafe, groups={"wheel": 10}.get
        )

    return compiled


def refused(compiled: Callable[..., Tables], *args: Any) -> PolicyProblem:
    with pytest.raises(PolicyError) as caught:
        compiled(*args)
    (problem,) = caught.value.problems
    assert problem.file == "p.toml"
    assert problem.suggestion
    return problem


def test_selectors_become_a_key(tables_of: Callable[..., Tables], make_license: Make) -> None:
    selectors = ("unix:user:postgres", "unix:group:wheel", "unix:path:/bin/psql", "host")
    selectors = (*selectors, "systemd:unit:orders.service", "unix:sha256:" + "ab" * 32)
    tables = tables_of(DB + binding(*selectors), make_license("acme", 7, "db"))
    (rule,) = tables.rules
    assert rule.key == RuleKey(1, path=1, digest=1, scope=1, uid=70, gid=10)
    assert (rule.number, rule.licenses, rule.binding) == (1, (7,), "acme/1")
    assert rule.selectors == selectors
    assert rule.source == "p.toml:6"
    assert tables.shapes == (Shape(31),)
    assert tables.scopes == (Scope(1, ScopeKind.UNIT, "orders.service"),)
    assert tables.paths == ((1, "/bin/psql"),)
    assert tables.digests == ((1, "ab" * 32),)
    assert [(entry.number, entry.name, entry.enforce) for entry in tables.resources] == [
        (1, "db", True)
    ]


def test_shapes_come_most_specific_first(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    text = DB + binding("unix:uid:1") + binding("host") + binding("unix:path:/bin/a", "unix:gid:1")
    tables = tables_of(text, make_license("acme", 7, "db"))
    assert tables.shapes == (Shape.PATH | Shape.GID, Shape.UID, Shape.HOST)


def test_the_license_s_own_selectors_hold_too(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    license_ = make_license("acme", 7, "db", selectors=("unix:path:/bin/psql",))
    (rule,) = tables_of(DB + binding("unix:uid:5"), license_).rules
    assert rule.key == RuleKey(1, path=1, uid=5)
    assert rule.selectors == ("unix:uid:5", "unix:path:/bin/psql")


@pytest.mark.parametrize(
    ("selectors", "words"),
    [
        (("unix:uid:1", "unix:uid:2"), "two bindings"),
        (("unix:user:bob", "unix:uid:70"), "two bindings"),
        (("unix:path:/a", "unix:path:/b"), "two bindings"),
        (("unix:sha256:" + "a" * 64, "unix:sha256:" + "b" * 64), "two bindings"),
        (("systemd:slice:a.slice", "systemd:unit:b.service"), "deeper one"),
        (("cgroup:path:/a", "cgroup:path:/ab"), "deeper one"),
        (("unix:user:nobody-here",), "getent passwd"),
        (("unix:group:nobody-here",), "getent group"),
    ],
)
def test_selectors_that_cannot_hold(
    tables_of: Callable[..., Tables], make_license: Make, selectors: tuple[str, ...], words: str
) -> None:
    problem = refused(tables_of, DB + binding(*selectors), make_license("acme", 7, "db"))
    assert (problem.line, problem.key) == (6, "binding.selectors")
    assert words in problem.suggestion


@pytest.mark.parametrize(
    ("selectors", "name"),
    [
        (("cgroup:path:/a/b", "cgroup:path:/a"), "/a/b"),
        (("systemd:slice:a.slice", "cgroup:path:/a.slice/x.service"), "/a.slice/x.service"),
        (("container:id:" + "ab" * 6, "container:id:" + "ab" * 32), "ab" * 32),
        (("cgroup:path:/a", "cgroup:path:/a"), "/a"),
    ],
)
def test_a_scope_in_another_is_the_one_that_counts(
    tables_of: Callable[..., Tables], make_license: Make, selectors: tuple[str, ...], name: str
) -> None:
    tables = tables_of(DB + binding(*selectors), make_license("acme", 7, "db"))
    assert [scope.name for scope in tables.scopes] == [name]


def test_a_slice_below_a_service_is_no_systemd_slice(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    text = DB + binding("systemd:slice:a.slice", "cgroup:path:/x.service/a.slice/b")
    assert "deeper" in refused(tables_of, text, make_license("acme", 7, "db")).suggestion


def test_two_names_of_one_user_are_one(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    text = DB + binding("unix:user:postgres", "unix:user:pg", "unix:uid:70")
    assert tables_of(text, make_license("acme", 7, "db")).rules[0].key.uid == 70


def test_renewals_stand_beside_each_other(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    licenses = [make_license(f"l{n}", n, "db", expires_at_s=2_000 + n % 3) for n in range(1, 5)]
    text = DB + "".join(binding("unix:uid:1", license_id=entry.jti) for entry in licenses)
    (rule,) = tables_of(text, *licenses).rules
    assert rule.licenses == (2, 1, 4, 3)
    assert rule.binding == "l1/1, l2/1, l3/1, l4/1"
    licenses.append(make_license("l5", 5, "db"))
    text += binding("unix:uid:1", license_id="l5")
    assert refused(tables_of, text, *licenses).key == "binding.license"


def test_the_same_license_twice_is_one_alternative(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    text = DB + binding("unix:uid:70") + binding("unix:user:postgres")
    (rule,) = tables_of(text, make_license("acme", 7, "db")).rules
    assert rule.licenses == (7,)


def test_a_binding_may_ask_for_less(tables_of: Callable[..., Tables], make_license: Make) -> None:
    text = DB + WEB + binding("unix:uid:1", more='resources = ["web"]\n') + binding("unix:uid:2")
    tables = tables_of(text, make_license("acme", 7, "db", "web"))
    assert [(rule.key.resource, rule.key.uid) for rule in tables.rules] == [(2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("text", "resources", "place", "words"),
    [
        (DB + binding("host", license_id="acne"), ("db",), (6, "binding.license"), '"acme"'),
        (DB, ("db",), (1, "resource"), 'license = "acme"'),
        (DB + binding("host"), ("other",), (1, "resource"), "issued"),
        (
            DB + WEB + binding("host") + binding("unix:uid:1", more='resources = ["web"]\n'),
            ("db",),
            (14, "binding.resources"),
            "it entitles db",
        ),
    ],
)
def test_what_no_license_grants(
    tables_of: Callable[..., Tables],
    make_license: Make,
    *,
    text: str,
    resources: tuple[str, ...],
    place: tuple[int, str],
    words: str,
) -> None:
    with pytest.raises(PolicyError) as caught:
        tables_of(text, make_license("acme", 7, *resources))
    found = {(problem.line, problem.key): problem for problem in caught.value.problems}
    assert words in found[place].suggestion


def test_the_action_must_fit_the_kind(tables_of: Callable[..., Tables], make_license: Make) -> None:
    license_ = make_license("acme", 7, entitlements=(Entitlement("web", ("connect",)),))
    text = WEB + binding("host", more='resources = ["web"]\n')
    with pytest.raises(PolicyError) as caught:
        tables_of(text, license_)
    assert any("the action bind" in problem.suggestion for problem in caught.value.problems)


def test_license_numbers_are_unique(tables_of: Callable[..., Tables], make_license: Make) -> None:
    licenses = (make_license("acme", 7, "db"), make_license("other", 7, "db"))
    assert "number 7" in refused(tables_of, DB + binding("host"), *licenses).message


def test_a_license_whose_selector_is_not_understood(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    license_ = make_license("acme", 7, "db", selectors=("unix:uid:bob",))
    with pytest.raises(PolicyError) as caught:
        tables_of(DB + binding("host"), license_)
    assert [problem.key for problem in caught.value.problems] == ["resource", "binding.license"]


def use(tables: Tables, subject: Subject = Subject(), **flow: Any) -> Decision:  # noqa: B008
    states = dict.fromkeys(range(10), LicenseState.VALID)
    fields = {"family": 4, "address": IN_DB, "protocol": Protocol.TCP, "port": 5432} | flow
    return decide(tables, states, subject, **fields)


def test_what_cannot_be_honoured_denies_and_opens_no_wider_binding(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    limited = Entitlement("db", limits=(Limit("egress_bytes", 5),))
    licenses = (
        make_license("limited", 8, entitlements=(limited,)),
        make_license("acme", 7, "db"),
    )
    tables = tables_of(
        DB + binding("unix:uid:5", license_id="limited") + binding("host"), *licenses
    )
    denied = use(tables, Subject(uid=5))
    assert (denied.verdict, denied.reason) == (Verdict.DENY, Reason.CONDITION)
    assert use(tables, Subject(uid=6)).license == 7


@pytest.fixture
def failsafe_tables(tables_of: Callable[..., Tables], make_license: Make) -> Tables:
    wide = DB.replace(', ports = ["5432"], protocol = "tcp"', "")
    failsafe = (
        FailsafeEntry("out", None, Protocol.UDP, 53),
        FailsafeEntry("out", "::ffff:10.0.5.9/128", Protocol.TCP, PortRange(440, 450)),
        FailsafeEntry("in", None, Protocol.TCP, 22),
    )
    license_ = make_license("acme", 7, "db", "web")
    return tables_of(wide + WEB + binding("unix:uid:5"), license_, failsafe=failsafe)


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        ({"protocol": Protocol.UDP, "port": 53}, Reason.FAILSAFE),
        ({"protocol": Protocol.UDP, "port": 54}, Reason.NO_BINDING),
        ({"address": IN_DB + 2, "port": 443}, Reason.FAILSAFE),
        ({"address": IN_DB + 2, "port": 451}, Reason.NO_BINDING),
        ({"address": IN_DB + 3, "port": 443}, Reason.NO_BINDING),
        ({"address": 0x08080808, "protocol": Protocol.UDP, "port": 53}, Reason.NO_RESOURCE),
        ({"direction": "in", "port": 22}, Reason.FAILSAFE),
        ({"direction": "in", "port": 443}, Reason.NO_BINDING),
        ({"direction": "in", "port": 80}, Reason.NO_RESOURCE),
    ],
)
def test_failsafe_wins_at_its_ports_only(
    failsafe_tables: Tables, flow: dict[str, Any], reason: Reason
) -> None:
    assert use(failsafe_tables, **flow).reason is reason


def test_failsafe_gives_no_class_to_addresses_that_no_resource_names(
    failsafe_tables: Tables,
) -> None:
    lowest = min(entry.prefix_length for entry in failsafe_tables.networks)
    assert lowest == 24
    assert all(entry.family == 4 for entry in failsafe_tables.networks)


def test_failsafe_settings_become_entries() -> None:
    settings = (
        FailsafeSetting("out", "any", ("53", "67-68"), "udp"),
        FailsafeSetting("out", "10.0.0.1/32", (), "any"),
        FailsafeSetting("in", "any", ("22",), "tcp"),
        FailsafeSetting("out", RESOLVERS, ("53",), "tcp"),
    )
    assert failsafe_entries(settings, ("10.0.0.53", "fd00::53")) == (
        FailsafeEntry("out", None, Protocol.UDP, PortRange(53, 53)),
        FailsafeEntry("out", None, Protocol.UDP, PortRange(67, 68)),
        FailsafeEntry("out", "10.0.0.1/32", None, None),
        FailsafeEntry("in", None, Protocol.TCP, PortRange(22, 22)),
        FailsafeEntry("out", "10.0.0.53", Protocol.TCP, PortRange(53, 53)),
        FailsafeEntry("out", "fd00::53", Protocol.TCP, PortRange(53, 53)),
    )


@pytest.mark.parametrize(
    "entry",
    [("up", None, None, 1), ("in", "10.0.0.0/8", None, 1), ("out", None, Protocol.ICMP, 1)],
)
def test_impossible_failsafe(entry: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"direction|inbound|ports"):
        FailsafeEntry(*entry)


def test_networks_with_equal_ports_share_a_class(
    tables_of: Callable[..., Tables], make_license: Make
) -> None:
    same = '{ cidr = "10.0.5.8/29", ports = ["5432"], protocol = "tcp" }'
    text = DB.replace('"tcp" }]', f'"tcp" }}, {same}, {{ cidr = "10.9.0.0/16" }}]')
    tables = tables_of(text + binding("host"), make_license("acme", 7, "db"))
    found = [(entry.prefix_length, entry.class_number) for entry in tables.networks]
    assert found == [(24, 1), (16, 2)]


def test_a_policy_too_large_for_the_kernel_is_refused(
    tables_of: Callable[..., Tables], make_license: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "PORT_PREFIXES_MAX", 10)
    text = DB.replace('["5432"]', '["1-65535"]')
    problem = refused(tables_of, text + WEB + binding("host"), make_license("acme", 7, "db", "web"))
    assert problem.key == "resource.destinations"


def test_many_bindings_and_networks(tables_of: Callable[..., Tables], make_license: Make) -> None:
    text = "".join(
        f'[[resource]]\nname = "n{n}"\nkind = "network"\n'
        f'destinations = [{{ cidr = "10.{n >> 8}.{n & 255}.0/24" }}]\n'
        for n in range(2_000)
    ) + "".join(
        binding(f"unix:uid:{n}", more=f'resources = ["n{n % 2_000}"]\n') for n in range(10_000)
    )
    failsafe = (FailsafeEntry("out", None, Protocol.UDP, 53),)
    license_ = make_license("acme", 7, *(f"n{n}" for n in range(2_000)))
    tables = tables_of(text, license_, failsafe=failsafe)
    assert (len(tables.networks), len(tables.rules)) == (2_000, 10_000)
    assert len(tables.ports) == 2_000 * 6  # five protocols, and DNS


def test_an_enforced_resource_that_nobody_can_reach_is_refused(
    tables_of: Callable[..., Tables],
) -> None:
    problem = refused(tables_of, DB)
    assert problem.line == 1
    assert "nobody can reach" in problem.message


def test_an_observed_resource_may_have_no_binding_yet(tables_of: Callable[..., Tables]) -> None:
    tables = tables_of(DB.replace("enforce", "observe"))
    assert tables.rules == ()
    assert tables.networks


def test_a_policy_that_was_good_is_enforced_when_its_licenses_are_gone(
    counting: type[Any], make_license: Make
) -> None:
    policy = parse_policy(
        [("a.toml", DB + binding("unix:user:gone") + binding("host", license_id="b"))]
    )

    def compiled(licenses: dict[str, License], **options: Any) -> Tables:
        return compile_policy(policy, licenses, counting(), lambda _name: None, **options)

    with pytest.raises(PolicyError):
        compiled({})
    tables = compiled({}, lenient=True)
    assert tables.networks
    assert not tables.rules
    assert use(tables).reason is Reason.NO_BINDING
    # What is still good of it grants as before.
    left = compiled({"b": make_license("b", 2, "db")}, lenient=True)
    assert [rule.licenses for rule in left.rules] == [(2,)]
