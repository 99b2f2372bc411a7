# SPDX-License-Identifier: Apache-2.0
"""What the control plane gave this host, read: licenses, statements, resources, bindings.

A catalog of 100,000 objects of which one changed costs the reading of one: what was read before
is kept, and only what the view names as changed is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeVar

from licagent.domain.catalog import CatalogObject, CatalogView, Kind, NackReason, Refused
from licagent.domain.policy import Policy, PolicyError
from licagent.domain.policy_documents import Document, DocumentKind, parse_documents
from licagent.domain.policy_model import Binding, Resource

_KINDS: Final = {Kind.RESOURCE: DocumentKind.RESOURCE, Kind.BINDING: DocumentKind.BINDING}

_DETAIL_MAX: Final = 3500
"""Characters of a refusal's detail; the protocol allows 4 KiB."""

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Managed:
    """The control plane's part of what this host enforces, at one revision."""

    revision: int = 0
    tokens: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    trust: bytes | None = None  # JWKS
    resources: Mapping[str, Resource] = field(default_factory=lambda: MappingProxyType({}))
    bindings: Mapping[str, Binding] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def policy(self) -> Policy:
        """The resources and bindings, by name, so that their order does not depend on history."""
        return Policy(_by_name(self.resources), _by_name(self.bindings))


@dataclass(frozen=True, slots=True)
class Step:
    """From one state of the catalog to another: what became of its objects."""

    before: Managed
    after: Managed
    statements: tuple[bytes, ...]  # signed revocations and the like that are new
    changed: tuple[tuple[Kind, str], ...]  # new, or other than before
    removed: tuple[tuple[Kind, str], ...]

    def names(self, kind: Kind) -> list[str]:
        """The objects of a kind that are new, changed or gone."""
        return sorted({name for of, name in (*self.changed, *self.removed) if of is kind})

    def exchanged_bindings(self) -> tuple[list[Binding], list[Binding]] | None:
        """The bindings before and after, where nothing but bindings (and statements) changed."""
        kinds = {kind for kind, _ in (*self.changed, *self.removed)}
        if not kinds <= {Kind.BINDING, Kind.REVOCATION}:
            return None
        names = self.names(Kind.BINDING)
        before, after = self.before.bindings, self.after.bindings
        return (
            [before[name] for name in names if name in before],
            [after[name] for name in names if name in after],
        )


def step(before: Managed, view: CatalogView) -> Step:
    """What `view` makes of `before`. Raises Refused(POLICY) where a document cannot be read."""
    whole = view.is_whole
    objects: Iterable[CatalogObject]
    if whole:
        objects = list(view.objects.values())
        gone: list[tuple[Kind, str]] = []
    else:
        objects = [view.objects[key] for key in view.changed]
        gone = [each.key for each in view.removed]
    tokens = {} if whole else dict(before.tokens)
    resources = {} if whole else dict(before.resources)
    bindings = {} if whole else dict(before.bindings)
    held: dict[Kind, dict[str, Any]] = {
        Kind.LICENSE: tokens,
        Kind.RESOURCE: resources,
        Kind.BINDING: bindings,
    }
    for kind, name in gone:
        held.get(kind, {}).pop(name, None)
    documents = []
    statements = []
    for each in objects:
        if each.kind in _KINDS:
            documents.append(Document(_KINDS[each.kind], each.name, each.payload))
        elif each.kind is Kind.LICENSE:
            tokens[each.name] = each.payload
        elif each.kind is Kind.REVOCATION:
            statements.append(each.payload)
    try:
        read = parse_documents(documents)
    except PolicyError as error:
        raise Refused(NackReason.POLICY, detail_of(error)) from error
    resources.update((resource.name, resource) for resource in read.resources)
    bindings.update((binding.name, binding) for binding in read.bindings)
    after = Managed(view.revision, tokens, view.trust, resources, bindings)
    if whole:
        return Step(before, after, tuple(statements), *_difference(before, after, view))
    return Step(before, after, tuple(statements), view.changed, tuple(gone))


def detail_of(error: PolicyError) -> str:
    """A refused policy in as many words as a NACK has room for."""
    text = "; ".join(map(str, error.problems))
    return text if len(text) <= _DETAIL_MAX else text[:_DETAIL_MAX] + "..."


def _difference(
    before: Managed, after: Managed, view: CatalogView
) -> tuple[tuple[tuple[Kind, str], ...], tuple[tuple[Kind, str], ...]]:
    changed: list[tuple[Kind, str]] = []
    removed: list[tuple[Kind, str]] = []
    for kind, old, new in (
        (Kind.RESOURCE, before.resources, after.resources),
        (Kind.BINDING, before.bindings, after.bindings),
        (Kind.LICENSE, before.tokens, after.tokens),
    ):
        changed += _others(kind, new, old)
        removed += [(kind, name) for name in old if name not in new]
    changed += [key for key in view.objects if key[0] is Kind.REVOCATION]
    if before.trust != after.trust:
        changed += [key for key in view.objects if key[0] is Kind.TRUST]
    return tuple(changed), tuple(removed)


def _others(
    kind: Kind, new: Mapping[str, object], old: Mapping[str, object]
) -> list[tuple[Kind, str]]:
    return [(kind, name) for name, each in new.items() if old.get(name) != each]


def _by_name(entries: Mapping[str, Entry]) -> tuple[Entry, ...]:
    return tuple(entries[name] for name in sorted(entries))
