# SPDX-License-Identifier: Apache-2.0
"""Between the messages of licapi.control.v1 and the agent's own values.

Parsing only; nothing here is verified. Loads protobuf, not gRPC.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from licagent.control.interface import Assignment, HostStatus, Machine
from licagent.control.report import HostReport
from licagent.control.texts import sendable
from licagent.domain.catalog import (
    Kind,
    Manifest,
    NackReason,
    ObjectChange,
    Refused,
    SignedBytes,
    ViewKey,
)
from licagent.domain.delta_parts import DeltaPart
from licagent.domain.lease import Lease, LeaseAnswer
from licapi.control.v1 import common_pb2, enrollment_pb2, sync_pb2, telemetry_pb2

_KINDS: Final = {int(kind): kind for kind in Kind}
_REPORTED_MAX: Final = 1_000
_REPORTED_BYTES: Final = 512
"""Entries of a list in a report, and bytes of a text that any user of the host may have chosen:
a report has to fit into one message of 4 MiB."""


def signed(message: common_pb2.Sealed) -> SignedBytes:
    """Sealed, as a value."""
    return SignedBytes(message.payload, message.kid, message.signature)


def sealed(value: SignedBytes) -> common_pb2.Sealed:
    """The reverse of `signed`."""
    return common_pb2.Sealed(payload=value.payload, kid=value.kid, signature=value.signature)


def view_key(message: common_pb2.View) -> ViewKey:
    """View, as a value."""
    return ViewKey(message.org, message.project, message.environment, message.region)


def view_message(value: ViewKey) -> common_pb2.View:
    """The reverse of `view_key`."""
    return common_pb2.View(
        org=value.org,
        project=value.project,
        environment=value.environment,
        region=value.region,
    )


def kind_of(number: int, name: str) -> Kind:
    """The kind of an object. Raises Refused(POLICY) for one of a later version."""
    try:
        return _KINDS[number]
    except KeyError as error:
        raise Refused(
            NackReason.POLICY,
            f"the object {name[:80]!a} is of the kind {number}, which this version does not "
            "know: update licagent on this host",
        ) from error


def change(message: common_pb2.Object) -> ObjectChange:
    """Object, as a value. Raises Refused(POLICY)."""
    return ObjectChange(
        kind_of(message.kind, message.name),
        message.name,
        message.revision,
        None if message.removed else message.payload,
    )


def delta_part(message: sync_pb2.Delta) -> DeltaPart:
    """Delta, as a value. Raises Refused(POLICY)."""
    return DeltaPart(
        message.from_revision,
        message.to_revision,
        message.reset,
        message.more,
        tuple(change(each) for each in message.objects),
        signed(message.manifest) if message.HasField("manifest") else None,
    )


def manifest(payload: bytes, proof: SignedBytes) -> Manifest:
    """SnapshotManifest, from bytes that were verified."""
    message = sync_pb2.SnapshotManifest()
    _parse(message, payload, "snapshot manifest")
    return Manifest(
        view_key(message.view), message.revision, message.digest, message.objects, proof
    )


def assignment(payload: bytes) -> Assignment:
    """Assignment, from bytes that were verified."""
    message = common_pb2.Assignment()
    _parse(message, payload, "assignment")
    try:
        status = HostStatus(message.status)
    except ValueError:
        status = HostStatus.UNSPECIFIED
    return Assignment(
        message.host_id,
        dict(message.labels),
        message.sequence,
        status,
        message.issued_at_unix_ms,
    )


def lease_answer(payload: bytes) -> LeaseAnswer:
    """LeaseBundle, from bytes that were verified."""
    message = sync_pb2.LeaseBundle()
    _parse(message, payload, "lease bundle")
    return LeaseAnswer(
        message.host_id,
        message.key_fingerprint,
        message.boot_id,
        message.nonce,
        message.ttl_ms,
        message.issued_at_unix_ms,
        tuple(Lease(each.license, each.number, each.generation) for each in message.leases),
    )


def machine_message(machine: Machine) -> enrollment_pb2.Machine:
    """Machine, as a message."""
    return enrollment_pb2.Machine(
        hostname=machine.hostname,
        machine_id=machine.machine_id,
        boot_id=machine.boot_id,
        agent_version=machine.agent_version,
        kernel_release=machine.kernel_release,
    )


def report_message(report: HostReport, sequence: int) -> telemetry_pb2.HostReport:
    """HostReport, as a message."""
    state = report.state
    pb = telemetry_pb2
    return pb.HostReport(
        sequence=sequence,
        at_unix_ms=report.at_unix_ms,
        state=pb.HostState(
            mode=state.mode,
            agent_version=state.agent_version,
            boot_id=state.boot_id,
            hostname=state.hostname,
            kernel_release=state.kernel_release,
            revision=state.revision,
            generation=state.generation,
            hooks=[
                pb.HookState(
                    hook=each.hook,
                    attached=each.is_attached,
                    link_id=each.link_id,
                    program_id=each.program_id,
                    detail=each.detail,
                )
                for each in state.hooks
            ],
            maps=[
                pb.MapDigest(map=each.map, wanted=each.wanted, found=each.found)
                for each in state.maps
            ],
            posture=[
                pb.Posture(fact=fact, value=value) for fact, value in sorted(state.posture.items())
            ],
            degraded=state.degraded,
            break_glass_until_unix_ms=state.break_glass_until_unix_ms,
            labels=dict(state.labels),
            refused_licenses={
                sendable(which, _REPORTED_BYTES): sendable(why, _REPORTED_BYTES)
                for which, why in state.refused_licenses.items()
            },
            authorities=state.authorities,
        ),
        decisions=[
            pb.DecisionCount(
                license=each.license,
                resource=each.resource,
                verdict=each.verdict,
                reason=each.reason,
                count=each.count,
            )
            for each in report.decisions[:_REPORTED_MAX]
        ],
        shadow=[
            pb.ShadowUsage(
                resource=each.resource,
                selector=sendable(each.selector, _REPORTED_BYTES),
                executable=sendable(each.executable, _REPORTED_BYTES),
                user=sendable(each.user, _REPORTED_BYTES),
                count=each.count,
                first_unix_ms=each.first_unix_ms,
                last_unix_ms=each.last_unix_ms,
                reason=each.reason,
            )
            for each in report.shadow[:_REPORTED_MAX]
        ],
        live=[
            pb.LiveUse(
                license=each.license,
                resource=each.resource,
                selector=sendable(each.selector, _REPORTED_BYTES),
                sockets=each.sockets,
            )
            for each in report.live[:_REPORTED_MAX]
        ],
    )


def _parse(
    message: sync_pb2.SnapshotManifest | common_pb2.Assignment | sync_pb2.LeaseBundle,
    payload: bytes,
    what: str,
) -> None:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise Refused(NackReason.SIGNATURE, f"the {what} is signed, but no message") from error
