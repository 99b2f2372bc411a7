# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.policy import parse_policy
from licagent.domain.policy_documents import (
    DOCUMENT_BYTES_MAX,
    Document,
    DocumentKind,
    DocumentReader,
    document_of,
    merge,
    parse_documents,
)
from licagent.domain.policy_model import Policy, Resource
from licagent.domain.problem import PolicyError

RESOURCE, BINDING = DocumentKind.RESOURCE, DocumentKind.BINDING
DB = {"kind": "network", "mode": "enforce",
      "destinations": [{"cidr": "10.0.5.0/24", "ports": ["5432"]}]}  # fmt: skip
WHO = {"license": "acme", "selectors": ["unix:uid:5"]}


def document(kind: DocumentKind, name: str, table: Any) -> Document:
    return Document(kind, name, json.dumps(table).encode())


def refused(*documents: Document) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_documents(documents)
    return str(caught.value)


def test_documents_say_what_a_file_says():
    text = (
        '[[resource]]\nname = "db"\nkind = "network"\nmode = "enforce"\n'
        'destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"] }]\n'
        '[[binding]]\nname = "b"\nlicense = "acme"\nselectors = ["unix:uid:5"]\n'
    )
    filed = parse_policy([("p.toml", text)])
    found = parse_documents([document(RESOURCE, "db", DB), document(BINDING, "b", WHO)])
    bare = {"file": "", "line": 0}
    assert [replace(each, **bare) for each in found.resources] == [
        replace(each, **bare) for each in filed.resources
    ]
    assert [replace(each, **bare) for each in found.bindings] == [
        replace(each, **bare) for each in filed.bindings
    ]
    assert found.bindings[0].source == "control plane, binding b"


def test_where_a_document_counts_is_the_control_planes_business():
    table = {**WHO, "scope": {"org": "acme", "regions": ["eu-1"]}}
    assert parse_documents([document(BINDING, "b", table)]).bindings[0].license == "acme"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "is no JSON document"),
        (b"\xff", "is no JSON document"),
        (b"[" * 100_000, "larger than"),
        (b"[" * 5000, "is no JSON document"),
        (b"5", "must be an object"),
        (b"{" + b" " * DOCUMENT_BYTES_MAX + b"}", "larger than"),
        (b'{"license": "a", "selectors": ["hots"]}', "hots"),
        (b'{"license": "a", "selectors": ["host"], "lable": 1}', "lable"),
        (b'{"license": "a", "selectors": ["host"], "name": "other"}', "names another object"),
        (b'{"license": 5, "selectors": []}', "binding.license"),
    ],
)
def test_a_bad_document_is_refused_by_its_name(payload: bytes, words: str):
    found = refused(document(BINDING, "good", WHO), Document(BINDING, "bad", payload))
    assert words in found
    assert "control plane, binding bad" in found
    assert "good" not in found


def test_what_is_the_same_is_not_read_again():
    reader = DocumentReader()
    one, two = document(BINDING, "b1", WHO), document(BINDING, "b2", WHO)
    first = reader.read([one, two]).bindings
    changed = document(BINDING, "b2", {**WHO, "license": "other"})
    second = reader.read([one, changed]).bindings
    assert second[0] is first[0]
    assert second[1].license == "other"


def local(text: str) -> Policy:
    return parse_policy([("own.toml", text)])


def test_a_name_that_both_sides_have_is_refused_and_both_are_named():
    managed = parse_documents([document(RESOURCE, "db", DB)])
    own = local('[[resource]]\nname = "DB"\nkind = "feature"\n')
    with pytest.raises(PolicyError) as caught:
        merge(own, managed)
    assert "own.toml" in str(caught.value)
    assert "control plane, resource db" in str(caught.value)


def test_a_destination_that_both_sides_name_is_refused():
    managed = parse_documents([document(RESOURCE, "db", DB)])
    own = local(
        '[[resource]]\nname = "mine"\nkind = "network"\n'
        'destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"] }]\n'
    )
    with pytest.raises(PolicyError) as caught:
        merge(own, managed)
    assert "own.toml" in str(caught.value)
    assert "control plane, resource db" in str(caught.value)


def test_both_sides_count_where_they_do_not_meet():
    managed = parse_documents([document(RESOURCE, "db", DB), document(BINDING, "b", WHO)])
    both = merge(local('[[resource]]\nname = "mine"\nkind = "feature"\n'), managed)
    assert [each.name for each in both.resources] == ["mine", "db"]
    assert [each.name for each in both.bindings] == ["b"]


PORTS = st.sampled_from([["443"], ["1-99", "200"], ["65535"]])
DESTINATION = st.fixed_dictionaries(
    {"cidr": st.sampled_from(["10.1.0.0/16", "2001:db8::/32", "::ffff:10.1.0.0/112", "any"])},
    optional={"ports": PORTS, "protocol": st.sampled_from(["tcp", "udp", "sctp", "any"])},
)
TABLES = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("network"), "destinations": st.lists(DESTINATION, min_size=1, max_size=3)}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("service"), "ports": PORTS},
        optional={"protocol": st.sampled_from(["tcp", "udp", "any"])},
    ),
    st.fixed_dictionaries({"kind": st.just("storage")}, optional={"paths": st.just(["/srv"])}),
)


def covered(resource: Resource) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = {("path", each) for each in resource.paths}
    found |= {("service", *each) for each in zip(resource.protocols, resource.ports, strict=False)}
    for each in resource.destinations:
        for protocol in each.protocols:
            ports = each.ports
            found |= {(each.family, each.address, each.prefix_length, protocol, p) for p in ports}
    return found


@given(TABLES)
def test_a_resource_can_be_kept_as_a_document(table: dict[str, Any]):
    first = parse_documents([document(RESOURCE, "r", table)]).resources[0]
    again = parse_documents([document(RESOURCE, "r", document_of(first))]).resources[0]
    assert covered(again) == covered(first)
    assert (again.kind, again.enforce, again.ports, again.protocols) == (
        first.kind, first.enforce, first.ports, first.protocols
    )  # fmt: skip
