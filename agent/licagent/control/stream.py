# SPDX-License-Identifier: Apache-2.0
"""One sync stream, from Hello to its end.

Four loops: reading, which hands revocations to the daemon at once; working, which takes deltas,
assignments and leases one after the other; writing; and asking for leases. The first one to end
ends the stream, but never tears a change that is being applied (CatalogKeeper).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import grpc

from licagent.control.catalog import CatalogKeeper, called
from licagent.control.interface import (
    ControlCallbacks,
    ControlSettings,
    NackReason,
    NoticeCode,
    Refused,
)
from licagent.control.leases import LeaseKeeper
from licagent.control.wire import delta_part, sealed, signed, view_message
from licagent.domain.catalog import Kind, SignedBytes
from licagent.domain.delta_parts import DeltaParts, GatheredDelta
from licapi.control.v1 import sync_pb2, sync_pb2_grpc

_log: Final = logging.getLogger(__name__)

_WELCOME_S: Final = 30.0
_WAITING_MAX: Final = 64
_UNSENT_MAX: Final = 1024
_DETAIL_MAX: Final = 3_000
_STATEMENTS: Final = 40
"""Of one message, which has at most 64 KiB; a statement is a JWS of about 600 bytes."""
_PARTS_MAX: Final = 200
_RENEW_WITHIN_MAX_MS: Final = 3_600_000
COUNTER_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """What the stream has to say for `ControlState`; None: as before."""

    is_connected: bool | None = None
    newest_revision: int | None = None
    synced: bool = False  # a delta was taken and ACKed
    refusal: str | None = None  # of a delta; "" once one was taken
    leases: bool = False
    assignment: bool = False


class StreamEnded(Exception):
    """The server ended the stream, or broke the protocol."""

    def __init__(
        self, detail: str, code: NoticeCode = NoticeCode.UNSPECIFIED, retry_after_ms: int = 0
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.retry_after_ms = retry_after_ms


@dataclasses.dataclass(frozen=True, slots=True)
class _Assigned:
    proof: SignedBytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Leased:
    bundle: SignedBytes


_Work = tuple[int, GatheredDelta | _Assigned | _Leased]


class SyncStream:
    """One stream. `run` once."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        keeper: CatalogKeeper,
        leases: LeaseKeeper,
        callbacks: ControlCallbacks,
        settings: ControlSettings,
        *,
        progress: Callable[[Progress], None],
    ) -> None:
        self._channel = channel
        self._keeper = keeper
        self._leases = leases
        self._callbacks = callbacks
        self._settings = settings
        self._progress = progress
        self._parts = DeltaParts()
        self._work: asyncio.Queue[_Work] = asyncio.Queue(_WAITING_MAX)
        self._out: asyncio.Queue[sync_pb2.AgentMessage] = asyncio.Queue(_UNSENT_MAX)
        self.welcomed = asyncio.Event()
        self.renewal_wanted = asyncio.Event()
        """The control plane asks for it: its roots have changed."""
        self.renew_within_ms = 0
        self._has_remembered = False
        self.report_interval_ms = 0

    async def run(self) -> None:
        """Until the stream ends. Raises StreamEnded or grpc.aio.AioRpcError, always."""
        await self._keeper.settled()
        stub = sync_pb2_grpc.SyncStub(self._channel)
        call = stub.Stream()
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # `_welcome` will say why
                await call.write(self._hello())
            await self._welcome(call)
            await first_to_end(
                self._reading(call), self._working(), self._writing(call), self._asking()
            )
        finally:
            call.cancel()
            await self._keeper.settled()

    def _hello(self) -> sync_pb2.AgentMessage:
        identity = self._keeper.identity
        manifest = self._keeper.replica.manifest
        hello = sync_pb2.Hello(
            counter=identity.counter,
            boot_id=self._settings.boot_id,
            agent_version=self._settings.agent_version,
            assignment_sequence=self._keeper.assignment.sequence,
            view=view_message(self._keeper.assignment.view),
        )
        if manifest is not None:
            hello.revision = manifest.revision
            hello.digest = manifest.digest
            hello.view.CopyFrom(view_message(manifest.view))
        return sync_pb2.AgentMessage(hello=hello)

    async def _welcome(self, call: Call) -> None:
        try:
            async with asyncio.timeout(_WELCOME_S):
                message = await _read(call)
        except TimeoutError as error:
            raise StreamEnded(f"no Welcome came within {_WELCOME_S:g} s") from error
        if message.WhichOneof("message") == "notice":
            self._notice(message.notice)
        if message.WhichOneof("message") != "welcome":
            raise StreamEnded("the server did not begin with Welcome")
        welcome = message.welcome
        self.report_interval_ms = welcome.report_interval_ms
        if welcome.lease_ttl_ms:
            self._leases.ttl_ms = welcome.lease_ttl_ms
        self._progress(Progress(is_connected=True))
        await self._keep_counter(welcome.counter)
        self.welcomed.set()

    async def _keep_counter(self, counter: bytes) -> None:
        if len(counter) != COUNTER_BYTES:
            raise StreamEnded(f"the counter of Welcome has {len(counter)} bytes")
        try:
            kept = await self._keeper.replace_identity(
                dataclasses.replace(self._keeper.identity, counter=counter)
            )
        except Exception as error:  # noqa: BLE001 -- the disk; the old counter still holds
            _log.warning("the counter of this host could not be kept: %s", error)
            return
        if not kept:
            raise StreamEnded("this host has become another one meanwhile")
        self._send(sync_pb2.AgentMessage(counter_kept=sync_pb2.CounterKept(counter=counter)))

    async def _reading(self, call: Call) -> None:
        while True:
            message = await _read(call)
            which = message.WhichOneof("message")
            if which == "revocations":
                await self._revoke(message.nonce, message.revocations)
            elif which == "notice":
                self._notice(message.notice)
            elif which == "delta":
                self._gather(message.nonce, message.delta)
            elif which == "assignment":
                self._wait(message.nonce, _Assigned(signed(message.assignment)))
            elif which == "leases":
                self._wait(message.nonce, _Leased(signed(message.leases)))
            else:
                _log.info("passed over a message of the control plane: %s", which)
            self._progress(Progress())

    def _gather(self, nonce: int, delta: sync_pb2.Delta) -> None:
        try:
            whole = self._parts.add(delta_part(delta))
        except Refused as error:
            self._refuse(nonce, error, is_delta=True)
            return
        self._progress(Progress(newest_revision=delta.to_revision))
        if whole is not None:
            self._wait(nonce, whole)

    def _wait(self, nonce: int, work: GatheredDelta | _Assigned | _Leased) -> None:
        try:
            self._work.put_nowait((nonce, work))
        except asyncio.QueueFull as error:
            # Waiting here would let a revocation wait too. What was not taken comes again, in
            # one delta, with the next stream.
            raise StreamEnded(
                f"{_WAITING_MAX} messages wait for the kernel; starting over"
            ) from error

    async def _revoke(self, nonce: int, message: sync_pb2.Revocations) -> None:
        tokens = [each.payload for each in message.objects if not each.removed]
        try:
            if any(int(each.kind) != Kind.REVOCATION for each in message.objects):
                raise Refused(
                    NackReason.SIGNATURE, "an object among the revocations is of another kind"
                )
            await called(self._callbacks.apply_revocations(tokens))
        except Refused as error:
            self._refuse(nonce, error)
            return
        self._accept(nonce)

    async def _working(self) -> None:
        while True:
            nonce, work = await self._work.get()
            is_delta = isinstance(work, GatheredDelta)
            try:
                if isinstance(work, GatheredDelta):
                    await self._take_delta(work)
                elif isinstance(work, _Assigned):
                    await self._keeper.take_assignment(work.proof)
                    self._progress(Progress(assignment=True))
                else:
                    await self._leases.take(work.bundle)
                    self._progress(Progress(leases=True))
            except Refused as error:
                self._refuse(nonce, error, is_delta=is_delta)
                continue
            self._accept(nonce)
            if is_delta:
                self._progress(Progress(synced=True, refusal=""))

    async def _take_delta(self, delta: GatheredDelta) -> None:
        taken = await self._keeper.take_delta(delta)
        if taken.asks_for_leases:
            self._leases.ask_now()

    async def _asking(self) -> None:
        while True:
            request = await self._leases.next_request()
            self._send(
                sync_pb2.AgentMessage(
                    lease_request=sync_pb2.LeaseRequest(
                        nonce=request.nonce, boot_id=request.boot_id
                    )
                )
            )

    async def _writing(self, call: Call) -> None:
        while True:
            await _write(call, await self._out.get())

    def _notice(self, notice: sync_pb2.Notice) -> None:
        try:
            code = NoticeCode(notice.code)
        except ValueError:
            code = NoticeCode.UNSPECIFIED
        detail = notice.detail or f"the control plane says: {code.name.lower()}"
        if code is NoticeCode.UNSPECIFIED:
            self._callbacks.notice(code, detail)
            return
        if code is NoticeCode.RENEW:
            self.renew_within_ms = min(notice.retry_after_ms, _RENEW_WITHIN_MAX_MS)
            self.renewal_wanted.set()
            return
        raise StreamEnded(detail, code, notice.retry_after_ms)

    def _accept(self, nonce: int) -> None:
        revision = self._keeper.replica.revision
        self._send(sync_pb2.AgentMessage(ack=sync_pb2.Ack(nonce=nonce, revision=revision)))

    def _refuse(self, nonce: int, error: Refused, *, is_delta: bool = False) -> None:
        _log.warning("refused what the control plane sent: %s", error)
        nack = sync_pb2.Nack(
            nonce=nonce,
            revision=self._keeper.replica.revision,
            reason=cast("sync_pb2.NackReason.ValueType", int(error.reason)),
            detail=error.detail[:_DETAIL_MAX].encode("utf-8", "replace").decode(),
        )
        self._send(sync_pb2.AgentMessage(nack=nack))
        if is_delta and error.reason is NackReason.ROLLBACK and not self._has_remembered:
            self._has_remembered = True
            self._remember()
        if is_delta:
            self._progress(Progress(refusal=str(error)))

    def _remember(self) -> None:
        """The server's database is an older copy: tell it what it was that took rights away."""
        held = self._keeper.replica.objects.values()
        statements = [each.payload for each in held if each.kind is Kind.REVOCATION]
        parts = [
            statements[at : at + _STATEMENTS] for at in range(0, len(statements), _STATEMENTS)
        ] or [[]]
        for number, part in enumerate(parts[:_PARTS_MAX]):
            told = sync_pb2.Remembered(statements=part)
            if number == 0:
                told.assignment.CopyFrom(sealed(self._keeper.identity.assignment))
            self._send(sync_pb2.AgentMessage(remembered=told))

    def _send(self, message: sync_pb2.AgentMessage) -> None:
        try:
            self._out.put_nowait(message)
        except asyncio.QueueFull as error:
            raise StreamEnded("the server does not read what it is answered") from error


Call = grpc.aio.StreamStreamCall[sync_pb2.AgentMessage, sync_pb2.ServerMessage]


async def _read(call: Call) -> sync_pb2.ServerMessage:
    message = await call.read()
    if message is grpc.aio.EOF:
        raise StreamEnded("the control plane ended the stream")
    return cast("sync_pb2.ServerMessage", message)


async def _write(call: Call, message: sync_pb2.AgentMessage) -> None:
    try:
        await call.write(message)
    except asyncio.InvalidStateError as error:  # it ended; the reader knows why
        raise StreamEnded("the stream ended") from error


async def first_to_end(*loops: Coroutine[Any, Any, None]) -> None:
    """Run loops until one ends, then end the others; raises what the first one raised."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # Where several end at once, the server's own words say more than that a write failed.
    errors = [error for task in done if (error := task.exception()) is not None]
    for error in errors:
        if isinstance(error, grpc.aio.AioRpcError):
            raise error
    if errors:
        raise errors[0]
