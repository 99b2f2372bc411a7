# SPDX-License-Identifier: Apache-2.0
"""Messages of licapi.control.v1.Admin as the values of licplane.service."""

from __future__ import annotations

from licapi.control.v1 import admin_pb2 as pb
from licplane.service.answers import (
    AuditView,
    ChangeResult,
    Difference,
    HostView,
    Impact,
    JoinTokenView,
    ShadowUsageView,
)
from licplane.service.requests import Change
from licplane.service.values import HostStatus


def change_message(change: Change) -> pb.Change:
    """A change, for a request."""
    return pb.Change(
        request_id=change.request_id,
        dry_run=change.dry_run,
        etag=change.etag,
        reason=change.reason,
    )


def result_of(answer: pb.ChangeResponse) -> ChangeResult:
    """What a change came to."""
    return ChangeResult(
        changed=answer.changed,
        dry_run=answer.dry_run,
        revision=answer.revision,
        differences=tuple(
            Difference(one.action, one.kind, one.name, tuple(one.lines))
            for one in answer.differences
        ),
        impact=tuple(
            Impact(
                one.host_id,
                one.hostname,
                one.license,
                one.resource,
                one.selector,
                one.sockets,
                one.report_age_ms,
            )
            for one in answer.impact
        ),
        etag=answer.etag,
        tokens=tuple(answer.tokens),
    )


def host_of(one: pb.Host) -> HostView:
    """A host."""
    return HostView(
        host_id=one.host_id,
        hostname=one.hostname,
        status=HostStatus(one.status),
        labels=dict(one.labels),
        enrolled_at_unix_ms=one.enrolled_at_unix_ms,
        last_seen_unix_ms=one.last_seen_unix_ms,
        connected=one.connected,
        acked_revision=one.acked_revision,
        revision=one.revision,
        last_nack=one.last_nack,
        report_json=one.report_json,
        certificate_not_after_unix_ms=one.certificate_not_after_unix_ms,
        etag=one.etag,
        drift=tuple(one.drift),
    )


def token_of(one: pb.JoinToken) -> JoinTokenView:
    """A join token."""
    return JoinTokenView(
        one.id, dict(one.labels), one.uses, one.uses_max, one.expires_at_unix_ms, one.created_by
    )


def shadow_of(one: pb.FleetShadowUsage) -> ShadowUsageView:
    """A line of shadow usage."""
    return ShadowUsageView(
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


def entry_of(one: pb.AuditEntry) -> AuditView:
    """An entry of the audit log."""
    return AuditView(
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
