# SPDX-License-Identifier: Apache-2.0
"""Sync.Stream: lets a host in, tells it what is new, and serves it until one of the two ends it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import grpc

from licapi.control.v1 import common_pb2, sync_pb2
from licapi.version import installed, why_not_served
from licplane.api import wire
from licplane.api.admission import TokenBucket
from licplane.api.host_messages import HostMessages
from licplane.api.host_states import NOTICES
from licplane.api.hub import Hub
from licplane.api.peers import Refused, fingerprint, refusal
from licplane.api.site import FAULTS, Site
from licplane.api.stream import Ending, Sent, SyncStream
from licplane.errors import PlaneError
from licplane.service.answers import CounterVerdict, HostState
from licplane.service.plane import wall_clock_ms
from licplane.service.values import SERVED, HostStatus, Identity, Role, View

SERVICE: Final = "licapi.control.v1.Sync"
REFUSAL: Final = "licplane-refusal"
"""Trailing metadata: why a stream was refused, as a word, where an agent acts on it."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the plane says about a Hello."""

    identity: Identity
    state: HostState | None = None
    counter: bytes = b""
    dismissed: HostStatus | None = None


class SyncService:
    """The servicer of one worker."""

    def __init__(self, site: Site, hub: Hub) -> None:
        self._site = site
        self._hub = hub
        self._messages = HostMessages(site, hub)
        admission = site.settings.admission
        self._bucket = TokenBucket(
            admission.streams_a_second, admission.streams_burst, time.monotonic
        )
        self._without_hello = 0
        self._of_certificate: Counter[str] = Counter()
        self.stopping = False
        site.metrics.gauge("licplane_sync_streams_waiting", lambda: self._without_hello)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server serves Sync with. Messages are bytes: we parse and encode ourselves."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Stream": grpc.stream_stream_rpc_method_handler(self._stream)}
        )

    async def _stream(self, _requests: Any, context: Any) -> None:
        shown = fingerprint(context)
        try:
            if self.stopping:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "The server is going down", "stopping")
            if self._of_certificate[shown] >= self._site.settings.limits.streams_a_host:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many streams of one host", "streams"
                )
            self._of_certificate[shown] += 1
            try:
                await self._serve(context, shown)
            finally:
                self._of_certificate[shown] -= 1
                if not self._of_certificate[shown]:
                    del self._of_certificate[shown]
        except Refused as refused:
            self._site.metrics.count("licplane_sync_refused_total", why=refused.why)
            self._site.metrics.count("licplane_refused_total", why=refused.why)
            await _abort(context, refused.status, refused.detail, self._retry(refused))

    async def _serve(self, context: Any, shown: str) -> None:
        hello = await self._hello(context)
        if not_served := why_not_served(hello.agent_version, installed()):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, not_served, "version")
        if not self._bucket.take():
            await self._turn_away(context)
            return
        opened = await self._open(shown, hello.counter)
        if opened.dismissed is not None:
            await self._dismiss(context, opened)
            return
        state = opened.state
        if state is None:
            raise Refused(grpc.StatusCode.INTERNAL, "The server failed", "internal")
        stream = SyncStream(self._hub, context, opened.identity, state.view)
        ending = "ended"
        try:
            self._hub.attach(stream)
            self._site.metrics.count("licplane_sync_opened_total")
            await self._begin(stream, hello, opened.counter, state)
            await self._messages.take(stream, context)
        except asyncio.CancelledError:
            if stream.ending is None:
                ending = "cancelled"
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()  # it was us: end it in an orderly way
            ending = stream.ending.why
            self._over(stream)
            if stream.ending.status is not None:
                # A peer that does not read gets this status never, and its connection may live
                # on: then this waits, and the stream goes on counting as one of its host.
                await _abort(context, stream.ending.status, stream.ending.detail)
        finally:
            self._site.metrics.count("licplane_sync_ended_total", why=ending)
            if stream.ending is None:
                stream.ending = Ending(ending)
            self._over(stream)

    def _over(self, stream: SyncStream) -> None:
        if self._hub.detach(stream):
            self._hub.gone(stream.host_id)

    # -------------------------------------------------------------------------- letting in

    async def _hello(self, context: Any) -> sync_pb2.Hello:
        limits = self._site.settings.limits
        if self._without_hello >= limits.streams_waiting:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many streams are being opened", "half_open"
            )
        self._without_hello += 1
        try:
            async with asyncio.timeout(limits.hello_timeout_s):
                data = await context.read()
        except TimeoutError as error:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, "There was no Hello", "no_hello"
            ) from error
        finally:
            self._without_hello -= 1
        message = self._messages.parsed(data)
        if message is None or message.WhichOneof("message") != "hello":
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "A stream begins with Hello", "malformed"
            )
        return message.hello

    async def _open(self, shown: str, counter: bytes) -> _Opened:
        try:
            return await self._site.call(self._judge, shown, counter)
        except PlaneError as error:
            raise refusal(error) from error
        except FAULTS as error:
            self._site.fault("hello", error)
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "The database does not answer", "database"
            ) from error

    def _judge(self, shown: str, counter: bytes) -> _Opened:
        """On a thread: who it is, what it may, and whether it is the only one."""
        plane = self._site.plane
        identity = plane.authenticate(shown)
        if identity.role is not Role.HOST:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Only hosts have streams", "role")
        if identity.status is not None and identity.status not in SERVED:
            return _Opened(identity, dismissed=identity.status)
        result = plane.open_stream(identity.host_id, counter)
        if result.verdict is CounterVerdict.CLONED:
            return _Opened(identity, dismissed=HostStatus.CLONED)
        return _Opened(identity, plane.host_state(identity.host_id), result.counter)

    async def _turn_away(self, context: Any) -> None:
        self._site.metrics.count("licplane_sync_refused_total", why="admission")
        later = wire.notice(
            sync_pb2.Notice.CODE_RETRY_LATER, "Many hosts come", self._site.pace.retry_after_ms()
        )
        await self._say_goodbye(context, later)

    async def _dismiss(self, context: Any, opened: _Opened) -> None:
        status = opened.dismissed or HostStatus.EVICTED
        self._site.metrics.count("licplane_sync_refused_total", why=status.name.lower())
        if status is HostStatus.CLONED:
            self._site.metrics.count("licplane_clones_total")
        other = self._hub.streams.get(opened.identity.host_id)
        if other is not None:
            self._hub.states.dismiss(other, status)
        code, detail = NOTICES[status]
        await self._say_goodbye(context, wire.notice(code, detail))

    async def _say_goodbye(self, context: Any, notice: bytes) -> None:
        with contextlib.suppress(TimeoutError, grpc.aio.InternalError):
            async with asyncio.timeout(self._site.settings.limits.write_timeout_s):
                await context.write(wire.framed(1, notice))

    async def _begin(
        self, stream: SyncStream, hello: sync_pb2.Hello, counter: bytes, state: HostState
    ) -> None:
        """Welcome, assignment, revocations, and the delta to the newest revision."""
        settings, hub = self._site.settings, self._hub
        stream.assignment_sequence = hello.assignment_sequence
        stream.revision = hello.revision
        stream.send(
            Sent.WELCOME,
            wire.welcome(
                counter,
                server_time_unix_ms=wall_clock_ms(),
                lease_ttl_s=settings.lease_ttl_s,
                report_interval_s=settings.report_interval_s,
            ),
        )
        hub.states.take(stream, state)
        hub.states.ask_to_renew(stream)
        if hello.revision and _view(hello.view) != stream.view:
            stream.want_reset()
        delta = await self._delta(stream)
        if not delta.reset and not delta.count and hello.digest != delta.digest:
            self._site.metrics.count("licplane_delta_resets_total", why="digest")
            stream.want_reset()
            delta = await self._delta(stream)
        if delta.size_bytes > settings.admission.cold_bytes:
            if hub.slots.is_full(settings.admission.cold_waiting):
                later = self._site.pace.retry_after_ms()
                stream.end(
                    Ending("admission"),
                    wire.notice(sync_pb2.Notice.CODE_RETRY_LATER, "Many hosts come", later),
                )
                return
            await hub.slots.take()
            stream.cold = True
            hold_s = settings.admission.cold_hold_s
            asyncio.get_running_loop().call_later(hold_s, hub.cool, stream)
            delta = await self._delta(stream)
        stream.opening = False
        if stream.draining:
            stream.send(Sent.REVOCATIONS, *delta.revocations)
            hub.settled(stream)
            return
        stream.send(Sent.REVOCATIONS, *delta.revocations)
        stream.send_delta(delta)  # an empty one, too: it says what is the newest

    async def _delta(self, stream: SyncStream) -> wire.EncodedDelta:
        try:
            return await self._hub.deltas.made(stream.view, stream.since)
        except FAULTS as error:
            self._site.fault("delta", error)
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "The catalog is not to be had now", "catalog"
            ) from error

    def _retry(self, refused: Refused) -> tuple[tuple[str, str], ...]:
        if refused.why == "version":
            return ((REFUSAL, refused.why),)
        if refused.status is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ()
        return (("retry-after-ms", str(self._site.pace.retry_after_ms())),)


async def _abort(context: Any, status: grpc.StatusCode, detail: str, metadata: Any = ()) -> None:
    # abort() raises for gRPC's own code above us. InternalError says that the peer is gone.
    with contextlib.suppress(grpc.aio.InternalError):
        await context.abort(status, detail, metadata)


def _view(view: common_pb2.View) -> View:
    return View(view.org, view.project, view.environment, view.region)
