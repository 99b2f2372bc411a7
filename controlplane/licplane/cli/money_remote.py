# SPDX-License-Identifier: Apache-2.0
"""Usage and money of a running server, over Admin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from licapi.control.v1 import admin_pb2 as pb
from licplane.cli.messages import change_message, result_of
from licplane.cli.money import FIRST_PAGE, Json
from licplane.cli.remote import RemoteBackend
from licplane.service.answers import ChangeResult
from licplane.service.requests import Change, Document, PageRequest

LONG_S: Final = 600.0
"""Where much may have to be read."""


class RemoteMoney:
    """Admin of one server."""

    def __init__(self, remote: RemoteBackend) -> None:
        self._admin = remote.admin
        self._call = remote.call

    def usage(
        self,
        by: Sequence[str],
        since_ms: int,
        until_ms: int,
        where: Sequence[tuple[str, str]],
        form: str,
    ) -> Json:
        """Admin.QueryUsage."""
        request = pb.QueryUsageRequest(
            by=by,
            since_unix_ms=since_ms,
            until_unix_ms=until_ms,
            filters=[pb.UsageFilter(name=name, pattern=pattern) for name, pattern in where],
            form=form,
        )
        return _json(self._call(self._admin.QueryUsage, request, LONG_S))

    def explain(self, entry: int, page: PageRequest | None) -> Json:
        """Admin.ExplainUsage."""
        request = pb.ExplainUsageRequest(entry=entry)
        if page is not None:
            request.records = True
            request.page_size, request.page_token = page.size, page.token
        return _json(self._call(self._admin.ExplainUsage, request))

    def verify(self, host_id: str) -> Json:
        """Admin.VerifyUsage."""
        request = pb.VerifyUsageRequest(host_id=host_id)
        return _json(self._call(self._admin.VerifyUsage, request, LONG_S))

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
        """Admin.ExportUsage."""
        request = pb.ExportUsageRequest(
            form=form,
            since_unix_ms=since_ms,
            until_unix_ms=until_ms,
            plan=plan,
            period=period,
            page_size=page.size,
            page_token=page.token,
        )
        return _json(self._call(self._admin.ExportUsage, request))

    def report(self, since_ms: int, until_ms: int, organization: str, form: str) -> Json:
        """Admin.GetComplianceReport."""
        request = pb.GetComplianceReportRequest(
            since_unix_ms=since_ms,
            until_unix_ms=until_ms,
            organization=organization,
            form=form,
        )
        return _json(self._call(self._admin.GetComplianceReport, request, LONG_S))

    def retention(self) -> Json:
        """Admin.GetRetention."""
        return _json(self._call(self._admin.GetRetention, pb.GetRetentionRequest()))

    def set_retention(self, change: Change, days: Mapping[str, int]) -> ChangeResult:
        """Admin.SetRetention."""
        request = pb.SetRetentionRequest(change=change_message(change), days=days)
        return result_of(self._call(self._admin.SetRetention, request))

    def billing_documents(self, kind: str) -> tuple[Document, ...]:
        """Admin.ListBillingDocuments."""
        answer = self._call(
            self._admin.ListBillingDocuments, pb.ListBillingDocumentsRequest(kind=kind)
        )
        return tuple(
            Document(one.kind, one.name, one.json, one.etag, one.revision)
            for one in answer.documents
        )

    def apply_billing(
        self, change: Change, documents: Sequence[Document], *, delete: bool = False
    ) -> ChangeResult:
        """Admin.ApplyBillingDocuments."""
        request = pb.ApplyBillingDocumentsRequest(
            change=change_message(change),
            documents=[
                pb.Document(kind=one.kind, name=one.name, json=one.json) for one in documents
            ],
            delete=delete,
        )
        return result_of(self._call(self._admin.ApplyBillingDocuments, request))

    def periods(self, plan: str) -> Json:
        """Admin.ListBillingPeriods."""
        request = pb.ListBillingPeriodsRequest(plan=plan)
        return _json(self._call(self._admin.ListBillingPeriods, request))

    def bill(self, plan: str, period: str) -> Json:
        """Admin.GetBill."""
        return _json(self._call(self._admin.GetBill, pb.GetBillRequest(plan=plan, period=period)))

    def close(self, change: Change, plan: str, period: str) -> Json:
        """Admin.CloseBillingPeriod."""
        request = pb.CloseBillingPeriodRequest(
            change=change_message(change), plan=plan, period=period
        )
        return _json(self._call(self._admin.CloseBillingPeriod, request))

    def correct(self, change: Change, period: str) -> Json:
        """Admin.CorrectBillingPeriod."""
        request = pb.CorrectBillingPeriodRequest(change=change_message(change), period=period)
        return _json(self._call(self._admin.CorrectBillingPeriod, request))

    def budgets(self, name: str) -> Json:
        """Admin.GetBudgets."""
        return _json(self._call(self._admin.GetBudgets, pb.GetBudgetsRequest(name=name)))

    def deliveries(self, state: str, name: str) -> Json:
        """Admin.ListDeliveries."""
        request = pb.ListDeliveriesRequest(state=state, name=name)
        return _json(self._call(self._admin.ListDeliveries, request))


def _json(answer: pb.JsonAnswer) -> Json:
    found: Json = json.loads(answer.json)
    return found
