# SPDX-License-Identifier: Apache-2.0
"""Usage and money of the store on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from licplane.cli.local import local_actor
from licplane.cli.money import FIRST_PAGE, Json
from licplane.service.answers import ChangeResult
from licplane.service.billing.answers import run_document
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.usage.query import UsageQuery


class LocalMoney:
    """A Plane's Money, asked in the name of `local_actor`."""

    def __init__(self, plane: Plane) -> None:
        self._money = plane.money
        self._actor = local_actor()

    def usage(
        self,
        by: Sequence[str],
        since_ms: int,
        until_ms: int,
        where: Sequence[tuple[str, str]],
        form: str,
    ) -> Json:
        """See Money."""
        query = UsageQuery(tuple(by), since_ms, until_ms, tuple(where))
        return self._money.usage(self._actor, query, form)

    def explain(self, entry: int, page: PageRequest | None) -> Json:
        """See Money."""
        return self._money.explain(self._actor, entry, page)

    def verify(self, host_id: str) -> Json:
        """See Money."""
        from licplane.api.usage_reading import RecordReader

        return self._money.verify(self._actor, RecordReader().read, host_id)

    def export(
        self,
        form: str,
        *,
        since_ms: int = 0,
        until_ms: int = 0,
        plan: str = "",
        period: str = "",
        page: PageRequest = FIRST_PAGE,
    ) -> Json:
        """See Money."""
        if form == "focus":
            return self._money.export_focus(self._actor, plan, period)
        return self._money.export_events(self._actor, since_ms, until_ms, page)

    def report(self, since_ms: int, until_ms: int, organization: str, form: str) -> Json:
        """See Money."""
        return self._money.report(self._actor, since_ms, until_ms, organization, form)

    def retention(self) -> Json:
        """See Money."""
        return self._money.retention(self._actor)

    def set_retention(self, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """See Money."""
        return self._money.set_retention(self._actor, change, days)

    def billing_documents(self, kind: str) -> tuple[Document, ...]:
        """See Money."""
        return self._money.documents(self._actor, kind)

    def apply_billing(
        self, change: Change, documents: Sequence[Document], *, delete: bool = False
    ) -> ChangeResult:
        """See Money."""
        return self._money.apply(self._actor, change, documents, delete=delete)

    def periods(self, plan: str) -> Json:
        """See Money."""
        return self._money.periods(self._actor, plan)

    def bill(self, plan: str, period: str) -> Json:
        """See Money."""
        return self._money.bill(self._actor, plan, period)

    def close(self, change: Change, plan: str, period: str) -> Json:
        """See Money."""
        return run_document(self._money.close(self._actor, change, plan, period))

    def correct(self, change: Change, period: str) -> Json:
        """See Money."""
        return run_document(self._money.correct(self._actor, change, period))

    def budgets(self, name: str) -> Json:
        """See Money."""
        return self._money.budgets(self._actor, name)

    def deliveries(self, state: str, name: str) -> Json:
        """See Money."""
        return self._money.deliveries(self._actor, state, name)
