# SPDX-License-Identifier: Apache-2.0
"""When the ledger is delivered, and to whom: while this host is one of a control plane's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from licagent.control.interface import ControlPhase
from licagent.control.usage_source import UsageProgress
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.control.interface import ControlState
    from licagent.daemon.agent import Agent

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
_GOING: Final = (ControlPhase.CONNECTING, ControlPhase.CONNECTED, ControlPhase.WAITING)


@dataclass(frozen=True, slots=True)
class _Peer:
    """What a delivery depends on; with another one it is begun again."""

    host_id: str
    server: str
    certificate_end_unix_ms: int


class UsageDelivery:
    """Runs `deliver_for_ever` for the identity that the host has."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._welcomed: _Peer | None = None
        self.progress = UsageProgress()

    async def run(self) -> None:
        """Until cancelled. A session that was never welcome under an identity delivers nothing."""
        while True:
            peer = self._peer()
            source = self._source()
            if peer is None or source is None:
                await asyncio.sleep(_LOOK_S)
                continue
            task = asyncio.ensure_future(self._deliver(peer))
            try:
                while not task.done() and self._peer() == peer and self._source() is source:
                    await asyncio.wait([task], timeout=_LOOK_S)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                self.progress = UsageProgress()
            await asyncio.sleep(_LOOK_S)

    def _peer(self) -> _Peer | None:
        state: ControlState = self._agent.link.state
        if state.phase not in _GOING or not state.host_id or not state.server:
            return None
        peer = _Peer(state.host_id, state.server, state.certificate_end_unix_ms)
        if state.phase is ControlPhase.CONNECTED:
            self._welcomed = peer
        # While the session is away delivery goes on by itself, or waits for the same network.
        return peer if peer == self._welcomed else None

    def _source(self) -> object:
        parts = self._agent.metering.parts
        return None if parts is None else parts.ledger

    async def _deliver(self, peer: _Peer) -> None:
        from licagent.control.usage import deliver_for_ever  # loads gRPC

        parts = self._agent.metering.parts
        try:
            identity = await asyncio.to_thread(self._agent.link.identities.load)
        except StoreError as error:
            _log.error("%s", error)
            return
        if identity is None or parts is None:
            return
        settings = self._agent.link.settings
        try:
            await deliver_for_ever(identity, peer.server, settings, parts.ledger, told=self._told)
        except Exception:  # noqa: BLE001 - no fault of delivery may end enforcement's keeper
            _log.exception("delivery of usage failed; it is begun again")

    def _told(self, progress: UsageProgress) -> None:
        before, self.progress = self.progress, progress
        if progress.alarm and progress.alarm != before.alarm:
            self._agent.link.alarm(progress.alarm)
