# SPDX-License-Identifier: Apache-2.0
"""How this host gets its identity: by a join token over the network, or by files.

Run in the daemon, which holds the state folder; call `ControlSession.wake` afterwards. Loads
gRPC only when it talks to a server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from licagent.control.adoption import (
    Answer,
    EnrolmentMode,
    EnrolmentResult,
    adopt,
    key_for,
)
from licagent.control.bundle import enroll_from_bundle, enrolment_request
from licagent.control.hostkey import request_for
from licagent.control.join import EnrolmentFailed, JoinToken, parse_join

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from licagent.control.interface import CatalogStorage, IdentityStorage, Machine
    from licapi.control.v1 import enrollment_pb2 as pb2

__all__ = [
    "EnrolmentFailed",
    "EnrolmentMode",
    "EnrolmentResult",
    "enroll",
    "enroll_from_bundle",
    "enrolment_request",
    "parse_join",
]


async def enroll(
    join: str,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    machine: Machine,
    *,
    mode: EnrolmentMode = EnrolmentMode.KEEP,
    timeout_s: float = 30.0,
) -> EnrolmentResult:
    """Become a host by a join token (`licjoin1....`). Raises EnrolmentFailed.

    The key is on the disk before the server sees it, so a host that was cut off in between
    asks again with it, and is answered with the same host, also when the token is used up.
    """
    token = parse_join(join)
    old = await asyncio.to_thread(identities.load)
    key = await asyncio.to_thread(key_for, identities, old, token.roots, mode)
    answer = await _ask(token, key, machine, timeout_s)
    return await asyncio.to_thread(adopt, answer, key, identities, catalogs, mode=mode)


async def _ask(token: JoinToken, key: bytes, machine: Machine, timeout_s: float) -> Answer:
    from licagent.control.renewal import asked
    from licagent.control.transport import public_channel
    from licagent.control.wire import machine_message, signed
    from licapi.control.v1 import enrollment_pb2, enrollment_pb2_grpc

    request = enrollment_pb2.EnrollRequest(
        token_id=token.id,
        token_secret=token.secret,
        csr=request_for(key),
        machine=machine_message(machine),
    )
    try:
        channel = public_channel(token.roots, token.public)
    except ValueError as error:
        raise EnrolmentFailed(
            "the root certificate in the join token cannot be read. Copy the token again, whole",
            code="join",
        ) from error
    try:
        call: Awaitable[pb2.EnrollResponse] = enrollment_pb2_grpc.EnrollmentStub(channel).Enroll(
            request, timeout=timeout_s
        )
        found = await asked(call, "enrolment", token.public)
    finally:
        await channel.close()
    return Answer(
        found.host_id,
        tuple(found.certificate_chain),
        tuple(found.ca_certificates) or token.roots,
        found.trust,
        signed(found.assignment),
        found.counter,
        found.changed,
        found.not_after_unix_ms,
        found.control_address or token.control,
        token.public,
    )
