# SPDX-License-Identifier: Apache-2.0
"""Policy files: TOML in, resources and bindings out, or every problem at once.

docs/reference/policy.md describes the format. What needs more than the files themselves (the
licenses, the host's accounts) is checked by `licagent.domain.compiler`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from licagent.domain.policy_model import (
    ALL_PROTOCOLS,
    ENFORCED_KINDS,
    PORT_PROTOCOLS,
    Binding,
    Destination,
    Policy,
    Resource,
    ResourceKind,
)
from licagent.domain.policy_overlap import Place, conflicting_claims, duplicate_names
from licagent.domain.policy_reader import PolicyFile
from licagent.domain.policy_resource import check_name, read_resource
from licagent.domain.problem import Names, PolicyError, PolicyProblem, shown
from licagent.domain.selector import Selector, SelectorError, parse
from licagent.domain.toml_lines import Path

__all__ = [
    "ALL_PROTOCOLS",
    "ENFORCED_KINDS",
    "FILE_BYTES_MAX",
    "PORT_PROTOCOLS",
    "Binding",
    "Destination",
    "Policy",
    "PolicyError",
    "PolicyProblem",
    "Resource",
    "ResourceKind",
    "parse_policy",
    "read_binding",
]

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest policy file: 100,000 bindings take about 10 MB."""

_BINDING_KEYS: Final = ("name", "license", "selectors", "resources")


def parse_policy(
    files: Sequence[tuple[str, str]], known_licenses: Collection[str] | None = None
) -> Policy:
    """The policy that `files`, pairs of name and text, describe together.

    `known_licenses` are the ids (jti) of the licenses at hand, to which alone bindings may
    refer; None leaves that check to the compiler. Raises PolicyError with every problem
    found, and nothing else, whatever the text.
    """
    problems: list[PolicyProblem] = []
    resources: list[Resource] = []
    places: list[tuple[PolicyFile, Path]] = []  # of each of the resources
    described: set[str] = set()  # names of resources, also of those that cannot be read
    bindings: list[Binding] = []
    wanted: list[tuple[PolicyFile, Path, str]] = []  # resources that bindings ask for
    numbers: Counter[str] = Counter()
    licenses = None if known_licenses is None else frozenset(known_licenses)
    license_names = Names(sorted(licenses or ()))
    for name, text in files:
        if len(text) > FILE_BYTES_MAX:
            hint = f"at most {FILE_BYTES_MAX} characters: split it"
            problems.append(PolicyProblem(name, 0, "", f"{len(text)} characters", hint))
            continue
        file = PolicyFile(name, text, problems)
        file.check_keys((), file.document, ("resource", "binding"))
        for path, table, line in file.tables("resource"):
            if isinstance(table.get("name"), str):
                described.add(table["name"])
            resource = read_resource(file, path, table, line)
            if resource is not None:
                resources.append(resource)
                places.append((file, path))
        for path, table, line in file.tables("binding"):
            binding = read_binding(file, path, table, line, numbers)
            bindings.append(binding)
            if licenses is not None and binding.license and binding.license not in licenses:
                hint = license_names.suggest(binding.license)
                message = f"no license {shown(binding.license)} is known here"
                file.problem((*path, "license"), message, hint or "add it: licagent license add")
            wanted += [
                (file, (*path, "resources", index), word)
                for index, word in enumerate(binding.resources or ())
            ]
    _check_wanted(wanted, described)
    problems += duplicate_names(resources, bindings)

    def line_of(place: Place) -> int:
        file, path = places[place.resource]
        tail = ("ports",) if place.position < 0 else ("destinations", place.position)
        return file.line((*path, *tail))

    problems += conflicting_claims(resources, line_of)
    if problems:
        raise PolicyError(problems)
    return Policy(tuple(resources), tuple(bindings))


def _check_wanted(wanted: Sequence[tuple[PolicyFile, Path, str]], described: set[str]) -> None:
    """A problem for each resource that a binding asks for and no file describes."""
    names = Names(sorted(described))
    for file, path, word in wanted:
        if word not in described:
            file.problem(path, f"there is no resource {shown(word)}", names.suggest(word))


def read_binding(
    file: PolicyFile,
    path: Path,
    table: Mapping[str, Any],
    line: int,
    numbers: Counter[str],
) -> Binding:
    """The binding that `table` describes; what is wrong with it becomes problems in `file`.

    `numbers` counts bindings by license, for the names of those without one of their own.
    """
    file.check_keys(path, table, _BINDING_KEYS)
    license_id = file.string((*path, "license"), table)
    numbers[license_id] += 1
    name = f"{license_id}/{numbers[license_id]}"
    if "name" in table:
        name = file.string((*path, "name"), table)
        if name:
            check_name(file, (*path, "name"), name)
    resources = None
    if "resources" in table:
        resources = tuple(text for _, text in file.strings((*path, "resources"), table))
    return Binding(name, license_id, _selectors(file, path, table), resources, file.name, line)


def _selectors(file: PolicyFile, path: Path, table: Mapping[str, Any]) -> tuple[Selector, ...]:
    place = (*path, "selectors")
    if "selectors" not in table or table["selectors"] == []:
        file.problem(
            place,
            "a binding without selectors names nobody",
            'write selectors = ["host"] to mean every process of the host',
        )
        return ()
    found: dict[Selector, None] = {}
    for entry, text in file.strings(place, table):
        try:
            found[parse(text)] = None
        except SelectorError as error:
            file.problem(entry, error.message, error.suggestion)
    return tuple(found)
