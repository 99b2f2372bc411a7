# SPDX-License-Identifier: Apache-2.0
"""A new certificate for the host's key: over the old one, or on a proof after its end."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from licagent.control.hostkey import check_certificate, reenrolment_proof, request_for
from licagent.control.interface import ControlSettings
from licagent.control.join import EnrolmentFailed
from licagent.control.trust import opened
from licagent.control.wire import assignment as parse_assignment
from licagent.control.wire import signed
from licagent.domain.catalog import Refused
from licagent.domain.hostidentity import Identity
from licapi.control.v1 import enrollment_pb2
from lictoken.sealed import SealPurpose
from lictoken.trust import TrustStore

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import grpc

CALL_S: Final = 30.0


async def renewed(channel: grpc.aio.Channel, identity: Identity) -> Identity:
    """The identity with a new certificate (Enrollment.Renew). Raises EnrolmentFailed.

    The answer's issuers' keys are not taken: whoever holds only the server's TLS key must not
    give this host new ones. They come with the signed catalog.
    """
    from licapi.control.v1 import enrollment_pb2_grpc

    request = enrollment_pb2.RenewRequest(
        csr=request_for(identity.key_pem), counter=identity.counter
    )
    stub = enrollment_pb2_grpc.EnrollmentStub(channel)
    answer = await asked(stub.Renew(request, timeout=CALL_S), "renewal", "the control plane")
    return _certified(identity, answer)


async def reenrolled(identity: Identity, trust: TrustStore, settings: ControlSettings) -> Identity:
    """The identity with a new certificate (Enrollment.Reenroll). Raises EnrolmentFailed."""
    from licagent.control.transport import public_channel
    from licapi.control.v1 import enrollment_pb2_grpc

    address = settings.public_server or identity.public_address
    if not address:
        raise EnrolmentFailed(
            "the certificate ended, and no public address of the control plane is known; "
            "enrol again with a join token: `licagent enroll JOIN`",
            code="network",
        )
    csr = request_for(identity.key_pem)
    at_ms = int(settings.unix_s() * 1000)
    request = enrollment_pb2.ReenrollRequest(
        host_id=identity.host_id,
        csr=csr,
        counter=identity.counter,
        signed_at_unix_ms=at_ms,
        signature=reenrolment_proof(identity.key_pem, identity.host_id, at_ms, csr),
    )
    channel = public_channel(identity.ca_certificates, address, settings)
    try:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        answer = await asked(stub.Reenroll(request, timeout=CALL_S), "re-enrolment", address)
    finally:
        await channel.close()
    fresh = _certified(identity, answer)
    if len(answer.counter) == len(identity.counter):
        fresh = replace(fresh, counter=answer.counter)
    proof = signed(answer.assignment)
    with contextlib.suppress(Refused):  # by a key not known yet: it comes with the stream
        found = parse_assignment(opened(SealPurpose.ASSIGNMENT, proof, trust))
        before = parse_assignment(identity.assignment.payload)
        if found.host_id == identity.host_id and found.sequence >= before.sequence:
            fresh = replace(fresh, assignment=proof)
    return fresh


async def asked(
    call: Awaitable[enrollment_pb2.EnrollResponse], what: str, address: str
) -> enrollment_pb2.EnrollResponse:
    """Await a call of Enrollment; its failure as EnrolmentFailed (network or refused)."""
    import grpc

    from licagent.control.transport import described

    try:
        return await call
    except grpc.aio.AioRpcError as error:
        is_network = error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        raise EnrolmentFailed(
            f"{what} failed: {described(error, address)}",
            code="network" if is_network else "refused",
        ) from error


def _certified(identity: Identity, answer: Any) -> Identity:
    """The identity with the certificate of an answer. Raises EnrolmentFailed (code answer)."""
    if answer.host_id != identity.host_id:
        raise EnrolmentFailed(
            f"the control plane answered for the host {answer.host_id}, and this is "
            f"{identity.host_id}: nothing was changed",
            code="answer",
        )
    roots = tuple(answer.ca_certificates) or identity.ca_certificates
    chain = tuple(answer.certificate_chain)
    check_certificate(chain, roots, identity.key_pem, identity.host_id)
    return replace(
        identity,
        certificate_chain=chain,
        ca_certificates=roots,
        control_address=answer.control_address or identity.control_address,
        not_after_unix_ms=answer.not_after_unix_ms,
    )
