# SPDX-License-Identifier: Apache-2.0
"""Documents of resources and bindings: checked, and as the catalog holds them.

The keys are those of policy files (docs/reference/policy.md), and `scope`.
"""

from __future__ import annotations

import re
from typing import Final

from licplane.service.networks import NetworkProblem, check_network, check_ports
from licplane.service.reading import Table, canonical_payload, kind_of
from licplane.service.selectors import SelectorProblem, check_selector
from licplane.service.texts import shown
from licplane.service.values import Kind, Scope
from licplane.store.catalog_model import ObjectDraft
from lictoken.fields import ID
from lictoken.fields import NAME as SCOPE_NAME

_COMMON: Final = ("name", "kind", "mode", "description", "scope")
_KEYS: Final = {
    "network": (*_COMMON, "destinations"),
    "service": (*_COMMON, "ports", "protocol"),
    "compute": _COMMON,
    "storage": (*_COMMON, "paths"),
    "feature": _COMMON,
}
_ALL: Final = (*_COMMON, "destinations", "ports", "protocol", "paths")
_ENFORCED: Final = ("network", "service")
_PROTOCOLS: Final = ("tcp", "udp", "icmp", "sctp", "other", "any")
_PORT_PROTOCOLS: Final = ("tcp", "udp", "sctp", "any")
_BINDING: Final = ("name", "license", "selectors", "resources", "scope")
_ONLY_ONE: Final = ("unix:uid", "unix:gid", "unix:path", "unix:sha256")
_ID_FORM: Final = re.compile(ID.pattern, re.ASCII)


def read_resource(table: Table) -> ObjectDraft:
    """The catalog object of a resource; worthless where the table's problems say so."""
    name = table.name("name")
    kind = table.choice("kind", tuple(_KEYS))
    mode = table.choice("mode", ("enforce", "observe"), "observe")
    table.text("description", "")
    scope = read_scope(table)
    if kind is None:
        table.keys(_ALL)
        return _draft(Kind.RESOURCE, name, scope, table)
    _check_keys(table, kind)
    if mode == "enforce" and kind not in _ENFORCED:
        table.problem("mode", f"resources of kind {kind} cannot be enforced", "leave mode out")
    if kind == "network":
        _check_destinations(table)
    elif kind == "service":
        _check_port_list(table, required=True)
        table.choice("protocol", _PORT_PROTOCOLS, "any")
    elif kind == "storage":
        for at, path in enumerate(table.names("paths", None)):
            if not path.startswith("/") or not path.isprintable():
                table.problem("paths", f"{shown(path)} is no absolute path", f"element {at}")
    return _draft(Kind.RESOURCE, name, scope, table)


def read_binding(table: Table) -> ObjectDraft:
    """The catalog object of a binding; worthless where the table's problems say so."""
    table.keys(_BINDING)
    name = table.name("name")
    table.name("license", _ID_FORM)
    if "resources" in table.value and not table.names("resources"):
        table.problem("resources", "names nothing", "leave it out to mean all of the license")
    selectors = table.names("selectors", None)
    if not selectors:
        table.problem(
            "selectors", "names nobody", 'write ["host"] to mean every process of the host'
        )
    for at, text in enumerate(selectors):
        try:
            check_selector(text)
        except SelectorProblem as error:
            table.problems.add(f"{table.at('selectors')}[{at}]", str(error))
    for kind in _ONLY_ONE:
        if sum(text.startswith(f"{kind}:") for text in selectors) > 1:
            table.problem(
                "selectors",
                f"no process has two of {kind}",
                "all selectors must hold: write two bindings to mean either",
            )
    return _draft(Kind.BINDING, name, read_scope(table), table)


def read_scope(table: Table) -> Scope:
    """The table's `scope`; everywhere where there is none."""
    if "scope" not in table.value:
        return Scope()
    scope = table.table("scope")
    scope.keys(("org", "project", "environments", "regions"))
    org = scope.name("org", SCOPE_NAME) if "org" in scope.value else ""
    project = scope.name("project", SCOPE_NAME) if "project" in scope.value else ""
    if project and not org:
        scope.problem(
            "project", "needs org beside it", "projects of two organizations may be named alike"
        )
    return Scope(
        org,
        project,
        tuple(sorted(scope.names("environments", SCOPE_NAME))),
        tuple(sorted(scope.names("regions", SCOPE_NAME))),
    )


def _check_keys(table: Table, kind: str) -> None:
    own = _KEYS[kind]
    for key in table.value:
        if key in own or key not in _ALL:
            continue
        hint = f"resources of kind {kind} have: {', '.join(own)}"
        if kind == "network" and key in ("ports", "protocol"):
            hint = f"move {key} into each of the destinations"
        table.problem(key, f"does not belong to kind {kind}", hint)
    unknown = {key: value for key, value in table.value.items() if key not in _ALL}
    Table(table.place, unknown, table.problems).keys(own)


def _check_destinations(table: Table) -> None:
    destinations = table.tables("destinations")
    if not table.items("destinations"):
        table.problem(
            "destinations",
            "a network resource without destinations covers nothing",
            'write [{"cidr": "10.0.5.0/24", "ports": ["5432"], "protocol": "tcp"}]',
        )
    for destination in destinations:
        destination.keys(("cidr", "ports", "protocol"))
        text = destination.text("cidr")
        if text:
            try:
                check_network(text)
            except NetworkProblem as error:
                destination.problem("cidr", str(error))
        protocol = destination.choice("protocol", _PROTOCOLS, "any")
        if "ports" in destination.value:
            _check_port_list(destination, required=True)
            if protocol in ("icmp", "other"):
                destination.problem("ports", f"{protocol} has no ports", "leave ports out")


def _check_port_list(table: Table, *, required: bool) -> None:
    items = table.items("ports")
    if required and not items:
        table.problem("ports", "names no port", 'write ["443"], or leave it out in a destination')
    for at, item in enumerate(items):
        place = f"{table.at('ports')}[{at}]"
        if isinstance(item, bool) or not isinstance(item, int | str):
            table.problems.add(place, f"must be a port or a range in quotes, not {kind_of(item)}")
            continue
        try:
            check_ports(str(item))
        except NetworkProblem as error:
            table.problems.add(place, str(error))


def _draft(kind: Kind, name: str, scope: Scope, table: Table) -> ObjectDraft:
    document = {key: value for key, value in table.value.items() if value is not None}
    payload = {key: value for key, value in document.items() if key != "scope"}
    return ObjectDraft(
        kind, name, scope, canonical_payload(payload), canonical_payload(document).decode()
    )
