# SPDX-License-Identifier: Apache-2.0
"""A policy whose bindings were exchanged is the policy that is compiled from the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licagent.domain.compiler import PolicyCompiler
from licagent.domain.decision import PolicyIndex, Subject
from licagent.domain.policy_documents import CONTROL_PLANE, Document, DocumentKind, parse_documents
from licagent.domain.policy_model import Binding, Policy
from licagent.domain.problem import PolicyError
from licagent.domain.rulebook import RuleBook, RuleChange, amend_order
from licagent.domain.rules import Folder
from licagent.domain.tables import Rule, RuleKey, Tables
from lictoken.claims import License

RESOURCES = parse_documents(
    Document(
        DocumentKind.RESOURCE,
        name,
        b'{"kind":"network","mode":"enforce","destinations":[{"cidr":"10.0.%d.0/24"}]}' % number,
    )
    for number, name in enumerate(("db", "web"), 1)
).resources

SELECTORS = ("host", "unix:uid:1", "unix:uid:2", "unix:gid:5", "unix:path:/bin/a",
             "systemd:unit:a.service", "unix:user:bob")  # fmt: skip


def binding(name: str, license_: str, selectors: tuple[str, ...], only: str = "") -> Binding:
    import json

    table: dict[str, Any] = {"license": license_, "selectors": list(selectors)}
    if only:
        table["resources"] = [only]
    document = Document(DocumentKind.BINDING, name, json.dumps(table).encode())
    return parse_documents([document]).bindings[0]


BINDINGS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "e"]),
    st.tuples(
        st.sampled_from(["one", "two", "three", "gone"]),
        st.sets(st.sampled_from(SELECTORS), min_size=1, max_size=2).map(lambda s: tuple(sorted(s))),
        st.sampled_from(["", "db", "web", "of-nobody"]),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def licenses(make_license: Callable[..., License]) -> Mapping[str, License]:
    return {
        "one": make_license("one", 1, "db", "web"),
        "two": make_license("two", 2, "db", expires_at_s=3_000),
        "three": make_license("three", 3, "web", selectors=("unix:gid:5",)),
    }


def is_tolerated(problem: Any) -> bool:
    return bool(problem.absent)


@pytest.fixture(scope="module")
def compiled(
    licenses: Mapping[str, License], counting: type[Any]
) -> Callable[..., tuple[PolicyCompiler, Tables]]:
    def build(
        bindings: Mapping[str, Binding], numbering: Any = None
    ) -> tuple[PolicyCompiler, Tables]:
        ordered = tuple(bindings[name] for name in sorted(bindings))
        folder = Folder(numbering or counting(), {"bob": 2}.get, {}.get)
        compiler = PolicyCompiler(Policy(RESOURCES, ordered), licenses, folder, frozenset())
        return compiler, compiler.compile((), lenient=False, tolerated=is_tolerated)

    return build


def meaning(tables: Tables) -> dict[RuleKey, tuple[Any, ...]]:
    return {
        rule.key: (rule.licenses, rule.binding, rule.selectors, rule.source)
        for rule in tables.rules
    }


def made(described: Mapping[str, tuple[str, tuple[str, ...], str]]) -> dict[str, Binding] | None:
    return {name: binding(name, *each) for name, each in described.items()}


@settings(max_examples=300, deadline=None)
@given(BINDINGS, st.lists(BINDINGS, min_size=1, max_size=4))
def test_exchanged_bindings_come_to_what_is_compiled_anew(
    compiled: Any, counting: type[Any], first: Any, later: list[Any]
) -> None:
    numbering = counting()
    held = made(first)
    try:
        compiler, tables = compiled(held, numbering)
    except PolicyError:
        return  # selectors of which no process has both
    book = RuleBook(compiler, tables, is_tolerated)
    for described in later:
        wanted = made(described)
        old = [each for name, each in held.items() if wanted.get(name) != each]
        new = [each for name, each in wanted.items() if held.get(name) != each]
        before = book.tables
        try:
            _, whole = compiled(wanted, numbering)
        except PolicyError:
            with pytest.raises(PolicyError):
                book.exchange(old, new)
            assert book.tables is before
            continue
        found = book.exchange(old, new)
        assert found is not None
        tables, change = found
        held = wanted
        assert meaning(tables) == meaning(whole)
        assert len({rule.number for rule in tables.rules}) == len(tables.rules)
        assert set(tables.shapes) >= set(whole.shapes)
        assert set(tables.scopes) >= set(whole.scopes)
        assert set(tables.paths) >= set(whole.paths)
        assert applied(before, change) == {rule.key: rule for rule in tables.rules}
        # Sockets that any of these rules let in are among those decided anew.
        for rule in (*before.rules, *tables.rules):
            if rule.key.resource in change.resources:
                assert set(rule.licenses) <= change.licenses


def applied(before: Tables, change: RuleChange) -> dict[RuleKey, Rule]:
    rules = {rule.key: rule for rule in before.rules}
    for rule in change.removed:
        del rules[rule.key]
    for old, new in change.changed:
        assert rules[old.key] == old
        rules[new.key] = new
    for rule in change.added:
        assert rule.key not in rules
        rules[rule.key] = rule
    return rules


SUBJECTS = [
    Subject(path=path, scopes=scopes, uid=uid, gid=gid)
    for path, scopes, uid, gid in itertools.product((0, 1), ((), (1,)), (1, 2, 3), (5, 6))
]


@settings(max_examples=200, deadline=None)
@given(BINDINGS, BINDINGS)
def test_at_no_moment_is_a_decision_neither_the_old_policys_nor_the_new_ones(
    compiled: Any, counting: type[Any], first: Any, second: Any
) -> None:
    numbering = counting()
    old, new = made(first), made(second)
    try:
        compiler, before = compiled(old, numbering)
        compiled(new, numbering)
    except PolicyError:
        return
    found = RuleBook(compiler, before, is_tolerated).exchange(
        list(old.values()), list(new.values())
    )
    assert found is not None
    after, change = found
    if not replace(change, new_shapes=False).fits_in_place:
        return
    rules = {rule.key: rule for rule in before.rules}
    ends = PolicyIndex(before), PolicyIndex(after)
    written, removed = amend_order(change)

    def check() -> None:
        shapes = after.shapes
        now = PolicyIndex(Tables(rules=tuple(rules.values()), shapes=shapes))
        for resource, subject in itertools.product((1, 2), SUBJECTS):
            possible = [end.rule_of(resource, subject) for end in ends]
            assert now.rule_of(resource, subject) in possible

    for rule in written:
        rules[rule.key] = rule
        check()
    for rule in removed:
        del rules[rule.key]
        check()
    assert rules == {rule.key: rule for rule in after.rules}


def test_a_name_of_a_local_binding_is_left_to_the_compilation_which_names_both(
    compiled: Any,
) -> None:
    held = made({"a": ("one", ("host",), "")})
    book = RuleBook(*compiled(held), is_tolerated)
    assert book.exchange([], [binding("A", "one", ("unix:uid:1",))]) is None
    assert book.exchange([held["a"]], [binding("A", "one", ("unix:uid:1",))]) is not None


def test_an_unknown_user_is_refused_and_the_book_goes_on(compiled: Any) -> None:
    held = made({"a": ("one", ("host",), "")})
    book = RuleBook(*compiled(held), is_tolerated)
    with pytest.raises(PolicyError) as caught:
        book.exchange([held["a"]], [binding("a", "one", ("unix:user:nobody-here",))])
    assert "nobody-here" in str(caught.value)
    assert str(caught.value.problems[0].file).startswith(CONTROL_PLANE)
    found = book.exchange([held["a"]], [binding("a", "one", ("unix:uid:9",))])
    assert found is not None
    assert {rule.key.uid for rule in found[0].rules} == {9}


def test_rules_that_differ_in_their_place_alone_are_not_written_one_by_one(compiled: Any) -> None:
    book = RuleBook(*compiled({}), is_tolerated)
    found = book.exchange(
        [],
        [
            binding("a", "one", ("systemd:unit:a.service",)),
            binding("b", "one", ("systemd:unit:b.service",)),
        ],
    )
    assert found is not None
    assert not found[1].fits_in_place
