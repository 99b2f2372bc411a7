# SPDX-License-Identifier: Apache-2.0
"""Putting price plans, triggers and budgets in force, and taking them out. Versions are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.access import Permission, require
from licplane.service.answers import ChangeResult, Difference
from licplane.service.billing.pricing import Plan
from licplane.service.billing.reading import (
    KEPT,
    READERS,
    Budget,
    document_text,
    parsed,
    without_secrets,
)
from licplane.service.catalog import diff
from licplane.service.core import Core
from licplane.service.requests import Change, Document
from licplane.service.results import change_from, change_to
from licplane.service.texts import one_of, refuse, shown
from licplane.service.values import Actor
from licplane.service.work import Work, perform
from licplane.store.billing_records import BillingDocument, BillingReads

_MOST = 1_000


class BillingDocuments:
    """Listing and applying."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, actor: Actor, kind: str) -> tuple[Document, ...]:
        """Those in force, by kind and name; secrets are left out."""
        require(actor, Permission.READ_USAGE)
        kinds = [one_of(kind, "The kind", READERS)] if kind else list(READERS)
        with self._core.store.reading() as reader:
            found = [one for word in kinds for one in reader.billing_documents(word)]
        return tuple(_view(one) for one in found)

    def apply(
        self, actor: Actor, change: Change, documents: Sequence[Document], *, delete: bool
    ) -> ChangeResult:
        """Put these in force, or with `delete` take them out; all or none."""
        require(actor, Permission.CHANGE_BILLING)
        if not 1 <= len(documents) <= _MOST:
            raise refuse(f"There are {len(documents)} documents", f"Send 1 to {_MOST}")
        if change.etag and len(documents) != 1:
            raise refuse("An etag is for one document", "Send that one alone")
        wanted: dict[tuple[str, str], str] = {}
        for one in documents:
            kind = one_of(one.kind, "The kind", READERS)
            name, text = (one.name, "") if delete else _checked(kind, one)
            if (kind, name) in wanted:
                raise refuse(f"The {kind} {shown(name)} is there twice", "Keep one of the two")
            wanted[kind, name] = text
        request: dict[str, object] = {
            "method": "apply_billing",
            "documents": sorted([*key, text] for key, text in wanted.items()),
            "delete": delete,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> ChangeResult:
            return _apply(work, wanted)

        return perform(
            self._core, actor, change, request, body, encode=change_to, decode=change_from
        )


def current(reader: BillingReads, kind: str, name: str) -> BillingDocument:
    """One in force. Raises PlaneError NOT_FOUND."""
    for one in reader.billing_documents(kind):
        if one.name == name:
            return one
    raise PlaneError(
        ExitCode.NOT_FOUND, f"There is no {kind} {shown(name)}", f"`licplane {_command(kind)} list`"
    )


def plan_of(one: BillingDocument) -> Plan:
    """The price plan in a document."""
    plan: Plan = READERS["plan"](parsed(one.document))
    return plan


def _checked(kind: str, document: Document) -> tuple[str, str]:
    value = parsed(document.json)
    if document.name:
        value.setdefault("name", document.name)
    read = READERS[kind](value)
    if document.name and read.name != document.name:
        raise refuse(
            f"The {kind} calls itself {shown(read.name)}, and the request {shown(document.name)}",
            "Use one name",
        )
    return read.name, document_text(value)


def _apply(work: Work, wanted: Mapping[tuple[str, str], str]) -> ChangeResult:
    transaction = work.transaction
    found: list[Difference] = []
    etag = ""
    for (kind, name), text in sorted(wanted.items()):
        versions = transaction.billing_versions(kind, name)
        before = versions[-1] if versions and versions[-1].document else None
        if work.change.etag and (before is None or etag_of(before) != work.change.etag):
            raise Conflict(
                f"The {kind} {name} is not as it was read", "Read it again, and decide anew"
            )
        if text == "" and before is None:
            raise PlaneError(ExitCode.NOT_FOUND, f"There is no {kind} {shown(name)}", "List them")
        kept = _with_kept_secrets(text, before)
        lines = _lines(before, kept)
        if before is not None and before.document == kept:
            found.append(Difference("none", kind, name, ()))
            etag = etag_of(before)
            continue
        new = BillingDocument(kind, name, len(versions) + 1, kept, work.actor.name, work.now_ms)
        _check_references(transaction, kind, kept, wanted)
        if kind == "plan" and kept:
            _check_period(transaction, plan_of(new), versions)
        transaction.put_billing_document(new)
        action = "delete" if not kept else ("create" if before is None else "update")
        work.audit(
            f"{kind}.{action}",
            name,
            {"version": new.version, "sha256": hashlib.sha256(kept.encode()).hexdigest()},
        )
        found.append(Difference(action, kind, name, lines))
        etag = etag_of(new) if kept else ""
    return ChangeResult(
        changed=any(one.action != "none" for one in found),
        dry_run=work.change.dry_run,
        differences=tuple(found),
        etag=etag if len(wanted) == 1 else "",
    )


def _with_kept_secrets(text: str, before: BillingDocument | None) -> str:
    """A secret that reads KEPT, as lists show it, stays what it was for the same address."""
    if KEPT not in text:
        return text
    value, old = parsed(text), parsed(before.document) if before else {}
    known = {
        one.get("webhook"): one.get("secret")
        for one in old.get("notify", [])
        if isinstance(one, dict)
    }
    for one in value.get("notify", []):
        if isinstance(one, dict) and one.get("secret") == KEPT:
            one["secret"] = known.get(one.get("webhook"))
            if not one["secret"]:
                raise refuse(
                    f"The secret of {shown(one.get('webhook'))} is not known", "Write it anew"
                )
    return document_text(value)


def _check_references(
    reader: BillingReads, kind: str, text: str, wanted: Mapping[tuple[str, str], str]
) -> None:
    """A budget's plan is there, now or by the same request."""
    if not text or kind != "budget":
        return
    budget: Budget = READERS["budget"](parsed(text))
    if budget.plan and not wanted.get(("plan", budget.plan)):
        current(reader, "plan", budget.plan)


def _check_period(reader: BillingReads, plan: Plan, versions: Sequence[BillingDocument]) -> None:
    """Weeks and months have no common bounds: after a change, days would be billed twice or not
    at all. So the kind of period stays from the first one that is closed."""
    closed = reader.closed_periods(plan.name)
    number = closed[-1].plan_version if closed else 0
    for one in versions:
        if one.version == number and one.document and plan_of(one).period != plan.period:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The plan {shown(plan.name)} has been billed by the {plan_of(one).period}",
                "Its period cannot change any more: make a plan with another name",
            )


def etag_of(one: BillingDocument) -> str:
    """Changes with each version."""
    data = f"{one.kind}\0{one.name}\0{one.version}\0{one.document}".encode()
    return hashlib.sha256(data).hexdigest()[:32]


def _lines(before: BillingDocument | None, text: str) -> tuple[str, ...]:
    old: dict[str, Any] = without_secrets(parsed(before.document)) if before else {}
    new: dict[str, Any] = without_secrets(parsed(text)) if text else {}
    return diff(document_text(old) if old else "", document_text(new) if new else "")


def _view(one: BillingDocument) -> Document:
    text = document_text(without_secrets(parsed(one.document)))
    return Document(one.kind, one.name, text, etag_of(one), one.version)


def _command(kind: str) -> str:
    return "price" if kind == "plan" else kind
