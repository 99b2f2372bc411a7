# SPDX-License-Identifier: Apache-2.0
"""Admin between its messages and the service, which also says which role may do what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from licapi.control.v1 import admin_pb2 as pb
from licapi.control.v1 import common_pb2
from licplane.api.administration_money import MoneyMethods
from licplane.api.calls import Method
from licplane.api.peers import Refused
from licplane.service.answers import ChangeResult, HostView, JoinTokenView
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.values import Actor, HostStatus, Identity, Role

SERVICE: Final = "licapi.control.v1.Admin"

RequestT = TypeVar("RequestT", bound=Message)


class AdminService:
    """Its methods, for both listeners."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._money = MoneyMethods(plane, _change, _result)

    def methods(self) -> Mapping[str, Method]:
        """All of them."""
        return {
            "ListHosts": _method(pb.ListHostsRequest, self._list_hosts),
            "GetHost": _method(pb.GetHostRequest, self._get_host),
            "UpdateHost": _method(pb.UpdateHostRequest, self._update_host),
            "CreateJoinToken": _method(pb.CreateJoinTokenRequest, self._create_join_token),
            "ListJoinTokens": _method(pb.ListJoinTokensRequest, self._list_join_tokens),
            "DeleteJoinToken": _method(pb.DeleteJoinTokenRequest, self._delete_join_token),
            "ListObjects": _method(pb.ListObjectsRequest, self._list_objects),
            "Apply": _method(pb.ApplyRequest, self._apply),
            "SetLicenseState": _method(pb.SetLicenseStateRequest, self._set_license_state),
            "ListShadowUsage": _method(pb.ListShadowUsageRequest, self._list_shadow_usage),
            "ListAudit": _method(pb.ListAuditRequest, self._list_audit),
            "VerifyAudit": _method(pb.VerifyAuditRequest, self._verify_audit),
            **{
                name: _method(request, function)
                for name, (request, function) in self._money.methods().items()
            },
        }

    # ---------------------------------------------------------------------------- hosts

    def _list_hosts(self, actor: Actor, request: pb.ListHostsRequest) -> Message:
        page = self._plane.list_hosts(
            actor, dict(request.labels), PageRequest(request.page_size, request.page_token)
        )
        return pb.ListHostsResponse(hosts=map(_host, page.items), next_page_token=page.next_token)

    def _get_host(self, actor: Actor, request: pb.GetHostRequest) -> Message:
        return _host(self._plane.get_host(actor, request.host))

    def _update_host(self, actor: Actor, request: pb.UpdateHostRequest) -> Message:
        return _result(
            self._plane.update_host(
                actor,
                _change(request.change),
                request.host,
                labels=dict(request.labels),
                status=_status(request.status),
            )
        )

    # ---------------------------------------------------------------------- join tokens

    def _create_join_token(self, actor: Actor, request: pb.CreateJoinTokenRequest) -> Message:
        made = self._plane.create_join_token(
            actor,
            _change(request.change),
            labels=dict(request.labels),
            uses_max=request.uses_max,
            ttl_s=request.ttl_s,
        )
        return pb.CreateJoinTokenResponse(token=_token(made.token), join=made.join)

    def _list_join_tokens(self, actor: Actor, _request: pb.ListJoinTokensRequest) -> Message:
        return pb.ListJoinTokensResponse(tokens=map(_token, self._plane.list_join_tokens(actor)))

    def _delete_join_token(self, actor: Actor, request: pb.DeleteJoinTokenRequest) -> Message:
        return _result(self._plane.delete_join_token(actor, _change(request.change), request.id))

    # ------------------------------------------------------------------------ documents

    def _list_objects(self, actor: Actor, request: pb.ListObjectsRequest) -> Message:
        page = self._plane.list_objects(
            actor, request.kind, PageRequest(request.page_size, request.page_token)
        )
        return pb.ListObjectsResponse(
            documents=[
                pb.Document(
                    kind=one.kind,
                    name=one.name,
                    json=one.json,
                    etag=one.etag,
                    revision=one.revision,
                )
                for one in page.items
            ],
            next_page_token=page.next_token,
            revision=page.revision,
        )

    def _apply(self, actor: Actor, request: pb.ApplyRequest) -> Message:
        return _result(
            self._plane.apply(
                actor,
                _change(request.change),
                [
                    Document(one.kind, one.name, one.json, one.etag, one.revision)
                    for one in request.documents
                ],
                prune=request.prune,
                delete=request.delete,
            )
        )

    def _set_license_state(self, actor: Actor, request: pb.SetLicenseStateRequest) -> Message:
        return _result(
            self._plane.set_license_state(
                actor, _change(request.change), request.license, request.action
            )
        )

    # ------------------------------------------------------------------ usage and audit

    def _list_shadow_usage(self, actor: Actor, request: pb.ListShadowUsageRequest) -> Message:
        page = self._plane.shadow_usage(actor, PageRequest(request.page_size, request.page_token))
        return pb.ListShadowUsageResponse(
            usage=[
                pb.FleetShadowUsage(
                    resource=one.resource,
                    selector=one.selector,
                    executable=one.executable,
                    user=one.user,
                    hosts=one.hosts,
                    count=one.count,
                    first_unix_ms=one.first_unix_ms,
                    last_unix_ms=one.last_unix_ms,
                    suggestion=one.suggestion,
                )
                for one in page.items
            ],
            next_page_token=page.next_token,
        )

    def _list_audit(self, actor: Actor, request: pb.ListAuditRequest) -> Message:
        entries = self._plane.list_audit(actor, request.after_sequence, request.page_size)
        return pb.ListAuditResponse(
            entries=[
                pb.AuditEntry(
                    sequence=one.sequence,
                    at_unix_ms=one.at_unix_ms,
                    actor=one.actor,
                    role=one.role,
                    action=one.action,
                    target=one.target,
                    reason=one.reason,
                    request_id=one.request_id,
                    detail_json=one.detail_json,
                    previous_hash=one.previous_hash,
                    hash=one.hash,
                )
                for one in entries
            ]
        )

    def _verify_audit(self, actor: Actor, _request: pb.VerifyAuditRequest) -> Message:
        check = self._plane.verify_audit(actor)
        return pb.VerifyAuditResponse(
            intact=check.intact, entries=check.entries, problems=check.problems
        )


def _method(request: type[RequestT], function: Callable[[Actor, RequestT], Message]) -> Method:
    def handler(identity: Identity | None, message: Any) -> Message:
        if identity is None or identity.role is Role.HOST:
            # Before anything is looked up: a host learns nothing of what exists.
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED, "Only administrators may do this", "role"
            )
        return function(identity.actor, message)

    return Method(request, handler)


def _change(message: pb.Change) -> Change:
    return Change(message.request_id, message.dry_run, message.etag, message.reason)


def _status(number: int) -> HostStatus | None:
    if number == common_pb2.HOST_STATUS_UNSPECIFIED:
        return None
    try:
        return HostStatus(number)
    except ValueError as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, f"There is no host status {number}", "malformed"
        ) from error


def _host(host: HostView) -> pb.Host:
    return pb.Host(
        host_id=host.host_id,
        hostname=host.hostname,
        status=cast("common_pb2.HostStatus.ValueType", int(host.status)),
        labels=host.labels,
        enrolled_at_unix_ms=host.enrolled_at_unix_ms,
        last_seen_unix_ms=host.last_seen_unix_ms,
        connected=host.connected,
        acked_revision=host.acked_revision,
        revision=host.revision,
        last_nack=host.last_nack,
        report_json=host.report_json,
        certificate_not_after_unix_ms=host.certificate_not_after_unix_ms,
        etag=host.etag,
        drift=host.drift,
    )


def _token(token: JoinTokenView) -> pb.JoinToken:
    return pb.JoinToken(
        id=token.id,
        labels=token.labels,
        uses=token.uses,
        uses_max=token.uses_max,
        expires_at_unix_ms=token.expires_at_unix_ms,
        created_by=token.created_by,
    )


def _result(result: ChangeResult) -> pb.ChangeResponse:
    return pb.ChangeResponse(
        changed=result.changed,
        dry_run=result.dry_run,
        revision=result.revision,
        differences=[
            pb.Difference(action=one.action, kind=one.kind, name=one.name, lines=one.lines)
            for one in result.differences
        ],
        impact=[
            pb.Impact(
                host_id=one.host_id,
                hostname=one.hostname,
                license=one.license,
                resource=one.resource,
                selector=one.selector,
                sockets=one.sockets,
                report_age_ms=one.report_age_ms,
            )
            for one in result.impact
        ],
        etag=result.etag,
        tokens=result.tokens,
    )
