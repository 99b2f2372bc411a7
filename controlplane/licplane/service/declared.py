# SPDX-License-Identifier: Apache-2.0
"""Documents as they are handed in: read and checked, before anything is touched."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.license_documents import Wanted, read_license
from licplane.service.policy_documents import read_binding, read_resource
from licplane.service.reading import Problems, Table, read_table
from licplane.service.requests import Document
from licplane.service.texts import shown
from licplane.service.values import Kind
from licplane.store.catalog_model import ObjectDraft

KINDS: Final = {"resource": Kind.RESOURCE, "binding": Kind.BINDING, "license": Kind.LICENSE}
DOCUMENTS_MAX: Final = 200_000


@dataclass(slots=True)
class Declared:
    """Documents that were read and checked."""

    drafts: dict[tuple[Kind, str], ObjectDraft] = field(default_factory=dict)
    licenses: dict[str, Wanted] = field(default_factory=dict)
    etags: dict[tuple[Kind, str], str] = field(default_factory=dict)
    names: list[tuple[Kind, str]] = field(default_factory=list)  # in the order of the documents


def read_documents(documents: Sequence[Document], now_s: int) -> Declared:
    """Check all documents; raises PlaneError USAGE that names every mistake."""
    if len(documents) > DOCUMENTS_MAX:
        raise PlaneError(
            ExitCode.USAGE,
            f"There are {len(documents)} documents",
            f"Apply at most {DOCUMENTS_MAX} at once",
        )
    problems = Problems()
    declared = Declared()
    folded: dict[tuple[Kind, str], str] = {}
    for at, document in enumerate(documents):
        kind = kind_named(document.kind)
        place = f"{document.kind} {shown(document.name) if document.name else f'number {at + 1}'}"
        table = read_table(place, document.json, problems)
        if table is None:
            continue
        table = _named(table, document, kind)
        name = _take(declared, table, kind, now_s)
        if not name:
            continue
        other = folded.setdefault((kind, name.lower()), name)
        if (kind, name) in declared.etags:
            problems.add(place, "is there twice", "keep one of the two")
        elif other != name:
            problems.add(place, f"differs from {other} only in case", "rename one of the two")
        declared.etags[kind, name] = document.etag
        declared.names.append((kind, name))
    problems.check()
    return declared


def _take(declared: Declared, table: Table, kind: Kind, now_s: int) -> str:
    """Read one document by its kind; its name, or "" where it has none."""
    if kind is Kind.LICENSE:
        wanted = read_license(table, now_s)
        if wanted is None:
            return ""
        declared.licenses[wanted.license.jti] = wanted
        return wanted.license.jti
    draft = read_resource(table) if kind is Kind.RESOURCE else read_binding(table)
    if draft.name:
        declared.drafts[kind, draft.name] = draft
    return draft.name


def _named(table: Table, document: Document, kind: Kind) -> Table:
    """The table with its name in it; a problem where two names are given."""
    key = "id" if kind is Kind.LICENSE else "name"
    if not document.name:
        return table
    inside = table.value.get(key, document.name)
    if inside != document.name:
        table.problem(key, f"is {shown(inside)}, and the document is called {shown(document.name)}")
    return Table(table.place, {**table.value, key: document.name}, table.problems)


def kind_named(word: str) -> Kind:
    """The kind of a document. Raises PlaneError USAGE, with the nearest."""
    found = KINDS.get(word)
    if found is None:
        near = difflib.get_close_matches(word[:40], list(KINDS), n=1)
        raise PlaneError(
            ExitCode.USAGE,
            f"{shown(word)} is no kind of document",
            f"Did you mean {near[0]}" if near else f"There are {', '.join(KINDS)}",
        )
    return found
