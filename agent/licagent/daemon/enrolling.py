# SPDX-License-Identifier: Apache-2.0
"""`licagent enroll`: how this host joins a control plane, asked over the local socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from licagent.control.enrolment import (
    EnrolmentFailed,
    EnrolmentMode,
    EnrolmentResult,
    enroll,
    enroll_from_bundle,
    enrolment_request,
)
from licagent.control.interface import Machine
from licagent.daemon.decisions import rfc3339
from licagent.daemon.reports import VERSION
from licagent.domain.replica import Refused
from licagent.host import posture
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.local.peer import Peer

_log: Final = logging.getLogger(__name__)


def machine() -> Machine:
    """What this host says of itself."""
    return Machine(
        hostname=socket.gethostname(),
        machine_id=posture.machine_id() or "",
        boot_id=posture.boot_id(),
        agent_version=VERSION,
        kernel_release=posture.kernel_release(),
    )


async def answer(agent: Agent, params: Mapping[str, Any], peer: Peer) -> Mapping[str, object]:
    """Enrol as `params` say. LocalError where it did not happen; then nothing has changed."""
    link = agent.link
    mode = EnrolmentMode(params["identity"])
    try:
        if params["request"]:
            text = enrolment_request(link.identities, machine(), mode=mode)
            return {"schema_version": 1, "changed": False, "request": text.decode()}
        if params["bundle"]:
            result = enroll_from_bundle(
                params["bundle"].encode(), link.identities, link.catalogs, link.settings, mode=mode
            )
        else:
            result = await enroll(
                params["join"].strip(), link.identities, link.catalogs, machine(), mode=mode
            )
    except EnrolmentFailed as error:
        raise LocalError(ErrorCode.REFUSED, str(error), "", {"reason": error.code}) from error
    except (StoreError, Refused) as error:
        raise LocalError(ErrorCode.REFUSED, f"enrolment failed: {error}") from error
    await link.begin_again()
    if result.changed:
        await link.tell_enrolled(result.host_id, result.control_address, f"uid {peer.uid}")
    return {"schema_version": 1, "request": None, **_row(result)}


def _row(result: EnrolmentResult) -> Mapping[str, object]:
    return {
        "changed": result.changed,
        "host_id": result.host_id,
        "server": result.control_address,
        "labels": dict(result.labels),
        "certificate_end": rfc3339(result.not_after_unix_ms / 1000),
    }
