# SPDX-License-Identifier: Apache-2.0
"""Delivery of usage records, on a connection of their own, until each is acknowledged.

The ledger keeps what was not acknowledged; this sends it and tells the ledger what was. Sending
twice is harmless: the control plane knows a record by host, boot, epoch and sequence. Epochs are
delivered side by side, in order within each: what is used now has an epoch of its own while a
backlog of another one is on its way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc

from licagent.control.backoff import Backoff
from licagent.control.interface import ControlSettings
from licagent.control.transport import control_channel, described, retry_after_ms
from licagent.control.usage_source import EpochShape, UsageProgress, UsageSource
from licagent.control.usage_stream import (
    Board,
    ChainDiffers,
    EpochDone,
    UsageStream,
    UsageStreamEnded,
)
from licagent.domain.hostidentity import Identity

__all__ = ["UsageProgress", "UsageSource", "deliver_for_ever"]

_log: Final = logging.getLogger(__name__)

_STREAMS_MAX: Final = 3
"""The current epoch's, and those of the two oldest that have a backlog."""
_EPOCHS_S: Final = 2.0
_BACKLOG_RECORDS: Final = 200_000
"""With so many in front of it, what is used now gets an epoch of its own."""
_DIFFERS_TIMES: Final = 3
"""So many Welcomes in a row must say the same before an epoch is given up."""


async def deliver_for_ever(
    identity: Identity,
    address: str,
    settings: ControlSettings,
    source: UsageSource,
    *,
    told: Callable[[UsageProgress], None],
) -> None:
    """Deliver until cancelled. A failure costs a pause; what was not acknowledged is sent again.

    `told` is called on the loop whenever the progress changed.
    """
    board = Board(told)
    backoff = Backoff(settings.backoff_first_ms, settings.backoff_cap_ms)
    differs: dict[int, int] = {}
    while True:
        asked_ms = 0
        channel = control_channel(identity, address, settings)
        streams = _Streams(source, channel, board, differs)
        try:
            await streams.run()
        except grpc.aio.AioRpcError as error:
            board.update(last_error=described(error, address))
            asked_ms = retry_after_ms(error)
        except UsageStreamEnded as error:
            board.update(last_error=str(error))
        except (TimeoutError, asyncio.InvalidStateError):
            board.update(last_error=f"{address} does not answer")
        except Exception as error:  # noqa: BLE001 -- of the daemon's own making, or of its disk
            _log.warning("usage could not be delivered", exc_info=True)
            board.update(last_error=str(error)[:300] or type(error).__name__)
        finally:
            board.update(is_connected=False, epochs=0)
            await channel.close()
        if board.progress.last_error:
            _log.info("usage: %s", board.progress.last_error)
        if streams.was_welcome:
            backoff.succeeded()
        await asyncio.sleep(backoff.next_ms(asked_ms) / 1000)


class _Streams:
    """The streams of one connection, one for each epoch that is delivered."""

    def __init__(
        self,
        source: UsageSource,
        channel: grpc.aio.Channel,
        board: Board,
        differs: dict[int, int],
    ) -> None:
        self._source = source
        self._channel = channel
        self._board = board
        self._differs = differs
        self._running: dict[int, tuple[UsageStream, asyncio.Task[None]]] = {}
        self._was_welcome = False
        self._to_ask: deque[EpochShape] = deque()
        """Settled epochs: whether the control plane still has them is asked once a connection."""

    @property
    def was_welcome(self) -> bool:
        """Whether the control plane took at least one stream."""
        return self._was_welcome or any(one.was_welcome for one, _ in self._running.values())

    async def run(self) -> None:
        """Until one of them fails. Raises what it failed with."""
        self._to_ask.extend(await asyncio.to_thread(self._source.past_epochs))
        try:
            while True:
                await self._begin()
                tasks = [task for _, task in self._running.values()]
                await asyncio.wait(tasks, timeout=_EPOCHS_S, return_when=asyncio.FIRST_COMPLETED)
                await self._look()
        finally:
            self._was_welcome = self.was_welcome
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> None:
        epochs = await asyncio.to_thread(self._source.epochs)
        if len(epochs) == 1 and _backlog(epochs[0]) > _BACKLOG_RECORDS:
            await asyncio.to_thread(
                self._source.begin_epoch, "what is used now does not wait behind a backlog"
            )
            epochs = await asyncio.to_thread(self._source.epochs)
        for epoch in (*epochs[-1:], *epochs[:-1]):
            if epoch.epoch not in self._running and len(self._running) < _STREAMS_MAX:
                self._add(epoch)
        while self._to_ask and len(self._running) < _STREAMS_MAX:
            self._add(self._to_ask.popleft())
        self._board.update(epochs=len(self._running))

    def _add(self, epoch: EpochShape) -> None:
        stream = UsageStream(self._source, epoch, self._board)
        task = asyncio.ensure_future(stream.deliver(self._channel))
        self._running[epoch.epoch] = (stream, task)

    async def _look(self) -> None:
        for number, (stream, task) in list(self._running.items()):
            if stream.was_welcome:
                self._was_welcome = True
                self._differs.pop(number, None)
            if not task.done():
                continue
            del self._running[number]
            try:
                task.result()
            except EpochDone:
                pass
            except ChainDiffers as error:
                await self._differing(number, error)
                raise

    async def _differing(self, epoch: int, error: ChainDiffers) -> None:
        """Somebody put an older copy of the spool back, or the control plane is not to be trusted.

        Nothing is lost by it: the spool keeps what it has, and goes on in a new epoch.
        """
        self._board.update(alarm=str(error))
        times = self._differs[epoch] = self._differs.get(epoch, 0) + 1
        if times >= _DIFFERS_TIMES:
            del self._differs[epoch]
            await asyncio.to_thread(self._source.diverged, epoch, str(error))


def _backlog(epoch: EpochShape) -> int:
    return epoch.next_sequence - 1 - epoch.acked_sequence
