# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.policy import (
    Destination,
    Policy,
    PolicyError,
    PolicyProblem,
    ResourceKind,
    parse_policy,
)
from licagent.domain.ports import PortRange
from licagent.domain.selector import parse
from licagent.domain.tables import Protocol

GOOD = """\
[[resource]]
name = "orders-db"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "10.0.5.0/24", ports = ["5432", "6432-6440"], protocol = "tcp" }]

[[binding]]
license = "acme"
selectors = ["systemd:unit:orders.service"]
"""


def refused(text: str, known: set[str] | None = None) -> tuple[PolicyProblem, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_policy([("p.toml", text)], known)
    return caught.value.problems


def test_reads_a_policy() -> None:
    policy = parse_policy([("orders.toml", GOOD)], {"acme"})
    (resource,), (binding,) = policy.resources, policy.bindings
    assert (resource.name, resource.kind, resource.enforce) == (
        "orders-db",
        ResourceKind.NETWORK,
        True,
    )
    ports = (PortRange(5432, 5432), PortRange(6432, 6440))
    assert resource.destinations == (Destination(4, 0x0A000500, 24, ports, (Protocol.TCP,), 0),)
    assert (resource.source, binding.source) == ("orders.toml:1", "orders.toml:7")
    assert binding.name == "acme/1"
    assert binding.selectors == (parse("systemd:unit:orders.service"),)
    assert binding.resources is None


def test_observes_by_default() -> None:
    policy = parse_policy([("p.toml", GOOD.replace('mode = "enforce"\n', ""))])
    assert not policy.resources[0].enforce


def test_nothing_is_a_policy() -> None:
    assert parse_policy([]) == Policy()
    assert parse_policy([("empty.toml", "# nothing yet\n")]) == Policy()


def network(destination: str) -> str:
    return f'[[resource]]\nname = "n"\nkind = "network"\ndestinations = [\n  {destination},\n]\n'


@pytest.mark.parametrize(
    ("destination", "places"),
    [
        ('{ cidr = "any" }', [(4, 0, 0), (6, 0, 0)]),
        ('{ cidr = "10.1.2.3" }', [(4, 0x0A010203, 32)]),
        ('{ cidr = "2001:db8::/32" }', [(6, 0x20010DB8 << 96, 32)]),
        ('{ cidr = "::ffff:10.0.0.0/104" }', [(4, 0x0A000000, 8)]),
        ('{ cidr = "::ffff:0:0/96" }', [(4, 0, 0)]),
    ],
)
def test_one_form_for_every_network(destination: str, places: list[tuple[int, int, int]]) -> None:
    (resource,) = parse_policy([("p.toml", network(destination))]).resources
    assert [(d.family, d.address, d.prefix_length) for d in resource.destinations] == places


def test_ports_belong_to_the_protocols_that_have_some() -> None:
    named = parse_policy([("p.toml", network('{ cidr = "10.0.0.0/8", ports = [53] }'))])
    (destination,) = named.resources[0].destinations
    assert destination.protocols == (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
    assert destination.ports == (PortRange(53, 53),)
    (everything,) = parse_policy([("p.toml", network('{ cidr = "10.0.0.0/8" }'))]).resources
    assert set(everything.destinations[0].protocols) == set(Protocol)


@pytest.mark.parametrize(
    ("destination", "key", "suggestion"),
    [
        ('{ cidr = "10.0.5.1/24" }', "cidr", '"10.0.5.0/24"'),
        ('{ cidr = "2001:db8::1/64" }', "cidr", '"2001:db8::/64"'),
        ('{ cidr = "10.0.0.0/33" }', "cidr", ""),
        ('{ cidr = "10.0.0/24" }', "cidr", '"10.0.0.0/24"'),
        ('{ cidr = "10.0.0.256/32" }', "cidr", "0 to 255"),
        ('{ cidr = "010.0.0.0/8" }', "cidr", '"10.0.0.0/8"'),
        ('{ cidr = "10.0.0.0/255.0.0.0" }', "cidr", '"10.0.0.0/8"'),
        ('{ cidr = "10.0.0.0/" }', "cidr", ""),
        ('{ cidr = "db.example.com" }', "cidr", "addresses"),
        ('{ cidr = "10.0.0.1:5432" }', "cidr", "ports"),
        ('{ cidr = "[::1]" }', "cidr", "brackets"),
        ('{ cidr = "*" }', "cidr", '"any"'),
        ('{ cidr = "fe80::1%eth0" }', "cidr", '"fe80::1"'),
        ('{ cidr = "0.0.0.0" }', "cidr", '"127.0.0.0/8"'),
        ('{ cidr = "::" }', "cidr", '"::1/128"'),
        ('{ cidr = "" }', "cidr", ""),
        ("{ cidr = 10 }", "cidr", ""),
        ('{ cidr = "10.0.0.0/8", ports = ["70000"] }', "ports[0]", "65535"),
        ('{ cidr = "10.0.0.0/8", ports = ["1", true] }', "ports[1]", ""),
        ('{ cidr = "10.0.0.0/8", ports = [] }', "ports", ""),
        ('{ cidr = "10.0.0.0/8", ports = "1" }', "ports", ""),
        ('{ cidr = "10.0.0.0/8", ports = ["1"], protocol = "icmp" }', "ports", "leave"),
        ('{ cidr = "10.0.0.0/8", protocol = "tpc" }', "protocol", '"tcp"'),
        ('{ cidr = "10.0.0.0/8", prots = ["1"] }', "prots", '"ports"'),
        ('{ cidir = "10.0.0.0/8" }', "cidir", '"cidr"'),
        ('"10.0.0.0/8"', "", 'cidr = "10.0.0.0/8"'),
    ],
)
def test_bad_destination(destination: str, key: str, suggestion: str) -> None:
    wanted = "resource.destinations[0]" + (f".{key}" if key else "")
    found = [problem for problem in refused(network(destination)) if problem.key == wanted]
    assert len(found) == 1
    assert (found[0].file, found[0].line) == ("p.toml", 5)
    assert suggestion in found[0].suggestion


SERVICE = '[[resource]]\nname = "web"\nkind = "service"\nports = ["443"]\n'


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("resources = 1\n", 1, "resources", '"resource"'),
        ('[resource]\nname = "x"\n', 1, "resource", "[[resource]]"),
        ("resource = 3\n", 1, "resource", "[[resource]]"),
        ("binding = [3]\n", 1, "binding", "[[binding]]"),
        (SERVICE + 'mod = "enforce"\n', 5, "resource.mod", '"mode"'),
        (SERVICE + 'mode = "enforced"\n', 5, "resource.mode", '"enforce"'),
        (SERVICE + 'paths = ["/srv"]\n', 5, "resource.paths", "kind service"),
        (SERVICE + "description = 5\n", 5, "resource.description", "string"),
        ('[[resource]]\nkind = "feature"\n', 1, "resource", '"name" is missing'),
        ('[[resource]]\nname = "x"\n', 1, "resource", '"kind" is missing'),
        ('[[resource]]\nname = "x"\nkind = "netwrk"\n', 3, "resource.kind", '"network"'),
        ('[[resource]]\nname = "a b"\nkind = "feature"\n', 2, "resource.name", '"a-b"'),
        ('[[resource]]\nname = "x"\nkind = "network"\n', 1, "resource", "destinations"),
        ('[[resource]]\nname = "x"\nkind = "service"\n', 1, "resource", "ports"),
        (
            '[[resource]]\nname = "x"\nkind = "network"\nports = ["1"]\n',
            4,
            "resource.ports",
            "into each of the destinations",
        ),
        (
            '[[resource]]\nname = "x"\nkind = "storage"\nmode = "enforce"\n',
            4,
            "resource.mode",
            "cannot enforce",
        ),
        (
            '[[resource]]\nname = "x"\nkind = "storage"\npaths = ["srv"]\n',
            4,
            "resource.paths[0]",
            "/",
        ),
        (SERVICE + SERVICE, 5, "resource.name", "p.toml:1"),
        (SERVICE + SERVICE.replace("web", "Web"), 5, "resource.name", "case"),
        (SERVICE + SERVICE.replace("web", "api"), 8, "resource.ports", "narrower"),
        ('[[binding]]\nselectors = ["host"]\n', 1, "binding", '"license" is missing'),
        ('[[binding]]\nlicense = "acme"\n', 1, "binding.selectors", '["host"]'),
        ('[[binding]]\nlicense = "acme"\nselectors = []\n', 3, "binding.selectors", '["host"]'),
        ('[[binding]]\nlicense = "acme"\nselectors = "host"\n', 3, "binding.selectors", "array"),
        (
            '[[binding]]\nlicense = "acme"\nselectors = [\n  "host",\n  "unix:usr:bob",\n]\n',
            5,
            "binding.selectors[1]",
            "unix:user:bob",
        ),
        (
            '[[binding]]\nlicense = "acne"\nselectors = ["host"]\n',
            2,
            "binding.license",
            'did you mean "acme"?',
        ),
        (
            '[[binding]]\nlicense = "zzz"\nselectors = ["host"]\nresources = ["wep"]\n' + SERVICE,
            4,
            "binding.resources[0]",
            '"web"',
        ),
        (
            '[[binding]]\nlicense = "acme"\nselector = ["host"]\n',
            3,
            "binding.selector",
            '"selectors"',
        ),
        (
            '[[binding]]\nname = "b"\nlicense = "acme"\nselectors = ["host"]\n' * 2,
            5,
            "binding.name",
            "p.toml:1",
        ),
        ("a = \n", 1, "", "not TOML"),
        ('x = "1"\nx = "2"\n', 2, "", "not TOML"),
        ("\ufeffx = 1\n", 1, "", "byte order mark"),
        ("a = " + "[" * 5000, 1, "", ""),
        ("a = " + "1" * 5000, 1, "", "not TOML"),
    ],
)
def test_bad_policy_is_refused_with_place_and_suggestion(
    text: str, line: int, key: str, words: str
) -> None:
    found = [problem for problem in refused(text, {"acme"}) if problem.key == key]
    assert [(problem.file, problem.line) for problem in found][:1] == [("p.toml", line)]
    assert words in str(found[0])


def test_all_problems_are_told_at_once_in_the_order_of_the_files() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy([("b.toml", network('{ cidr = "x" }')), ("a.toml", GOOD + "oops = 1\n")])
    assert [problem.file for problem in caught.value.problems] == ["a.toml", "b.toml"]
    assert "2 problems" in str(caught.value)
    assert 'a.toml:10: binding.oops: unknown key "oops"' in str(caught.value)


def test_a_resource_that_cannot_be_read_is_not_also_reported_missing() -> None:
    text = (
        '[[resource]]\nname = "x"\nkind = "?"\n'
        '[[binding]]\nlicense = "acme"\nselectors = ["host"]\nresources = ["x"]\n'
    )
    assert [problem.key for problem in refused(text)] == ["resource.kind"]


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ('cidr = "10.0.0.0/8"', 'cidr = "10.0.0.0/8"', True),
        ('cidr = "10.0.0.0/8"', 'cidr = "::ffff:10.0.0.0/104"', True),
        ('cidr = "10.0.0.0/8"', 'cidr = "10.0.0.0/9"', False),
        ('cidr = "10.0.0.0/8"', 'cidr = "10.0.0.0/8", ports = ["1"]', False),
        ('cidr = "10.0.0.0/8", ports = ["1-5"]', 'cidr = "10.0.0.0/8", ports = ["5-9"]', True),
        ('cidr = "10.0.0.0/8", ports = ["1-5"]', 'cidr = "10.0.0.0/8", ports = ["5-6"]', False),
        ('cidr = "10.0.0.0/8", ports = ["1-5"]', 'cidr = "10.0.0.0/8", ports = ["6-10"]', False),
        ('cidr = "10.0.0.0/8", protocol = "tcp"', 'cidr = "10.0.0.0/8", protocol = "udp"', False),
        ('cidr = "any", protocol = "icmp"', 'cidr = "::/0", protocol = "icmp"', True),
    ],
)
def test_two_resources_cannot_name_one_destination(one: str, other: str, conflict: bool) -> None:
    text = network(f"{{ {one} }}") + network(f"{{ {other} }}").replace('"n"', '"m"')
    if not conflict:
        parse_policy([("p.toml", text)])
        return
    (problem,) = refused(text)
    assert (problem.line, problem.key) == (11, "resource.destinations[0]")
    assert '"n" (p.toml:5)' in problem.message


def test_one_resource_may_name_its_destinations_twice() -> None:
    entry = '{ cidr = "10.0.0.0/8" }'
    parse_policy([("p.toml", network(f"{entry}, {entry}"))])


def test_twenty_thousand_wrong_bindings_are_all_named() -> None:
    text = GOOD + "".join(
        f'[[binding]]\nlicense = "acme"\nselectors = ["host"]\nresources = ["orders-{n}"]\n'
        for n in range(20_000)
    )
    problems = refused(text)
    assert len(problems) == 20_000
    assert problems[0].suggestion == 'did you mean "orders-db"?'


KEYS = st.sampled_from(
    [
        "resource",
        "binding",
        "name",
        "kind",
        "mode",
        "destinations",
        "cidr",
        "ports",
        "protocol",
        "license",
        "selectors",
        "resources",
        "paths",
        "description",
        "x",
    ]
)
WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "network",
        "service",
        "storage",
        "any",
        "tcp",
        "icmp",
        "10.0.0.0/8",
        "::/0",
        "host",
        "1-2",
        "unix:uid:1",
        "enforce",
        "fe80::1%x/64",
        "0" * 400 + ".1.1.1",
        "\ud800",
        "1.2.3.4/\u0663",
    ]
)
VALUES = st.recursive(
    WORDS | st.integers() | st.booleans() | st.floats() | st.just("\x00"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "resource": st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=3) | VALUES,
        "binding": st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=3) | VALUES,
        "x": VALUES,
    },
)


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            escaped = "".join(
                f"\\u{ord(c):04x}" if ord(c) < 32 or c in '"\\\x7f' else c for c in value
            )
            return f'"{escaped}"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return (
                "{"
                + ", ".join(f"{toml(key)} = {toml(entry)}" for key, entry in value.items())
                + "}"
            )
        case _:
            return str(value)


@given(DOCUMENTS)
def test_any_document_is_a_policy_or_a_policy_error(document: dict[str, object]) -> None:
    text = "".join(f"{key} = {toml(value)}\n" for key, value in document.items())
    problems: tuple[PolicyProblem, ...] = ()
    try:
        parse_policy([("p.toml", text)], {"acme"})
    except PolicyError as error:
        problems = error.problems
        str(error).encode()  # what is shown can be printed, whatever the file held
    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in problems)
    assert all(problem.message for problem in problems)


@given(st.text() | st.text("[]{}\"'=,.#\n\\ab1-:", max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        parse_policy([("p.toml", text), ("q.toml", GOOD)])
    except PolicyError as error:
        str(error).encode()
