# SPDX-License-Identifier: Apache-2.0
"""Applying documents: the catalog is made to hold them, all or none, with what that changes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.issuer.registry import OpenRegistry
from licplane.service import licensing
from licplane.service.answers import ChangeResult, Difference
from licplane.service.cuts import binding_cut, resource_cut
from licplane.service.declared import Declared, kind_named
from licplane.service.impact import Cut
from licplane.service.license_documents import Wanted, license_document, same_terms
from licplane.service.overlaps import check_overlaps
from licplane.service.publishing import compact, publish_license
from licplane.service.reading import NAME
from licplane.service.requests import Document
from licplane.service.texts import shown
from licplane.service.values import Kind
from licplane.service.work import Work
from licplane.store.catalog_model import CatalogObject
from lictoken.armour import Label
from lictoken.errors import TokenError
from lictoken.fields import ID
from lictoken.revocation import RevocationAction
from lictoken.validity import Standing

DIFFERENCES_MAX: Final = 1_000
"""Beyond this many, differences come without lines, and what is unchanged is not named."""
_NAMES_AUDITED: Final = 1_000
_DIFF_LINES_MAX: Final = 400


@dataclass(slots=True)
class Outcome:
    """What a change came to, gathered step by step."""

    differences: list[Difference] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    etag: str = ""

    def note(self, action: str, kind: str, name: str, old: str = "", new: str = "") -> None:
        """Add a difference between two documents. Of very many, only the first have lines."""
        count = len(self.differences)
        if action == "none" and count >= DIFFERENCES_MAX:
            return
        lines = () if action == "none" or count >= DIFFERENCES_MAX else diff(old, new)
        self.differences.append(Difference(action, kind, name, lines))

    def result(self, work: Work) -> ChangeResult:
        """The answer, still without its impact."""
        return ChangeResult(
            changed=any(one.action != "none" for one in self.differences),
            dry_run=work.change.dry_run,
            revision=0 if work.change.dry_run else work.revision(),
            differences=tuple(self.differences),
            etag=self.etag if len(self.differences) == 1 else "",
            tokens=() if work.change.dry_run else tuple(self.tokens),
        )


def put(work: Work, declared: Declared) -> Outcome:
    """Make the catalog hold the documents."""
    outcome = Outcome()
    current = _current(work, declared)
    _check_etags(work, declared, current)
    put_now = work.transaction.put_objects(list(declared.drafts.values()))
    after = {(one.kind, one.name): one for one in put_now}
    _check_resources(work, current, after)
    for key in declared.names:
        if key[0] is Kind.LICENSE:
            _put_license(work, declared.licenses[key[1]], outcome)
            continue
        old = current.get(key)
        new = after[key]
        same = old is not None and old.etag == new.etag
        action = "none" if same else "update" if old else "create"
        outcome.note(action, _word(key[0]), key[1], old.document if old else "", new.document)
        outcome.etag = new.etag
        if not same:
            outcome.cuts += _cuts(old, new)
    _audit(work, outcome, "catalog.apply")
    return outcome


def prune(work: Work, declared: Declared, outcome: Outcome) -> None:
    """Delete resources and bindings, and revoke licenses, that the documents do not name."""
    keep = set(declared.names)
    gone: list[tuple[Kind, str]] = [
        (kind, one.name)
        for kind in (Kind.BINDING, Kind.RESOURCE)
        for one in work.transaction.objects(kind)
        if (kind, one.name) not in keep
    ]
    registry = OpenRegistry(work.transaction)
    gone += [
        (Kind.LICENSE, record.jti)
        for record in registry
        if (Kind.LICENSE, record.jti) not in keep and not licensing.is_over(record, work.now_s)
    ]
    _remove(work, gone, outcome)


def delete(work: Work, documents: Sequence[Document]) -> Outcome:
    """Delete, or revoke, exactly the named things; those that are not there are no matter."""
    outcome = Outcome()
    keys: list[tuple[Kind, str]] = []
    for document in documents:
        kind = kind_named(document.kind)
        name = document.name
        if not (ID if kind is Kind.LICENSE else NAME).fullmatch(name):
            raise PlaneError(
                ExitCode.USAGE,
                f"{document.kind} {shown(name)} cannot be a name",
                "Name what to delete in `name`",
            )
        current = work.transaction.object(kind, name)
        if document.etag:
            _check_etag(work, kind, name, document.etag, current)
        keys.append((kind, name))
    if work.change.etag:
        if len(keys) != 1:
            raise _one_etag()
        _check_etag(work, *keys[0], work.change.etag, work.transaction.object(*keys[0]))
    _remove(work, list(dict.fromkeys(keys)), outcome)
    return outcome


def documents_of(objects: Sequence[CatalogObject]) -> Iterator[Document]:
    """Objects of the catalog as documents."""
    for one in objects:
        yield Document(_word(one.kind), one.name, one.document, one.etag, one.revision)


def diff(old: str, new: str) -> tuple[str, ...]:
    """Lines of a unified diff of two documents, without header."""
    before, after = _pretty(old), _pretty(new)
    if before and after:
        found = difflib.unified_diff(before, after, n=2, lineterm="")
        lines = [line for line in found if not line.startswith(("--- ", "+++ "))]
    else:  # the same, without looking for what the two have in common
        lines = [
            f"@@ -{min(1, len(before))},{len(before)} +{min(1, len(after))},{len(after)} @@",
            *(f"-{line}" for line in before),
            *(f"+{line}" for line in after),
        ]
    if len(lines) > _DIFF_LINES_MAX:
        lines = [*lines[:_DIFF_LINES_MAX], f"@@ and {len(lines) - _DIFF_LINES_MAX} more lines @@"]
    return tuple(lines)


def _remove(work: Work, keys: Sequence[tuple[Kind, str]], outcome: Outcome) -> None:
    registry = OpenRegistry(work.transaction)
    for kind, name in keys:
        if kind is Kind.LICENSE:
            record = registry.find(name)
            if record is None or record.standing is Standing.REVOKED:
                outcome.note("none", "license", name)
                continue
            statement = licensing.state(work, name, RevocationAction.REVOKE)
            outcome.tokens.append(compact(statement.token, Label.REVOCATION))
            outcome.note("delete", "license", name, license_document(record.latest))
            outcome.cuts.append(licensing.ended(name))
            continue
        old = work.transaction.object(kind, name)
        if old is None:
            outcome.note("none", _word(kind), name)
            continue
        work.transaction.remove_objects(kind, [name])
        outcome.note("delete", _word(kind), name, old.document)
        outcome.cuts += _cuts(old, None)
    _audit(work, outcome, "catalog.delete", only="delete")


def _put_license(work: Work, wanted: Wanted, outcome: Outcome) -> None:
    jti = wanted.license.jti
    record = OpenRegistry(work.transaction).find(jti)
    if record is not None and same_terms(wanted, record.latest):
        if work.transaction.object(Kind.LICENSE, jti) is None:
            publish_license(work.transaction, record.issues[-1])
        outcome.note("none", "license", jti)
        outcome.etag = licensing.etag_of(record)
        return
    start_s = wanted.license.not_before_s
    if not wanted.not_before_given:
        start_s = record.latest.not_before_s if record is not None else work.now_s
    try:
        issued = licensing.issue(work, wanted.terms(start_s), issuer=wanted.issuer)
    except TokenError as error:
        raise PlaneError(
            ExitCode.USAGE, f"license {jti}: {error.detail}", "Correct it; nothing was changed"
        ) from error
    old = license_document(record.latest) if record is not None else ""
    action = "update" if record is not None else "create"
    outcome.note(action, "license", jti, old, license_document(issued.license))
    outcome.tokens.append(compact(issued.token, Label.LICENSE))
    outcome.etag = f"g{issued.license.generation}"
    if record is not None:
        outcome.cuts.append(licensing.narrowed(record.latest, issued.license))


def _current(work: Work, declared: Declared) -> dict[tuple[Kind, str], CatalogObject]:
    found: dict[tuple[Kind, str], CatalogObject] = {}
    for kind in (Kind.RESOURCE, Kind.BINDING):
        names = [name for of, name in declared.drafts if of is kind]
        if names:
            for name, one in work.transaction.objects_named(kind, names).items():
                found[kind, name] = one
    return found


def _check_etags(
    work: Work, declared: Declared, current: dict[tuple[Kind, str], CatalogObject]
) -> None:
    if work.change.etag:
        if len(declared.names) != 1:
            raise _one_etag()
        key = declared.names[0]
        _check_etag(work, *key, work.change.etag, current.get(key))
    for key, etag in declared.etags.items():
        if etag:
            _check_etag(work, *key, etag, current.get(key))


def _check_etag(
    work: Work, kind: Kind, name: str, etag: str, current: CatalogObject | None
) -> None:
    found = current.etag if current is not None else ""
    if kind is Kind.LICENSE:
        record = OpenRegistry(work.transaction).find(name)
        found = licensing.etag_of(record) if record is not None else ""
    if found != etag:
        what = f"{_word(kind)} {name}"
        raise Conflict(
            f"{what} is not as it was read" if found else f"{what} is no longer there",
            "Read it again, and apply the change to what it is now",
        )


def _check_resources(
    work: Work,
    current: dict[tuple[Kind, str], CatalogObject],
    after: dict[tuple[Kind, str], CatalogObject],
) -> None:
    """What hosts refuse a whole policy for: names alike but for case, equal destinations."""
    changed = {
        name.lower(): name
        for (kind, name), one in after.items()
        if kind is Kind.RESOURCE
        and ((kind, name) not in current or current[kind, name].etag != one.etag)
    }
    if not changed:
        return
    every = work.transaction.objects(Kind.RESOURCE)
    for one in every:
        clash = changed.get(one.name.lower())
        if clash is not None and clash != one.name:
            raise PlaneError(
                ExitCode.USAGE,
                f"resource {clash} differs from {one.name} only in case",
                "Rename one of the two; nothing was changed",
            )
    check_overlaps(every, frozenset(changed.values()))


def _cuts(old: CatalogObject | None, new: CatalogObject | None) -> list[Cut]:
    if old is not None and old.kind is Kind.BINDING:
        return [binding_cut(old)]
    if new is not None and new.kind is Kind.RESOURCE:
        return resource_cut(old, new)
    return []


def _word(kind: Kind) -> str:
    return kind.name.lower()


def _one_etag() -> PlaneError:
    return PlaneError(
        ExitCode.USAGE,
        "An etag in the change stands for one document",
        "Give each document its own etag",
    )


def _pretty(document: str) -> list[str]:
    if not document:
        return []
    return json.dumps(
        json.loads(document), indent=2, sort_keys=True, ensure_ascii=False
    ).splitlines()


def _audit(work: Work, outcome: Outcome, action: str, *, only: str = "") -> None:
    """One entry for resources and bindings; licenses have entries of their own."""
    changed = [
        one
        for one in outcome.differences
        if one.kind != "license" and one.action != "none" and (not only or one.action == only)
    ]
    if not changed:
        return
    detail: dict[str, object] = {"revision": work.transaction.head().revision}
    for word in ("create", "update", "delete"):
        names = [f"{one.kind}/{one.name}" for one in changed if one.action == word]
        if names:
            detail[word] = names[:_NAMES_AUDITED]
            detail[f"{word}_count"] = len(names)
    target = f"{changed[0].kind}/{changed[0].name}" if len(changed) == 1 else "catalog"
    work.audit(action, target, detail)
