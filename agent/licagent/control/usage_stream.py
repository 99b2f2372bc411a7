# SPDX-License-Identifier: Apache-2.0
"""One stream of usage: one epoch's records, from Hello to the stream's end. Loads gRPC.

Nothing is believed that cannot be true: an acknowledgement counts only for a batch that was sent
on this stream, with the hash that the ledger has there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar, cast

import grpc

from licagent.control.usage_source import (
    BatchShape,
    EpochShape,
    GapShape,
    UsageProgress,
    UsageSource,
)
from licagent.control.usage_wire import batch_message, gap_message, hello_message
from licapi.control.v1 import telemetry_pb2, telemetry_pb2_grpc

T = TypeVar("T")

_WELCOME_S: Final = 30.0
_ACK_S: Final = 120.0
"""A batch that is not acknowledged by then is sent again, on a new stream."""
_LOOK_S: Final = 0.5
"""How often the ledger is asked whether there is more."""
_WINDOW_MAX: Final = 64
_PAUSE_MAX_MS: Final = 3_600_000
_READ_BYTES: Final = 2 * 1024 * 1024
_DETAIL_MAX: Final = 300


class UsageStreamEnded(Exception):
    """The control plane ended the stream, or said something that cannot be true."""


class ChainDiffers(UsageStreamEnded):
    """The control plane has another chain under this epoch, or says so."""


class EpochDone(Exception):
    """An epoch that gets no more records is wholly acknowledged."""


@dataclass(slots=True)
class Board:
    """The progress that all streams of a connection write on."""

    told: Callable[[UsageProgress], None]
    progress: UsageProgress = field(default_factory=UsageProgress)

    def update(self, **changes: Any) -> None:
        """Change fields; tell if anything is new."""
        changed = replace(self.progress, **changes)
        if changed != self.progress:
            self.progress = changed
            self.told(changed)


@dataclass(frozen=True, slots=True)
class _Sent:
    first: int
    last: int
    hash: bytes
    at_s: float


class UsageStream:
    """Delivers one epoch. `deliver` ends with an exception, always."""

    def __init__(self, source: UsageSource, epoch: EpochShape, board: Board) -> None:
        self._source = source
        self._epoch = epoch
        self._board = board
        self._sent: deque[_Sent] = deque()
        self._room = asyncio.Event()
        self._window = 1
        self._not_before_s = 0.0
        self.was_welcome = False

    async def deliver(self, channel: grpc.aio.Channel) -> None:
        """Until cancelled. Raises AioRpcError, TimeoutError, UsageStreamEnded, ChainDiffers,
        EpochDone, and what the ledger raises."""
        call = telemetry_pb2_grpc.TelemetryStub(channel).Usage()
        try:
            async with asyncio.timeout(_WELCOME_S):
                await call.write(hello_message(self._epoch))
                after, previous = await self._welcomed(call)
            self.was_welcome = True
            self._board.update(is_connected=True, last_error="")
            tasks = [
                asyncio.ensure_future(self._send(call, after, previous)),
                asyncio.ensure_future(self._receive(call)),
                asyncio.ensure_future(self._watch()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                # What the server said counts for more than a write that failed because of it.
                for task in sorted(done, key=lambda one: one is not tasks[1]):
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._forget_flight()
            call.cancel()

    # --- the beginning

    async def _welcomed(self, call: Any) -> tuple[int, bytes]:
        """Where to go on: the sequence that the control plane has, and its hash there."""
        message = await self._read(call)
        if message.WhichOneof("body") != "welcome" or message.welcome.epoch != self._epoch.epoch:
            raise UsageStreamEnded("the control plane did not say where to begin")
        welcome = message.welcome
        self._window = max(1, min(welcome.window, _WINDOW_MAX))
        sequence, chain_hash = welcome.acked_sequence, bytes(welcome.acked_hash)
        if sequence and not await self._acknowledged(sequence, chain_hash):
            raise ChainDiffers(
                f"the control plane has epoch {self._epoch.epoch} up to {sequence} in a form that"
                " this host never sent"
            )
        return sequence, chain_hash if sequence else bytes(32)

    # --- sending

    async def _send(self, call: Any, after: int, previous: bytes) -> None:
        while True:
            await self._may_send()
            items = await self._thread(partial(self._next, after))
            if not items:
                await self._nothing_to_send(after)
                continue
            for item in items:
                if item.first != after + 1:
                    raise UsageStreamEnded(
                        f"the spool goes on at {item.first}, and {after + 1} is wanted"
                    )
                await self._may_send()
                message = self._message(item, previous)
                previous, after = chain_after(item), item.last
                self._note_sent(item)  # before: its ack may be here before the write returns
                await call.write(message)

    def _next(self, after: int) -> list[BatchShape | GapShape]:
        epoch = self._epoch.epoch
        return list(self._source.batches(after, limit_bytes=_READ_BYTES, epoch=epoch))

    @staticmethod
    def _message(item: BatchShape | GapShape, previous: bytes) -> telemetry_pb2.UsageUp:
        if is_gap(item):
            return gap_message(cast("GapShape", item))
        batch = cast("BatchShape", item)
        if batch.previous_hash != previous:
            raise ChainDiffers(f"the control plane's chain before {batch.first} is not ours")
        return batch_message(batch)

    def _note_sent(self, item: BatchShape | GapShape) -> None:
        now_s = time.monotonic()
        self._sent.append(_Sent(item.first, item.last, chain_after(item), now_s))
        count = item.last - item.first + 1
        in_flight = self._board.progress.in_flight_records + count
        self._board.update(in_flight_records=in_flight)

    async def _may_send(self) -> None:
        while True:
            left_s = self._not_before_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
            elif len(self._sent) < self._window:
                return
            else:
                self._room.clear()
                await self._room.wait()

    async def _nothing_to_send(self, after: int) -> None:
        states = await self._thread(self._source.epochs)
        mine = [one for one in states if one.epoch == self._epoch.epoch]
        is_over = not mine or not mine[0].is_current
        if is_over and not self._sent and (not mine or after >= mine[0].next_sequence - 1):
            raise EpochDone
        await asyncio.sleep(_LOOK_S)

    # --- hearing

    async def _receive(self, call: Any) -> None:
        while True:
            message = await self._read(call)
            if message.WhichOneof("body") != "ack":
                raise UsageStreamEnded("the control plane said something that is not an ack")
            await self._take(message.ack)

    async def _take(self, ack: telemetry_pb2.UsageAck) -> None:
        at = next((n for n, one in enumerate(self._sent) if one.last == ack.sequence), None)
        if at is None or ack.epoch != self._epoch.epoch:
            raise self._forged(ack, "which is the end of nothing that was sent")
        if self._sent[at].hash != ack.hash:
            raise self._forged(ack, "with another hash than ours")
        if not await self._acknowledged(ack.sequence, bytes(ack.hash)):
            raise self._forged(ack, "which the spool does not know")
        count = 0
        for _ in range(at + 1):
            one = self._sent.popleft()
            count += one.last - one.first + 1
        pause_ms = min(ack.pause_ms, _PAUSE_MAX_MS)
        if pause_ms:
            self._not_before_s = time.monotonic() + pause_ms / 1000
        now_ms = time.time_ns() // 1_000_000
        known = self._board.progress
        self._board.update(
            acknowledged_records=known.acknowledged_records + count,
            acknowledged_at_unix_ms=now_ms,
            in_flight_records=max(0, known.in_flight_records - count),
            paused_until_unix_ms=now_ms + pause_ms if pause_ms else 0,
            **self._refusals(ack),
        )
        self._room.set()

    def _refusals(self, ack: telemetry_pb2.UsageAck) -> dict[str, Any]:
        if not ack.refused:
            return {}
        last = ack.refused[-1]
        why = "".join(c if c.isprintable() else "?" for c in last.reason[:_DETAIL_MAX])
        words = f"record {last.sequence} of epoch {self._epoch.epoch}: {why}"
        return {
            "refused_records": self._board.progress.refused_records + len(ack.refused),
            "last_refusal": words,
            "alarm": f"the control plane set records aside, which are not billed: {words}",
        }

    def _forged(self, ack: telemetry_pb2.UsageAck, why: str) -> UsageStreamEnded:
        self._board.update(
            alarm=f"an acknowledgement was not believed: of sequence {ack.sequence} in epoch"
            f" {ack.epoch}, {why}"
        )
        return UsageStreamEnded("an acknowledgement that cannot be true")

    async def _watch(self) -> None:
        """Raises TimeoutError when the oldest batch waits too long."""
        while True:
            await asyncio.sleep(1.0)
            if self._sent and time.monotonic() - self._sent[0].at_s > _ACK_S:
                raise TimeoutError

    # --- small things

    async def _acknowledged(self, sequence: int, chain_hash: bytes) -> bool:
        return await self._thread(
            lambda: self._source.acknowledge(sequence, chain_hash, epoch=self._epoch.epoch)
        )

    def _forget_flight(self) -> None:
        lost = sum(one.last - one.first + 1 for one in self._sent)
        self._sent.clear()
        left = max(0, self._board.progress.in_flight_records - lost)
        self._board.update(in_flight_records=left)

    @staticmethod
    async def _thread(work: Callable[[], T]) -> T:
        """Run it on a thread, to its end: the ledger is not left in the middle."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await task
            raise

    @staticmethod
    async def _read(call: Any) -> telemetry_pb2.UsageDown:
        message = await call.read()
        if message is grpc.aio.EOF:
            raise UsageStreamEnded("the control plane ended the stream")
        found: telemetry_pb2.UsageDown = message
        return found


def is_gap(item: BatchShape | GapShape) -> bool:
    """Whether it holds no records."""
    return not hasattr(item, "records")


def chain_after(item: BatchShape | GapShape) -> bytes:
    """The chain's hash after it."""
    if is_gap(item):
        return cast("GapShape", item).next_previous_hash
    return cast("BatchShape", item).hash
