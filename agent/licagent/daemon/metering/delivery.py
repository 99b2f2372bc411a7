# SPDX-License-Identifier: Apache-2.0
"""When the ledger is delivered, and to whom: while this host is one of a control plane's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from licagent.control.interface import ControlPhase
from licagent.control.usage_source import UsageProgress
from licagent.control.usage_wire import RecordDamaged, decode
from licagent.store.errors import StoreError
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import Batch

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


class LedgerSource:
    """`control.usage_source.UsageSource`: the ledger, and a record of what it sets aside."""

    def __init__(self, ledger: Ledger, note_gap: Callable[[int, int, str], None]) -> None:
        """`note_gap`: start and end (Unix ms) and why; it is delivered in the next epoch."""
        self._note_gap = note_gap
        self._ledger = ledger
        self.epochs = ledger.epochs
        self.past_epochs = ledger.past_epochs
        self.batches = ledger.batches
        self.acknowledge = ledger.acknowledge
        self.begin_epoch = ledger.begin_epoch

    def diverged(self, epoch: int, reason: str) -> None:
        """See `UsageSource`.

        Some of it may be what the control plane has, some was used after an older copy of the
        folder was put back: nobody can tell them apart, and billed twice is worse than named.
        """
        found = next((each for each in self._ledger.epochs() if each.epoch == epoch), None)
        start_ms = None
        if found is not None and found.acked_sequence < found.next_sequence - 1:
            start_ms = self._begun_ms(epoch, found.acked_sequence)
        self._ledger.diverged(epoch, reason)
        if found is not None and start_ms is not None:
            which = f"records {found.acked_sequence + 1} to {found.next_sequence - 1}"
            detail = f"{which} of epoch {epoch} are not delivered: {reason}"
            self._note_gap(start_ms, time.time_ns() // 1_000_000, detail)

    def _begun_ms(self, epoch: int, after: int) -> int:
        """When the first record that is not acknowledged begins; now where it cannot be read."""
        with contextlib.suppress(StoreError, OSError, RecordDamaged):
            for item in self._ledger.batches(after, limit_bytes=1, epoch=epoch):
                if isinstance(item, Batch):
                    number = max(0, after + 1 - item.first)
                    return decode(item.records[number]).start_unix_ms
        return time.time_ns() // 1_000_000


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
            source = LedgerSource(parts.ledger, parts.sampler.note_gap)
            await deliver_for_ever(identity, peer.server, settings, source, told=self._told)
        except Exception:  # noqa: BLE001 - no fault of delivery may end enforcement's keeper
            _log.exception("delivery of usage failed; it is begun again")

    def _told(self, progress: UsageProgress) -> None:
        before, self.progress = self.progress, progress
        if progress.alarm and progress.alarm != before.alarm:
            self._agent.link.alarm(progress.alarm)
