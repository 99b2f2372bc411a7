# SPDX-License-Identifier: Apache-2.0
"""Which license compute and storage use is charged to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.attribution import (
    EMPTY,
    NOTHING,
    Attribution,
    AttributionTable,
    Claim,
    attribute,
)
from licagent.domain.decision import PolicyIndex, Subject
from licagent.domain.policy import parse_policy
from licagent.domain.rules import Folder
from licagent.domain.tables import Rule, RuleKey, Shape, Tables
from lictoken.claims import License

Make = Callable[..., License]

CPU = '[[resource]]\nname = "cpu"\nkind = "compute"\nmode = "observe"\n'
GPU = '[[resource]]\nname = "gpu"\nkind = "compute"\nmode = "observe"\n'
DISK = '[[resource]]\nname = "disk"\nkind = "storage"\nmode = "observe"\npaths = ["/srv"]\n'


def bind(license_id: str, *selectors: str, resources: Iterable[str] = ()) -> str:
    words = ", ".join(f'"{each}"' for each in selectors)
    names = ", ".join(f'"{each}"' for each in resources)
    more = f"resources = [{names}]\n" if names else ""
    label = selectors[0].replace("/", "-")
    name = f'name = "{license_id}-{label}"\n'
    return f'[[binding]]\n{name}license = "{license_id}"\nselectors = [{words}]\n{more}'


@pytest.fixture
def table_of(counting: type[Any]) -> Callable[..., AttributionTable]:
    def make(text: str, *licenses: License) -> AttributionTable:
        folder = Folder(counting(), {"postgres": 70}.get, {"wheel": 10}.get)
        policy = parse_policy([("p.toml", text)])
        return attribute(policy, {each.jti: each for each in licenses}, folder)

    return make


def test_a_policy_without_compute_and_storage_costs_nothing(
    table_of: Callable[..., AttributionTable],
) -> None:
    network = (
        '[[resource]]\nname = "db"\nkind = "network"\ndestinations = [{ cidr = "10.0.0.1" }]\n'
    )
    assert table_of(network) is EMPTY
    assert EMPTY.of(Subject(uid=1, gid=1), frozenset()) == NOTHING


def test_the_most_specific_binding_is_charged(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    licenses = [make_license(jti, number, "cpu") for number, jti in enumerate("abcd", 1)]
    table = table_of(
        CPU
        + bind("a", "host")
        + bind("b", "unix:uid:5")
        + bind("c", "systemd:unit:x.service")
        + bind("d", "unix:path:/bin/x"),
        *licenses,
    )
    valid = frozenset("abcd")
    assert table.of(Subject(uid=1, gid=1), valid).license == "a"
    assert table.of(Subject(uid=5, gid=1), valid).license == "b"
    assert table.of(Subject(uid=5, gid=1, scopes=(9, 1)), valid).license == "c"
    found = table.of(Subject(uid=5, gid=1, scopes=(1,), path=1), valid)
    assert found == Attribution("d", "cpu", "d-unix:path:-bin-x")


def test_a_license_that_ended_makes_it_shadow_usage(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    table = table_of(
        CPU + bind("a", "host") + bind("b", "unix:uid:5"),
        make_license("a", 1, "cpu"),
        make_license("b", 2, "cpu"),
    )
    # There is no way back to a wider binding, as in the kernel.
    assert table.of(Subject(uid=5, gid=1), frozenset("a")) == Attribution("", "cpu")


def test_a_renewal_beside_the_license_is_tried_too(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    table = table_of(
        CPU + bind("old", "host") + bind("new", "host"),
        make_license("old", 1, "cpu"),
        make_license("new", 2, "cpu", expires_at_s=9_000),
    )
    subject = Subject(uid=5, gid=1)
    assert table.of(subject, frozenset(("old", "new"))).license == "new"
    assert table.of(subject, frozenset(("old",))).license == "old"


def test_use_is_charged_once_where_two_resources_match(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    table = table_of(
        CPU + GPU + bind("a", "host") + bind("b", "host"),
        make_license("a", 1, "cpu"),
        make_license("b", 2, "gpu"),
    )
    subject = Subject(uid=5, gid=1)
    assert table.of(subject, frozenset("ab")).resource == "cpu"
    assert table.of(subject, frozenset("b")).resource == "gpu"
    assert table.of(subject, frozenset()) == Attribution("", "cpu")


def test_who_is_bound_to_nothing_uses_the_only_compute_resource(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    license_ = make_license("a", 1, "cpu", "gpu")
    subject = Subject(uid=5, gid=1)
    one = table_of(CPU + bind("a", "unix:uid:7"), license_)
    two = table_of(CPU + GPU + bind("a", "unix:uid:7"), license_)
    assert one.of(subject, frozenset("a")) == Attribution("", "cpu")
    assert two.of(subject, frozenset("a")) == NOTHING


def test_footprints_belong_to_the_license_of_their_resource(
    table_of: Callable[..., AttributionTable], make_license: Make
) -> None:
    a, b, c = (make_license(jti, number, "disk") for number, jti in enumerate("abc", 1))
    valid = frozenset("abc")
    one = table_of(DISK + bind("a", "systemd:unit:x.service"), a)
    assert one.of_footprint("disk", None, valid).license == "a"
    assert one.of_footprint("disk", None, frozenset()) == Attribution("", "disk")
    assert one.of_footprint("other", None, valid) == Attribution("", "other")
    several = table_of(DISK + bind("a", "unix:uid:5") + bind("b", "unix:uid:6"), a, b)
    assert several.of_footprint("disk", None, valid) == Attribution("", "disk")
    assert several.of_footprint("disk", 6, valid).license == "b"
    wide = table_of(DISK + bind("a", "unix:uid:5") + bind("c", "host"), a, c)
    assert wide.of_footprint("disk", None, valid).license == "c"


@given(data=st.data())
def test_it_agrees_with_the_kernel_s_order(data: st.DataObject) -> None:
    """The same keys as rules of one resource, looked up by the model of the kernel's tables."""
    small = st.integers(0, 2)
    owner = st.sampled_from((0, 1, 0xFFFFFFFF))
    keys = data.draw(st.lists(st.tuples(small, small, small, owner, owner), unique=True))
    subject = Subject(
        data.draw(small),
        data.draw(small),
        tuple(data.draw(st.lists(st.integers(1, 3), unique=True))),
        data.draw(st.integers(0, 2)),
        data.draw(st.integers(0, 2)),
    )
    rules = tuple(
        Rule(number, RuleKey(1, *key), (number,), "", (), "") for number, key in enumerate(keys, 1)
    )
    shapes: tuple[Shape, ...] = tuple(sorted({rule.key.shape for rule in rules}, reverse=True))
    expected = PolicyIndex(Tables(rules=rules, shapes=shapes)).rule_of(1, subject)

    compute = {key: (Claim("cpu", ((str(number), ""),)),) for number, key in enumerate(keys, 1)}
    table = AttributionTable(compute, shapes)
    found = table.of(subject, frozenset(map(str, range(1, len(keys) + 1))))
    assert found.license == ("" if expected is None else str(expected.number))
