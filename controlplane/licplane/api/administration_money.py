# SPDX-License-Identifier: Apache-2.0
"""The part of Admin that is about usage and money, between its messages and the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from licapi.control.v1 import admin_pb2 as pb
from licplane.api.peers import Refused
from licplane.api.usage_reading import RecordReader
from licplane.service.answers import ChangeResult
from licplane.service.billing.answers import run_document
from licplane.service.money import Money
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.texts import one_of
from licplane.service.usage.query import UsageQuery
from licplane.service.values import Actor

ANSWER_MAX_BYTES: Final = 4 * 2**20 - 4096
"""A message may have 4 MiB."""

Handler = Callable[[Actor, Any], Message]


class MoneyMethods:
    """Its methods. `change` and `result` are those of the rest of Admin."""

    def __init__(
        self,
        plane: Plane,
        change: Callable[[pb.Change], Change],
        result: Callable[[ChangeResult], pb.ChangeResponse],
    ) -> None:
        self._plane = plane
        self._change = change
        self._result = result

    @property
    def _money(self) -> Money:
        return self._plane.money

    def methods(self) -> Mapping[str, tuple[type[Message], Handler]]:
        """All of them, with the requests that they take."""
        return {
            "QueryUsage": (pb.QueryUsageRequest, self._query),
            "ExplainUsage": (pb.ExplainUsageRequest, self._explain),
            "VerifyUsage": (pb.VerifyUsageRequest, self._verify),
            "ExportUsage": (pb.ExportUsageRequest, self._export),
            "GetComplianceReport": (pb.GetComplianceReportRequest, self._report),
            "GetRetention": (pb.GetRetentionRequest, self._get_retention),
            "SetRetention": (pb.SetRetentionRequest, self._set_retention),
            "ListBillingDocuments": (pb.ListBillingDocumentsRequest, self._documents),
            "ApplyBillingDocuments": (pb.ApplyBillingDocumentsRequest, self._apply),
            "ListBillingPeriods": (pb.ListBillingPeriodsRequest, self._periods),
            "GetBill": (pb.GetBillRequest, self._bill),
            "CloseBillingPeriod": (pb.CloseBillingPeriodRequest, self._close),
            "CorrectBillingPeriod": (pb.CorrectBillingPeriodRequest, self._correct),
            "GetBudgets": (pb.GetBudgetsRequest, self._budgets),
            "ListDeliveries": (pb.ListDeliveriesRequest, self._deliveries),
        }

    def _query(self, actor: Actor, request: pb.QueryUsageRequest) -> Message:
        query = UsageQuery(
            tuple(request.by) or ("license",),
            request.since_unix_ms,
            request.until_unix_ms,
            tuple((one.name, one.pattern) for one in request.filters),
        )
        return _answer(self._money.usage(actor, query, request.form or "json"))

    def _explain(self, actor: Actor, request: pb.ExplainUsageRequest) -> Message:
        page = PageRequest(request.page_size, request.page_token) if request.records else None
        return _answer(self._money.explain(actor, request.entry, page))

    def _verify(self, actor: Actor, request: pb.VerifyUsageRequest) -> Message:
        return _answer(self._money.verify(actor, RecordReader().read, request.host_id))

    def _export(self, actor: Actor, request: pb.ExportUsageRequest) -> Message:
        form = one_of(request.form, "The form", ("cloudevents", "focus"))
        if form == "focus":
            return _answer(self._money.export_focus(actor, request.plan, request.period))
        page = PageRequest(request.page_size, request.page_token)
        window = (request.since_unix_ms, request.until_unix_ms)
        return _answer(self._money.export_events(actor, *window, page))

    def _report(self, actor: Actor, request: pb.GetComplianceReportRequest) -> Message:
        return _answer(
            self._money.report(
                actor,
                request.since_unix_ms,
                request.until_unix_ms,
                request.organization,
                request.form or "json",
            )
        )

    def _get_retention(self, actor: Actor, _request: pb.GetRetentionRequest) -> Message:
        return _answer(self._money.retention(actor))

    def _set_retention(self, actor: Actor, request: pb.SetRetentionRequest) -> Message:
        change = self._change(request.change)
        return self._result(self._money.set_retention(actor, change, dict(request.days)))

    def _documents(self, actor: Actor, request: pb.ListBillingDocumentsRequest) -> Message:
        return pb.ListBillingDocumentsResponse(
            documents=[
                pb.Document(
                    kind=one.kind,
                    name=one.name,
                    json=one.json,
                    etag=one.etag,
                    revision=one.revision,
                )
                for one in self._money.documents(actor, request.kind)
            ]
        )

    def _apply(self, actor: Actor, request: pb.ApplyBillingDocumentsRequest) -> Message:
        documents = [
            Document(one.kind, one.name, one.json, one.etag, one.revision)
            for one in request.documents
        ]
        change = self._change(request.change)
        return self._result(self._money.apply(actor, change, documents, delete=request.delete))

    def _periods(self, actor: Actor, request: pb.ListBillingPeriodsRequest) -> Message:
        return _answer(self._money.periods(actor, request.plan))

    def _bill(self, actor: Actor, request: pb.GetBillRequest) -> Message:
        return _answer(self._money.bill(actor, request.plan, request.period))

    def _close(self, actor: Actor, request: pb.CloseBillingPeriodRequest) -> Message:
        change = self._change(request.change)
        return _answer(run_document(self._money.close(actor, change, request.plan, request.period)))

    def _correct(self, actor: Actor, request: pb.CorrectBillingPeriodRequest) -> Message:
        change = self._change(request.change)
        return _answer(run_document(self._money.correct(actor, change, request.period)))

    def _budgets(self, actor: Actor, request: pb.GetBudgetsRequest) -> Message:
        return _answer(self._money.budgets(actor, request.name))

    def _deliveries(self, actor: Actor, request: pb.ListDeliveriesRequest) -> Message:
        return _answer(self._money.deliveries(actor, request.state, request.name))


def _answer(document: Mapping[str, Any]) -> pb.JsonAnswer:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode(errors="surrogatepass"))
    if size > ANSWER_MAX_BYTES:
        raise Refused(
            grpc.StatusCode.OUT_OF_RANGE,
            f"The answer has {size} bytes, more than a message may have. Ask for a shorter window,"
            " fewer columns or smaller pages, or on the server's machine",
            "oversized",
        )
    return pb.JsonAnswer(json=text)
