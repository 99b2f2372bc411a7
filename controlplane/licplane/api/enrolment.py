# SPDX-License-Identifier: Apache-2.0
"""Enrollment between its messages and the service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import grpc

from licapi.control.v1 import enrollment_pb2
from licplane.api.calls import Method
from licplane.api.peers import Refused
from licplane.api.wire import sealed
from licplane.errors import Unauthenticated
from licplane.service.answers import Enrolled
from licplane.service.leaving import UsageEnd
from licplane.service.plane import Plane
from licplane.service.requests import EnrollRequest, Machine, ReenrollRequest
from licplane.service.values import Identity, Role

SERVICE: Final = "licapi.control.v1.Enrollment"


class EnrollmentService:
    """Its methods for the two listeners."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def public(self) -> Mapping[str, Method]:
        """For hosts without a certificate."""
        return {
            "Enroll": Method(enrollment_pb2.EnrollRequest, self._enroll, anonymous=True),
            "Reenroll": Method(enrollment_pb2.ReenrollRequest, self._reenroll, anonymous=True),
        }

    def mutual(self) -> Mapping[str, Method]:
        """For hosts with one."""
        return {
            "Renew": Method(enrollment_pb2.RenewRequest, self._renew),
            "Leave": Method(enrollment_pb2.LeaveRequest, self._leave),
        }

    def _enroll(
        self, _identity: Identity | None, request: enrollment_pb2.EnrollRequest
    ) -> enrollment_pb2.EnrollResponse:
        machine = request.machine
        asked = EnrollRequest(
            token_id=request.token_id,
            token_secret=request.token_secret,
            csr=request.csr,
            machine=Machine(
                hostname=machine.hostname,
                machine_id=machine.machine_id,
                boot_id=machine.boot_id,
                agent_version=machine.agent_version,
                kernel_release=machine.kernel_release,
            ),
        )
        with _telling_what_to_do():
            return _response(self._plane.enroll(asked))

    def _reenroll(
        self, _identity: Identity | None, request: enrollment_pb2.ReenrollRequest
    ) -> enrollment_pb2.EnrollResponse:
        asked = ReenrollRequest(
            host_id=request.host_id,
            csr=request.csr,
            counter=request.counter,
            signed_at_unix_ms=request.signed_at_unix_ms,
            signature=request.signature,
        )
        with _telling_what_to_do():
            return _response(self._plane.reenroll(asked))

    def _renew(
        self, identity: Identity | None, request: enrollment_pb2.RenewRequest
    ) -> enrollment_pb2.EnrollResponse:
        if identity is None or identity.role is not Role.HOST:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED, "Only hosts renew their certificate", "role"
            )
        return _response(self._plane.renew(identity, request.csr, request.counter))

    def _leave(
        self, identity: Identity | None, request: enrollment_pb2.LeaveRequest
    ) -> enrollment_pb2.LeaveResponse:
        if identity is None or identity.role is not Role.HOST:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Only hosts leave", "role")
        if request.announce:
            self._plane.leaving.announce(identity)
            return enrollment_pb2.LeaveResponse(host_id=identity.host_id)
        ends = [UsageEnd(one.epoch, one.sequence) for one in request.usage]
        return enrollment_pb2.LeaveResponse(host_id=self._plane.leaving.finish(identity, ends))


@contextmanager
def _telling_what_to_do() -> Iterator[None]:
    """Who enrols is told what is wrong: the service says it without saying what exists."""
    try:
        yield
    except Unauthenticated as error:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, str(error), "credential") from error


def _response(enrolled: Enrolled) -> enrollment_pb2.EnrollResponse:
    return enrollment_pb2.EnrollResponse(
        host_id=enrolled.host_id,
        certificate_chain=enrolled.certificate_chain,
        ca_certificates=enrolled.ca_certificates,
        trust=enrolled.trust,
        assignment=sealed(enrolled.assignment),
        counter=enrolled.counter,
        changed=enrolled.changed,
        not_after_unix_ms=enrolled.not_after_unix_ms,
        control_address=enrolled.control_address,
    )
