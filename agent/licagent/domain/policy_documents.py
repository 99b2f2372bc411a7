# SPDX-License-Identifier: Apache-2.0
"""Resources and bindings given as JSON objects: the catalog of a control plane.

They have the keys of a policy file's tables (docs/reference/policy.md). Each is read once and
kept until its bytes change: a catalog of 100,000 bindings of which one changed costs one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from licagent.domain.policy import read_binding
from licagent.domain.policy_model import (
    PORT_PROTOCOLS,
    Binding,
    Destination,
    Policy,
    Resource,
    ResourceKind,
)
from licagent.domain.policy_overlap import Place, conflicting_claims, duplicate_names
from licagent.domain.policy_reader import PolicyFile
from licagent.domain.policy_resource import read_resource
from licagent.domain.ports import ALL_PORTS
from licagent.domain.problem import PolicyError, PolicyProblem
from licagent.domain.tables import Protocol
from licagent.domain.toml_lines import Path

CONTROL_PLANE: Final = "control plane"
"""How names begin that stand in place of a file's, for objects that came from there."""

DOCUMENT_BYTES_MAX: Final = 64 * 1024
"""Largest document; the protocol has the same bound (licapi.control.v1.Object)."""

_SCOPE_KEY: Final = "scope"
"""Where a document counts: the control plane's business, which shows it only where it does."""


class DocumentKind(StrEnum):
    """What a document of the catalog describes."""

    RESOURCE = "resource"
    BINDING = "binding"


@dataclass(frozen=True, slots=True)
class Document:
    """One resource or binding of the catalog."""

    kind: DocumentKind
    name: str  # unique within its kind
    payload: bytes  # a JSON object with the keys of the kind's table


class DocumentReader:
    """Reads documents, each once for as long as it is the same."""

    def __init__(self) -> None:
        self._read: dict[tuple[DocumentKind, str], tuple[bytes, Resource | Binding]] = {}

    def read(self, documents: Iterable[Document]) -> Policy:
        """The resources and bindings of `documents`, in their order.

        Judged each by itself; `merge` judges them together. Raises PolicyError with every
        problem found.
        """
        problems: list[PolicyProblem] = []
        resources: list[Resource] = []
        bindings: list[Binding] = []
        read: dict[tuple[DocumentKind, str], tuple[bytes, Resource | Binding]] = {}
        for document in documents:
            key = (document.kind, document.name)
            known = self._read.get(key)
            if known is not None and known[0] == document.payload:
                entry = known[1]
            else:
                found = _parse(document, problems)
                if found is None:
                    continue
                entry = found
            read[key] = (document.payload, entry)
            if isinstance(entry, Resource):
                resources.append(entry)
            else:
                bindings.append(entry)
        if problems:
            raise PolicyError(problems)
        self._read = read
        return Policy(tuple(resources), tuple(bindings))


def parse_documents(documents: Iterable[Document]) -> Policy:
    """As `DocumentReader.read`, for once."""
    return DocumentReader().read(documents)


def merge(local: Policy, managed: Policy) -> Policy:
    """The policy of the host's own files and of the control plane together.

    Raises PolicyError where both have a resource or binding of one name, or two resources name
    the same destination: neither side may change what the other means.
    """
    both = Policy(local.resources + managed.resources, local.bindings + managed.bindings)
    problems = list(duplicate_names(both.resources, both.bindings))

    def line_of(place: Place) -> int:
        return both.resources[place.resource].line

    problems += conflicting_claims(both.resources, line_of)
    if problems:
        raise PolicyError(problems)
    return both


def document_of(resource: Resource) -> dict[str, Any]:
    """The table that `parse_documents` reads as `resource`."""
    table: dict[str, Any] = {
        "name": resource.name,
        "kind": resource.kind.value,
        "mode": "enforce" if resource.enforce else "observe",
        "description": resource.description,
    }
    if resource.kind is ResourceKind.NETWORK:
        table["destinations"] = [
            {"cidr": each.cidr, "protocol": protocol.name.lower(), **_ports(each, protocol)}
            for each in resource.destinations
            for protocol in each.protocols
        ]
    elif resource.kind is ResourceKind.SERVICE:
        table["ports"] = [str(each) for each in resource.ports]
        table["protocol"] = _service_protocol(resource)
    elif resource.paths:
        table["paths"] = list(resource.paths)
    return table


def _ports(destination: Destination, protocol: Protocol) -> dict[str, list[str]]:
    if protocol not in PORT_PROTOCOLS or destination.ports == (ALL_PORTS,):
        return {}
    return {"ports": [str(each) for each in destination.ports]}


def _service_protocol(resource: Resource) -> str:
    if len(resource.protocols) == 1:
        return resource.protocols[0].name.lower()
    return "any"


class _DocumentFile(PolicyFile):
    """A document in the place of a file with one table: problems name it, and no line."""

    def __init__(self, document: Document, problems: list[PolicyProblem]) -> None:
        super().__init__(f"{CONTROL_PLANE}, {document.kind} {document.name}", "", problems)

    def line(self, path: Path) -> int:  # noqa: ARG002 - JSON on one line
        return 0


def _parse(document: Document, problems: list[PolicyProblem]) -> Resource | Binding | None:
    """The resource or binding of a document; None, and its problems, where it is none."""
    found: list[PolicyProblem] = []
    file = _DocumentFile(document, found)
    path: Path = (document.kind.value, 0)
    entry: Resource | Binding | None = None
    try:
        if len(document.payload) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"larger than {DOCUMENT_BYTES_MAX} bytes")
        table: Any = json.loads(document.payload.decode())
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, JSONDecodeError
        table = {}
        file.problem((), f"is no JSON document: {error}", "apply it again: licplane apply")
    else:
        if not isinstance(table, dict):
            file.wrong_type((), table, "an object")
        else:
            table.pop(_SCOPE_KEY, None)
            if table.setdefault("name", document.name) != document.name:
                hint = f"name it {document.name}"
                file.problem((*path, "name"), "names another object than its own", hint)
            if document.kind is DocumentKind.RESOURCE:
                entry = read_resource(file, path, table, 0)
            else:
                entry = read_binding(file, path, table, 0, Counter())
    problems += found
    return None if found else entry
