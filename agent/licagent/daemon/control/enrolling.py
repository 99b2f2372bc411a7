# SPDX-License-Identifier: Apache-2.0
"""`licagent enroll`: how this host joins a control plane, asked over the local socket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from licagent.control.bundle import BUNDLE_MAX_BYTES, enroll_from_bundle, enrolment_request
from licagent.control.enrolment import EnrolmentFailed, EnrolmentMode, EnrolmentResult, enroll
from licagent.control.interface import ControlSettings, Machine
from licagent.daemon.control.join_credential import forget_left
from licagent.daemon.control.link import CATALOG_FILE
from licagent.daemon.decisions import rfc3339
from licagent.daemon.reports import VERSION
from licagent.domain.catalog import Refused
from licagent.host import posture
from licagent.host.hostroot import as_host_sees
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.catalog import CatalogStore
from licagent.store.errors import StateDirBusy, StoreError
from licagent.store.identity import IdentityStore
from licagent.store.statedir import StateDir
from lictoken.errors import TokenError
from lictoken.limits import read_bounded

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.domain.config import AgentConfig
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
    result = await _enrol(params, link.identities, link.catalogs, link.settings)
    if isinstance(result, EnrolmentResult):
        await asyncio.to_thread(_let_in, agent.state)
        await link.begin_again()
        if result.changed:
            await link.tell_enrolled(result.host_id, result.control_address, f"uid {peer.uid}")
    return _row(result)


def alone(config: AgentConfig, params: Mapping[str, Any]) -> Mapping[str, object]:
    """As `answer`, where no daemon runs: it finds the identity when it starts."""
    try:
        with StateDir(config.state_dir) as state:
            catalogs = CatalogStore(state.path / CATALOG_FILE)
            settings = ControlSettings(boot_id=posture.boot_id(), agent_version=VERSION)
            try:
                result = asyncio.run(_enrol(params, IdentityStore(state), catalogs, settings))
                if isinstance(result, EnrolmentResult):
                    _let_in(state)
                return _row(result)
            finally:
                catalogs.close()
    except StateDirBusy as error:
        raise LocalError(ErrorCode.BUSY, str(error), "ask again once it answers") from error
    except StoreError as error:
        raise LocalError(ErrorCode.REFUSED, str(error)) from error


def _let_in(state: StateDir) -> None:
    """It has joined: that it left once does not matter any more."""
    try:
        forget_left(state)
    except OSError as error:
        _log.error("it stays on record that this host left before: %s", error)


async def _enrol(
    params: Mapping[str, Any],
    identities: IdentityStore,
    catalogs: CatalogStore,
    settings: ControlSettings,
) -> EnrolmentResult | str:
    mode = EnrolmentMode(params.get("identity") or "keep")
    try:
        if params.get("request"):
            return enrolment_request(identities, machine(), mode=mode).decode()
        if params.get("bundle"):
            data = read_bounded(Path(as_host_sees(params["bundle"])), BUNDLE_MAX_BYTES)
            return enroll_from_bundle(data, identities, catalogs, settings, mode=mode)
        join = str(params["join"]).strip()
        return await enroll(join, identities, catalogs, machine(), mode=mode)
    except EnrolmentFailed as error:
        raise LocalError(ErrorCode.REFUSED, str(error), "", {"reason": error.code}) from error
    except (TokenError, StoreError, Refused, OSError) as error:
        raise LocalError(ErrorCode.REFUSED, f"enrolment failed: {error}") from error


def _row(result: EnrolmentResult | str) -> Mapping[str, object]:
    if isinstance(result, str):
        return {"schema_version": 1, "changed": False, "request": result}
    return {
        "schema_version": 1,
        "changed": result.changed,
        "host_id": result.host_id,
        "server": result.control_address,
        "labels": dict(result.labels),
        "certificate_end": rfc3339(result.not_after_unix_ms / 1000),
        "request": None,
    }
