# SPDX-License-Identifier: Apache-2.0
"""Going for good: asking to be let go, and saying that all usage was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from licagent.control.interface import ControlSettings
from licagent.control.join import EnrolmentFailed
from licagent.domain.hostidentity import Identity

CALL_S: Final = 30.0


async def announce(identity: Identity, address: str, settings: ControlSettings) -> None:
    """Ask to be let go; the control plane then says so in the assignment.

    Raises EnrolmentFailed (network or refused).
    """
    await _ask(identity, address, settings, (), is_announcement=True)


async def finish(
    identity: Identity,
    address: str,
    settings: ControlSettings,
    ends: Sequence[tuple[int, int]],
) -> None:
    """This host is out when it returns. `ends`: epoch and last sequence of each chain.

    Raises EnrolmentFailed; refused while the control plane lacks some of it.
    """
    await _ask(identity, address, settings, ends, is_announcement=False)


async def _ask(
    identity: Identity,
    address: str,
    settings: ControlSettings,
    ends: Sequence[tuple[int, int]],
    *,
    is_announcement: bool,
) -> None:
    import grpc

    from licagent.control.transport import control_channel, described
    from licapi.control.v1 import enrollment_pb2, enrollment_pb2_grpc

    request = enrollment_pb2.LeaveRequest(
        announce=is_announcement,
        usage=[enrollment_pb2.UsageEnd(epoch=epoch, sequence=last) for epoch, last in ends],
    )
    channel = control_channel(identity, address, settings)
    try:
        await enrollment_pb2_grpc.EnrollmentStub(channel).Leave(request, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        is_network = error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        raise EnrolmentFailed(
            described(error, address), code="network" if is_network else "refused"
        ) from error
    finally:
        await channel.close()
