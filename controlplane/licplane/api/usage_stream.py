# SPDX-License-Identifier: Apache-2.0
"""One stream of usage records, from its hello to its end.

One batch is read and checked while the one before it is being committed; more is not read until
there is room. An acknowledgement is written after its commit, never before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from licapi.control.v1 import telemetry_pb2
from licplane.api.peers import Refused, refusal
from licplane.api.site import FAULTS, Site
from licplane.errors import PlaneError
from licplane.service.usage.intake import RECORDS_MAX
from licplane.service.usage.values import (
    Position,
    ReadRecords,
    SentBatch,
    SentGap,
    UsageHello,
    UsageRefused,
)
from licplane.service.values import SERVED, Role
from licplane.store.usage_model import Chain, SetAside

if TYPE_CHECKING:
    from licplane.api.usage_intake import UsageService

_BUSY_S: Final = 1.0
"""A batch that had to wait that long for its turn: the host is told to pause."""
_REFUSED_TOLD: Final = 100
_REASON_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class _Checked:
    """A batch or gap that follows in the chain, verified and read."""

    before: Position
    after: Position
    store: Callable[[], Position]
    records: int = 0
    refused: tuple[SetAside, ...] = ()
    is_repeated: bool = False


class UsageStream:
    """One stream, from Hello to its end."""

    def __init__(self, service: UsageService, site: Site, context: Any, shown: str) -> None:
        self._service = service
        self._site = site
        self._limits = site.settings.limits
        self._context = context
        self._shown = shown
        self._chain = Chain("", 0, b"")
        self._held = 0
        self._rows = 0
        self._storing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the host ends it. Raises Refused."""
        try:
            at = await self._begin()
            while (message := await self._next()) is not None:
                began_s = time.monotonic()
                if len(message.batch.records) > RECORDS_MAX:
                    raise Refused(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"A batch has at most {RECORDS_MAX} records",
                        "malformed",
                    )
                self._rows = await self._service.rows.take(len(message.batch.records))
                checked = await self._call("check", self._check, at, message)
                at = checked.after
                await self._stored()
                held, self._held = self._held, 0
                rows, self._rows = self._rows, 0
                self._storing = asyncio.ensure_future(self._store(checked, held, rows, began_s))
            await self._stored()
        finally:
            if self._storing is not None:
                # A commit that began is not torn; that its ack is lost does no harm.
                with contextlib.suppress(Refused, asyncio.CancelledError):
                    await asyncio.shield(self._storing)
            self._service.release(self._held)
            self._service.rows.give(self._rows)

    async def _next(self) -> telemetry_pb2.UsageUp | None:
        """The next message. Raises as soon as the commit that is under way fails: a host that
        waits for its acknowledgement sends nothing more."""
        reading = asyncio.ensure_future(self._message())
        try:
            if self._storing is not None:
                both = {reading, self._storing}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if self._storing.done():
                    await self._stored()
            return await reading
        finally:
            reading.cancel()

    async def _stored(self) -> None:
        """Until nothing is being committed. Raises what it failed with."""
        if self._storing is not None:
            storing, self._storing = self._storing, None
            await storing

    async def _begin(self) -> Position:
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                message = await self._message()
        except TimeoutError as error:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "No hello came", "hello") from error
        if message is None or message.WhichOneof("body") != "hello":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "A hello comes first", "malformed")
        self._service.release(self._held)
        self._held = 0
        self._chain = await self._call("hello", self._open, message.hello)
        welcome = telemetry_pb2.UsageWelcome(
            epoch=self._chain.epoch,
            acked_sequence=self._chain.acked_sequence,
            acked_hash=self._chain.acked_hash,
            window=self._limits.usage_window,
        )
        await self._write(telemetry_pb2.UsageDown(welcome=welcome))
        return Position(self._chain.acked_sequence, self._chain.acked_hash)

    async def _message(self) -> telemetry_pb2.UsageUp | None:
        data = await self._context.read()
        if data is grpc.aio.EOF:
            return None
        if len(data) > self._limits.message_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "The message is too long", "oversized"
            )
        self._service.hold(len(data))
        self._held = len(data)
        try:
            return telemetry_pb2.UsageUp.FromString(data)
        except DecodeError as error:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "The message is malformed", "malformed"
            ) from error

    # --- on a thread

    def _open(self, hello: telemetry_pb2.UsageHello) -> Chain:
        return self._site.plane.usage_intake.open(
            self._host(),
            UsageHello(
                epoch=hello.epoch,
                public_key=hello.public_key,
                boot_id=hello.boot_id,
                first_sequence=hello.first_sequence,
                next_sequence=hello.next_sequence,
            ),
        )

    def _host(self) -> str:
        """Who the peer is. Asked for each batch: a certificate may end at any."""
        identity = self._site.plane.authenticate(self._shown)
        if identity.role is not Role.HOST:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Only hosts send usage", "role")
        if identity.status is not None and identity.status not in SERVED:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED, "The host may not speak for itself now", "status"
            )
        return identity.host_id

    def _check(self, at: Position, message: telemetry_pb2.UsageUp) -> _Checked:
        if self._host() != self._chain.host_id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "The host is another one", "role")
        plane, chain = self._site.plane.usage_intake, self._chain
        kind = message.WhichOneof("body")
        if kind == "gap":
            gap = _gap(message.gap)
            if gap.last <= at.sequence:
                plane.repeated(chain, gap)
                return _Checked(at, at, lambda: at, is_repeated=True)
            after = Position(gap.last, gap.next_previous_hash)
            return _Checked(at, after, lambda: plane.gaps.store(chain, at, gap))
        if kind != "batch" or not message.batch.records:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "A batch or a gap is expected", "malformed"
            )
        batch = _batch(message.batch)
        if batch.last <= at.sequence:
            plane.repeated(chain, batch)
            return _Checked(at, at, lambda: at, is_repeated=True)
        signed = plane.check(chain, at, batch)
        read: ReadRecords = self._service.reader.read(batch.first, batch.records)
        return _Checked(
            at,
            Position(batch.last, batch.hash),
            lambda: plane.store(chain, at, batch, signed, read),
            records=len(read.rows),
            refused=tuple(read.refused),
        )

    # --- on the loop

    async def _store(self, checked: _Checked, held: int, rows: int, began_s: float) -> None:
        metrics = self._site.metrics
        try:
            waited_s = time.monotonic()
            async with self._service.turns:
                waited_s = time.monotonic() - waited_s
                after = await self._call("store", checked.store)
        finally:
            self._service.release(held)
            self._service.rows.give(rows)
        result = "repeated" if checked.is_repeated else "stored"
        metrics.count("licplane_usage_batches_total", result=result)
        metrics.count("licplane_usage_records_total", checked.records, result="stored")
        metrics.count("licplane_usage_records_total", len(checked.refused), result="refused")
        metrics.observe("licplane_usage_commit_seconds", time.monotonic() - began_s)
        ack = telemetry_pb2.UsageAck(
            epoch=self._chain.epoch,
            sequence=after.sequence,
            hash=after.hash,
            pause_ms=self._limits.telemetry_pause_ms if waited_s > _BUSY_S else 0,
            refused=[
                telemetry_pb2.UsageRefusal(sequence=one.sequence, reason=one.reason[:_REASON_MAX])
                for one in checked.refused[:_REFUSED_TOLD]
            ],
        )
        await self._write(telemetry_pb2.UsageDown(ack=ack))

    async def _write(self, message: telemetry_pb2.UsageDown) -> None:
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await self._context.write(message.SerializeToString())
        except TimeoutError as error:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "The host does not read", "slow"
            ) from error

    async def _call(self, what: str, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._site.usage(work, *args)
        except UsageRefused as error:
            self._site.metrics.count("licplane_usage_alarms_total", code=error.alarm)
            self._site.fault(f"usage of {self._chain.host_id or self._shown[:16]}", error)
            raise refusal(error) from error
        except PlaneError as error:
            raise refusal(error) from error
        except FAULTS as error:
            self._site.fault(f"usage {what}", error)
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "The database does not answer", "database"
            ) from error


def _batch(message: telemetry_pb2.UsageBatch) -> SentBatch:
    return SentBatch(
        epoch=message.epoch,
        boot_id=message.boot_id,
        first=message.first_sequence,
        records=list(message.records),
        previous_hash=message.previous_hash,
        hash=message.hash,
        signature=message.signature,
    )


def _gap(message: telemetry_pb2.UsageGap) -> SentGap:
    return SentGap(
        epoch=message.epoch,
        first=message.first_sequence,
        last=message.last_sequence,
        reason=message.reason,
        next_previous_hash=message.next_previous_hash,
        signature=message.signature,
    )
