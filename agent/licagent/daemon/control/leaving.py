# SPDX-License-Identifier: Apache-2.0
"""This host goes for good: licenses end, the last usage is delivered, then it is nobody's host.

Begun by `licagent leave`, or by the control plane (`licplane host decommission`): both set the
status of the assignment, which survives restarts. It goes on by itself until it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from licagent.control.interface import ControlPhase, HostStatus, NoticeCode
from licagent.control.join import EnrolmentFailed
from licagent.daemon.control.join_credential import note_left
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.control.link import ControlLink
    from licagent.local.peer import Peer

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 0.5
_AGAIN_S: Final = 5.0


class Leaving:
    """The way out, step by step. On the loop."""

    def __init__(self, agent: Agent, link: ControlLink) -> None:
        self._agent = agent
        self._link = link
        self._left = asyncio.Event()
        self.problem = ""
        """Why it is not done yet."""

    @property
    def is_wanted(self) -> bool:
        """Whether the assignment says that this host is to go."""
        found = self._agent.membership.assignment
        return found is not None and found.status is HostStatus.LEAVING

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self.is_wanted:
                continue
            try:
                if not await self._step():
                    continue
                await self.forget("it left, and its last usage is settled")
            except (EnrolmentFailed, StoreError, OSError) as error:
                if str(error) != self.problem:
                    _log.warning("this host cannot leave yet: %s", error)
                self.problem = str(error)
                await asyncio.sleep(_AGAIN_S)
                continue
            self._left.set()

    async def wait(self, limit_s: float) -> bool:
        """Whether this host left within the time."""
        try:
            async with asyncio.timeout(limit_s):
                await self._left.wait()
        except TimeoutError:
            return False
        return True

    async def announce(self) -> None:
        """Ask the control plane to be let go. Raises LocalError."""
        self._left.clear()
        identity = await asyncio.to_thread(self._link.identities.load)
        if identity is None:
            raise LocalError(ErrorCode.NOT_FOUND, "this host has joined no control plane")
        if self.is_wanted:
            return
        from licagent.control.leaving import announce  # loads gRPC

        address = self._link.settings.server or identity.control_address
        try:
            await announce(identity, address, self._link.settings)
        except EnrolmentFailed as error:
            raise LocalError(
                ErrorCode.REFUSED,
                f"the control plane does not let this host go: {error}",
                "where it is lost for good: licagent leave --forget",
                {"reason": error.code},
            ) from error
        self._link.wake()

    async def forget(self, why: str) -> None:
        """Be nobody's host: identity, catalog and leases go, policy and licenses with them."""
        link = self._link
        # First: a crash after it must not bring the host back by its image's join token.
        await asyncio.to_thread(note_left, self._agent.state, why)
        await asyncio.to_thread(link.identities.forget)
        await asyncio.to_thread(link.catalogs.clear)
        self.problem = ""
        await link.begin_again_without()
        await link.tell_left(why)

    async def _step(self) -> bool:
        """One try; whether this host is out now."""
        link, agent = self._link, self._agent
        if link.state.phase is ControlPhase.STOPPED and link.state.notice is NoticeCode.EVICTED:
            return True  # the answer was lost, but not what it said
        if link.state.phase is not ControlPhase.CONNECTED:
            self.problem = "there is no link to the control plane"
            return False
        parts = agent.metering.parts
        ends: list[tuple[int, int]] = []
        if parts is not None:
            lost = await agent.metering.flush()
            if lost:
                self.problem = f"the last usage cannot be committed: {lost}"
                return False
            epochs = await asyncio.to_thread(parts.ledger.epochs)
            waiting = sum(one.next_sequence - 1 - one.acked_sequence for one in epochs)
            ends = [(one.epoch, one.next_sequence - 1) for one in epochs]
            if waiting:
                self.problem = f"{waiting} usage records are not acknowledged yet"
                return False
        identity = await asyncio.to_thread(link.identities.load)
        if identity is None:
            return True
        from licagent.control.leaving import finish  # loads gRPC

        address = link.settings.server or identity.control_address
        await finish(identity, address, link.settings, ends)
        return True


async def answer(agent: Agent, params: Mapping[str, Any], peer: Peer) -> Mapping[str, object]:
    """`licagent leave`. LocalError where nothing was begun."""
    leaving, link = agent.link.leaving, agent.link
    host_id = link.state.host_id
    if params.get("forget"):
        identity = await asyncio.to_thread(link.identities.load)
        if identity is None:
            raise LocalError(ErrorCode.NOT_FOUND, "this host has joined no control plane")
        try:
            await leaving.forget(f"uid {peer.uid} let it forget the control plane")
        except (StoreError, OSError) as error:
            raise LocalError(ErrorCode.REFUSED, f"it is not forgotten: {error}") from error
        return {"schema_version": 1, "left": True, "settled": False, "host_id": identity.host_id}
    if link.is_off:
        raise LocalError(
            ErrorCode.REFUSED,
            "the settings want no link to the control plane",
            'set control to "auto", or: licagent leave --forget',
        )
    await leaving.announce()
    done = await leaving.wait(float(params.get("wait_s") or 0))
    return {
        "schema_version": 1,
        "left": done,
        "settled": done,
        "host_id": host_id,
        "problem": None if done else leaving.problem or "it has only begun",
    }
