# SPDX-License-Identifier: Apache-2.0
"""Usage and money as one object: everything its API and its commands can ask for.

Answers are JSON objects (docs/reference/billing.md), the same on this machine and over the
network. Money is decimal text; quantities are whole numbers in the meter's unit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from licplane.service.access import PERMISSIONS, Permission, require
from licplane.service.answers import ChangeResult
from licplane.service.auditing import Auditing
from licplane.service.billing.answers import (
    bill_document,
    explanation_document,
    usage_csv,
    usage_document,
)
from licplane.service.billing.budgets import Budgets, state_document
from licplane.service.billing.closing import Billing, RunResult
from licplane.service.billing.documents import BillingDocuments
from licplane.service.compliance import Compliance
from licplane.service.compliance_forms import report_csv, report_html
from licplane.service.core import Core
from licplane.service.explaining import Explaining
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.texts import one_of
from licplane.service.usage.export import UsageExport
from licplane.service.usage.keeper import UsageKeeper
from licplane.service.usage.query import UsageQueries, UsageQuery
from licplane.service.usage.retention import UsageRetention
from licplane.service.usage.verify import Read, UsageVerify
from licplane.service.values import Actor
from lictoken.validity import rfc3339

DELIVERIES_MAX: Final = 1_000


class Money:
    """Made by Plane. Threads may share it, but for `keep`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._documents = BillingDocuments(core)
        self._billing = Billing(core)
        self._queries = UsageQueries(core)
        self._explaining = Explaining(core)
        self._verify = UsageVerify(core)
        self._budgets = Budgets(core)
        self._export = UsageExport(core)
        self._compliance = Compliance(core)
        self._retention = UsageRetention(core)
        self._keeper = UsageKeeper(core, self._billing)

    def keep(self) -> bool:
        """The regular work; to be called every few seconds by each worker, which take turns."""
        return self._keeper.keep()

    # ----------------------------------------------------------------------------- usage
    def usage(self, actor: Actor, query: UsageQuery, form: str = "json") -> dict[str, Any]:
        """Usage in a window; `form` csv puts the table into `text`."""
        one_of(form, "The form", ("json", "csv"))
        table = self._queries.ask(actor, query)
        return {"text": usage_csv(table)} if form == "csv" else usage_document(table)

    def explain(self, actor: Actor, entry: int, page: PageRequest | None) -> dict[str, Any]:
        """An entry of a bill, taken apart; with `page` down to its records."""
        return explanation_document(self._explaining.explain(actor, entry, page))

    def verify(self, actor: Actor, read: Read, host: str = "") -> dict[str, Any]:
        """Whether what is billed is what hosts signed."""
        check = self._verify.verify(actor, read, host)
        if not host and Permission.READ_AUDIT in PERMISSIONS[actor.role]:
            for problem in Auditing(self._core).verify(actor, None).problems:
                check.wrong(f"audit log: {problem}")
        return {"intact": not check.problems, **asdict(check)}

    # ------------------------------------------------------------------------- documents
    def documents(self, actor: Actor, kind: str) -> tuple[Document, ...]:
        """Price plans, triggers and budgets in force; secrets are left out."""
        return self._documents.list(actor, kind)

    def apply(
        self, actor: Actor, change: Change, documents: Sequence[Document], *, delete: bool
    ) -> ChangeResult:
        """Put them in force, or take them out; all or none."""
        return self._documents.apply(actor, change, documents, delete=delete)

    # --------------------------------------------------------------------------- billing
    def periods(self, actor: Actor, plan: str) -> dict[str, Any]:
        """Closed periods, newest first."""
        found = self._billing.periods(actor, plan)
        return {
            "periods": [
                {
                    "period": one.period,
                    "plan": one.plan,
                    "plan_version": one.plan_version,
                    "start": rfc3339(one.start_ms // 1000),
                    "end": rfc3339(one.end_ms // 1000),
                    "closed_at": rfc3339(one.closed_at_unix_ms // 1000),
                    "closed_by": one.closed_by,
                }
                for one in reversed(found)
            ]
        }

    def bill(self, actor: Actor, plan: str, label: str) -> dict[str, Any]:
        """A plan's period: what was billed, or what it comes to so far."""
        return bill_document(self._billing.bill(actor, plan, label))

    def close(self, actor: Actor, change: Change, plan: str, label: str) -> RunResult:
        """Bill a period that is over."""
        return self._billing.close(actor, change, plan, label)

    def correct(self, actor: Actor, change: Change, period: str) -> RunResult:
        """Write entries for what came since into a closed period (PLAN/LABEL)."""
        return self._billing.correct(actor, change, period)

    # ------------------------------------------------------- budgets, triggers, retention
    def budgets(self, actor: Actor, name: str) -> dict[str, Any]:
        """How budgets stand."""
        return {"budgets": [state_document(one) for one in self._budgets.states(actor, name)]}

    def deliveries(self, actor: Actor, state: str, name: str) -> dict[str, Any]:
        """What triggers and budgets told, or are trying to, newest first."""
        require(actor, Permission.READ_USAGE)
        if state:
            one_of(state, "The state", ("waiting", "delivered", "failed"))
        with self._core.store.reading() as reader:
            found = reader.deliveries(state=state, name=name, limit=DELIVERIES_MAX)
        return {
            "deliveries": [
                {
                    "id": one.delivery,
                    "kind": one.kind,
                    "name": one.name,
                    "channel": one.channel,
                    "target": one.target,
                    "state": one.state,
                    "created_at": rfc3339(one.created_at_unix_ms // 1000),
                    "attempts": one.attempts,
                    "next_at": rfc3339(one.next_at_unix_ms // 1000)
                    if one.state == "waiting"
                    else None,
                    "done_at": None
                    if one.done_at_unix_ms is None
                    else rfc3339(one.done_at_unix_ms // 1000),
                    "problem": one.problem,
                    "event": json.loads(one.event),
                }
                for one in found
            ]
        }

    def retention(self, actor: Actor) -> dict[str, Any]:
        """Days that records and sums are kept for."""
        return asdict(self._retention.get(actor))

    def set_retention(self, actor: Actor, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """Change some of them."""
        return self._retention.set(actor, change, days)

    # ----------------------------------------------------------------- reports and exports
    def report(
        self, actor: Actor, since_ms: int, until_ms: int, org: str, form: str
    ) -> dict[str, Any]:
        """The compliance report; `form` csv and html put it into `text`."""
        one_of(form, "The form", ("json", "csv", "html"))
        report = self._compliance.report(actor, since_ms, until_ms, org)
        if form == "json":
            return report
        return {"text": report_csv(report) if form == "csv" else report_html(report)}

    def export_events(
        self, actor: Actor, since_ms: int, until_ms: int, page: PageRequest
    ) -> dict[str, Any]:
        """Records as CloudEvents, one a line in `text`."""
        found = self._export.events(actor, since_ms, until_ms, page)
        return {"text": found.text, "next_token": found.next_token}

    def export_focus(self, actor: Actor, plan: str, label: str) -> dict[str, Any]:
        """A bill with the columns of FOCUS, CSV in `text`."""
        return {"text": self._export.focus(actor, plan, label).text, "next_token": ""}
