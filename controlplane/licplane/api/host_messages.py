# SPDX-License-Identifier: Apache-2.0
"""What a host says on its stream after Hello, and what is done about it."""

from __future__ import annotations

import time
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from licapi.control.v1 import sync_pb2
from licplane.api import wire
from licplane.api.hub import Hub
from licplane.api.peers import Refused
from licplane.api.site import FAULTS, Site
from licplane.api.stream import Sent, SyncStream
from licplane.errors import PlaneError
from licplane.service.answers import CounterVerdict
from licplane.service.values import HostStatus
from lictoken.sealed import Seal


class HostMessages:
    """Takes them, of all streams of one worker."""

    def __init__(self, site: Site, hub: Hub) -> None:
        self._site = site
        self._hub = hub

    async def take(self, stream: SyncStream, context: Any) -> None:
        """Until the stream ends. Raises Refused."""
        while (message := self.parsed(await context.read())) is not None:
            if not stream.counts(time.monotonic()):
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many messages", "messages")
            match message.WhichOneof("message"):
                case "ack":
                    stream.acked(message.ack)
                case "nack":
                    stream.nacked(message.nack)
                case "lease_request":
                    await self._lease(stream, message.lease_request)
                case "counter_kept":
                    await self._counter_kept(stream, message.counter_kept.counter)
                case "remembered":
                    await self._remembered(stream, message.remembered)
                case "hello":
                    raise Refused(
                        grpc.StatusCode.INVALID_ARGUMENT, "There is one Hello", "malformed"
                    )
                case _:
                    self._hub.refused("unknown_message")

    async def _lease(self, stream: SyncStream, request: sync_pb2.LeaseRequest) -> None:
        metrics = self._site.metrics
        try:
            bundle = await self._site.call(
                self._site.plane.lease,
                stream.host_id,
                stream.identity.key_fingerprint,
                request.boot_id,
                request.nonce,
            )
        except PlaneError:
            metrics.count("licplane_leases_total", result="refused")
        except FAULTS as error:
            self._site.fault("lease", error)
            metrics.count("licplane_leases_total", result="failed")
        else:
            metrics.count("licplane_leases_total", result="given")
            stream.send(Sent.LEASES, wire.leases(bundle))

    async def _remembered(self, stream: SyncStream, told: sync_pb2.Remembered) -> None:
        if not stream.may_remember():
            self._hub.refused("remembered")
            return
        assignment = told.assignment if told.HasField("assignment") else None
        try:
            found = await self._site.call(
                self._site.plane.take_remembered,
                stream.host_id,
                tuple(told.statements),
                Seal(assignment.payload, assignment.kid, assignment.signature)
                if assignment is not None
                else None,
            )
        except FAULTS as error:
            self._site.fault("remembered", error)
            return
        self._site.metrics.count("licplane_remembered_total", found.statements)

    async def _counter_kept(self, stream: SyncStream, counter: bytes) -> None:
        try:
            verdict = await self._site.call(self._site.plane.keep_counter, stream.host_id, counter)
        except FAULTS as error:
            self._site.fault("counter", error)
            return
        if verdict is CounterVerdict.CLONED:
            self._hub.states.dismiss(stream, HostStatus.CLONED)

    def parsed(self, data: Any) -> sync_pb2.AgentMessage | None:
        """A message as it was read; None at the stream's end. Raises Refused."""
        if data is grpc.aio.EOF:
            return None
        if len(data) > self._site.settings.limits.sync_message_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "The message is too long", "oversized"
            )
        try:
            return sync_pb2.AgentMessage.FromString(data)
        except DecodeError as error:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "The message is malformed", "malformed"
            ) from error
