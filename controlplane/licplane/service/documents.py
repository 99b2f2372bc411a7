# SPDX-License-Identifier: Apache-2.0
"""Resources, bindings and licenses as administrators handle them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from licplane.errors import Conflict
from licplane.issuer.issuing import Terms
from licplane.issuer.registry import Issue, OpenRegistry, Record, Registry, Statement
from licplane.service import catalog, licensing, paging
from licplane.service.access import Permission, require
from licplane.service.answers import ChangeResult, Difference, Page
from licplane.service.catalog import Outcome
from licplane.service.core import Core
from licplane.service.declared import KINDS, Declared, read_documents
from licplane.service.impact import Cut, impact_of
from licplane.service.license_documents import license_document
from licplane.service.publishing import compact
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.results import change_from, change_to
from licplane.service.texts import one_of, refuse
from licplane.service.values import Actor, Kind
from licplane.service.work import Work, perform, run_once
from licplane.store.reader import Reader
from lictoken.armour import Label
from lictoken.revocation import RevocationAction
from lictoken.validity import Standing

_WORDS = tuple(KINDS)


class Documents:
    """Listing, applying, issuing and ending."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, actor: Actor, kind: str, page: PageRequest) -> Page[Document]:
        """See Plane.list_objects."""
        require(actor, Permission.READ_CATALOG)
        kinds = [one_of(kind, "The kind", _WORDS)] if kind else list(_WORDS)
        key = paging.key_of(page, 2)
        size = paging.size_of(page)
        after_kind, after = key or (kinds[0], "")
        if after_kind not in kinds:
            raise refuse("The page token is of another list", "Begin with an empty one")
        found: list[Document] = []
        with self._core.store.reading() as reader:
            revision = reader.head().revision
            for word in kinds[kinds.index(after_kind) :]:
                start = after if word == after_kind else ""
                found += _documents(reader, word, start, size + 1 - len(found))
                if len(found) > size:
                    break
        last = found[size - 1] if len(found) > size else None
        more = paging.token_of(last.kind, last.name) if last else ""
        return Page(tuple(found[:size]), more, revision)

    def apply(
        self,
        actor: Actor,
        change: Change,
        documents: Sequence[Document],
        *,
        prune: bool,
        delete: bool,
    ) -> ChangeResult:
        """See Plane.apply."""
        require(actor, Permission.CHANGE_CATALOG)
        if prune and (delete or not documents):
            raise refuse(
                "Pruning with no documents, or together with delete, would delete everything",
                "Name what is to stay, or use delete with what is to go",
            )
        declared = Declared() if delete else read_documents(documents, self._core.now_ms() // 1000)

        def body(work: Work) -> Outcome:
            if delete:
                return catalog.delete(work, documents)
            outcome = catalog.put(work, declared)
            if prune:
                catalog.prune(work, declared, outcome)
            return outcome

        request: dict[str, object] = {
            "method": "apply",
            "documents": _digest(documents),
            "prune": prune,
            "delete": delete,
        }
        return self._change(actor, change, request, body)

    def set_state(self, actor: Actor, change: Change, license: str, action: str) -> ChangeResult:
        """See Plane.set_license_state."""
        require(actor, Permission.CHANGE_CATALOG)
        wanted = RevocationAction(
            one_of(action, "The action", [one.value for one in RevocationAction])
        )

        def body(work: Work) -> Outcome:
            outcome = Outcome()
            record = OpenRegistry(work.transaction).get(license)
            if change.etag and change.etag != licensing.etag_of(record):
                raise Conflict(
                    f"license {license} is not as it was read",
                    "Read it again, and apply the change to what it is now",
                )
            if _is_already(record, wanted):
                outcome.differences.append(Difference("none", "license", license))
                outcome.etag = licensing.etag_of(record)
                return outcome
            statement = licensing.state(work, license, wanted)
            outcome.tokens.append(compact(statement.token, Label.REVOCATION))
            lines = (f"-{record.standing.value}", f"+{_AFTER[wanted]}")
            outcome.differences.append(Difference("update", "license", license, lines))
            outcome.etag = f"g{statement.revocation.generation}"
            if wanted is not RevocationAction.REINSTATE:
                outcome.cuts.append(licensing.ended(license))
            return outcome

        request: dict[str, object] = {
            "method": "set_license_state",
            "license": license,
            "action": action,
        }
        return self._change(actor, change, request, body)

    def issue(
        self,
        actor: Actor,
        change: Change,
        terms: Terms,
        *,
        kid: str | None,
        issuer: str | None,
        after_revocation: bool,
    ) -> Issue:
        """See Plane.issue_license."""
        require(actor, Permission.CHANGE_CATALOG)
        return run_once(
            self._core,
            actor,
            change,
            lambda work: licensing.issue(
                work, terms, kid=kid, issuer=issuer, after_revocation=after_revocation
            ),
        )

    def renew(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        *,
        expires_at_s: int,
        kid: str | None,
        issuer: str | None,
    ) -> Issue:
        """See Plane.renew_license."""
        require(actor, Permission.CHANGE_CATALOG)
        return run_once(
            self._core,
            actor,
            change,
            lambda work: licensing.renew(
                work, jti, expires_at_s=expires_at_s, kid=kid, issuer=issuer
            ),
        )

    def state(
        self,
        actor: Actor,
        change: Change,
        jti: str,
        action: RevocationAction,
        *,
        kid: str | None,
        issuer: str | None,
    ) -> Statement:
        """See Plane.state_license."""
        require(actor, Permission.CHANGE_CATALOG)
        return run_once(
            self._core,
            actor,
            change,
            lambda work: licensing.state(work, jti, action, kid=kid, issuer=issuer),
        )

    def _change(
        self,
        actor: Actor,
        change: Change,
        request: dict[str, object],
        body: Callable[[Work], Outcome],
    ) -> ChangeResult:
        """Run a change and add what it cuts.

        A dry run counts within the transaction that is then taken back; else the count comes
        after the commit, so that a revocation is on its way before anybody counts sockets.
        """
        cuts: list[Cut] = []

        def whole(work: Work) -> ChangeResult:
            outcome = body(work)
            result = outcome.result(work)
            if change.dry_run:
                impact = impact_of(work.transaction, outcome.cuts, work.now_ms)
                return replace(result, impact=impact)
            cuts.extend(outcome.cuts)
            return result

        request = {**request, "dry_run": change.dry_run}
        result = perform(
            self._core, actor, change, request, whole, encode=change_to, decode=change_from
        )
        if not cuts:
            return result
        with self._core.store.reading() as reader:
            return replace(result, impact=impact_of(reader, cuts, self._core.now_ms()))


_AFTER = {
    RevocationAction.REVOKE: Standing.REVOKED.value,
    RevocationAction.SUSPEND: Standing.SUSPENDED.value,
    RevocationAction.REINSTATE: Standing.ACTIVE.value,
}


def _is_already(record: Record, wanted: RevocationAction) -> bool:
    """Asked again for what is so: nothing to do, rather than an error."""
    return record.standing.value == _AFTER[wanted] and wanted is not RevocationAction.REINSTATE


def _documents(reader: Reader, word: str, after: str, limit: int) -> list[Document]:
    kind = KINDS[word]
    if kind is not Kind.LICENSE:
        return list(catalog.documents_of(reader.objects(kind, after=after, limit=limit)))
    found: list[Document] = []
    registry = Registry(reader)
    while len(found) < limit:
        page = registry.page(after, limit)
        for record in page:
            if record.standing is not Standing.REVOKED and len(found) < limit:
                live = reader.object(Kind.LICENSE, record.jti)
                found.append(
                    Document(
                        "license",
                        record.jti,
                        license_document(record.latest),
                        licensing.etag_of(record),
                        live.revision if live else 0,
                    )
                )
        if len(page) < limit:
            break
        after = page[-1].jti
    return found


def _digest(documents: Sequence[Document]) -> str:
    hasher = hashlib.sha256()
    for one in documents:
        for text in (one.kind, one.name, one.json, one.etag):
            data = text.encode("utf-8", "surrogatepass")
            hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()
