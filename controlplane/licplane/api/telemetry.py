# SPDX-License-Identifier: Apache-2.0
"""Telemetry.Report: takes what hosts tell, no faster than it can be stored."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError

from licapi.control.v1 import telemetry_pb2
from licplane.api.peers import Refused, fingerprint, refusal
from licplane.api.site import FAULTS, Site
from licplane.errors import PlaneError
from licplane.service.requests import (
    HookReport,
    LiveReport,
    MapReport,
    Report,
    ShadowReport,
)
from licplane.service.values import SERVED, Identity, Role

SERVICE: Final = "licapi.control.v1.Telemetry"
_BUSY_S: Final = 1.0
"""A report that had to wait that long for its turn: hosts are told to pause."""


class TelemetryService:
    """The servicer of one worker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._turns = asyncio.Semaphore(site.settings.limits.telemetry_reports)
        self._of_certificate: Counter[str] = Counter()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server serves Telemetry with."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Report": grpc.stream_stream_rpc_method_handler(self._report)}
        )

    async def _report(self, _requests: Any, context: Any) -> None:
        shown = fingerprint(context)
        try:
            if self._of_certificate[shown] >= self._site.settings.limits.streams_a_host:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many streams of one host", "streams"
                )
            self._of_certificate[shown] += 1
            try:
                await self._take_all(context, shown)
            finally:
                self._of_certificate[shown] -= 1
                if not self._of_certificate[shown]:
                    del self._of_certificate[shown]
        except Refused as refused:
            self._site.metrics.count("licplane_telemetry_reports_total", result="refused")
            self._site.metrics.count("licplane_refused_total", why=refused.why)
            await context.abort(refused.status, refused.detail)

    async def _take_all(self, context: Any, shown: str) -> None:
        limits = self._site.settings.limits
        while True:
            data = await context.read()
            if data is grpc.aio.EOF:
                return
            if len(data) > limits.message_bytes:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "The report is too long", "oversized"
                )
            began_s = time.monotonic()
            async with self._turns:  # until it is our turn, nothing more is read from the host
                waited_s = time.monotonic() - began_s
                sequence = await self._store(shown, data)
            self._site.metrics.count("licplane_telemetry_reports_total", result="stored")
            pause_ms = limits.telemetry_pause_ms if waited_s > _BUSY_S else 0
            receipt = telemetry_pb2.ReportReceipt(sequence=sequence, pause_ms=pause_ms)
            try:
                async with asyncio.timeout(limits.write_timeout_s):
                    await context.write(receipt.SerializeToString())
            except TimeoutError as error:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "The host does not read", "slow"
                ) from error
            rest_s = limits.telemetry_interval_s - (time.monotonic() - began_s)
            if rest_s > 0:
                await asyncio.sleep(rest_s)

    async def _store(self, shown: str, data: bytes) -> int:
        try:
            return await self._site.call(self._record, shown, data)
        except PlaneError as error:
            raise refusal(error) from error
        except FAULTS as error:
            self._site.fault("telemetry", error)
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "The database does not answer", "database"
            ) from error

    def _record(self, shown: str, data: bytes) -> int:
        """On a thread. The certificate is looked at each time: it may end at any."""
        identity = self._site.plane.authenticate(shown)
        _check(identity)
        try:
            message = telemetry_pb2.HostReport.FromString(data)
        except DecodeError as error:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "The report is malformed", "malformed"
            ) from error
        self._site.plane.record_report(identity.host_id, report_of(message))
        return message.sequence


def _check(identity: Identity) -> None:
    if identity.role is not Role.HOST:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Only hosts report", "role")
    if identity.status is not None and identity.status not in SERVED:
        raise Refused(
            grpc.StatusCode.PERMISSION_DENIED, "The host may not speak for itself now", "status"
        )


def report_of(message: telemetry_pb2.HostReport) -> Report:
    """A report in the words of the service."""
    state = message.state
    return Report(
        json=MessageToJson(message, preserving_proto_field_name=True, indent=None),
        at_unix_ms=message.at_unix_ms,
        boot_id=state.boot_id,
        hostname=state.hostname,
        agent_version=state.agent_version,
        kernel_release=state.kernel_release,
        mode=state.mode,
        revision=state.revision,
        generation=state.generation,
        hooks=tuple(
            HookReport(one.hook, one.attached, one.link_id, one.program_id, one.detail)
            for one in state.hooks
        ),
        maps=tuple(MapReport(one.map, one.wanted, one.found) for one in state.maps),
        degraded=tuple(state.degraded),
        break_glass_until_unix_ms=state.break_glass_until_unix_ms,
        labels=dict(state.labels),
        refused_licenses=dict(state.refused_licenses),
        shadow=tuple(
            ShadowReport(
                resource=one.resource,
                selector=one.selector,
                executable=one.executable,
                user=one.user,
                count=one.count,
                first_unix_ms=one.first_unix_ms,
                last_unix_ms=one.last_unix_ms,
                reason=one.reason,
            )
            for one in message.shadow
        ),
        live=tuple(
            LiveReport(one.license, one.resource, one.selector, one.sockets) for one in message.live
        ),
    )
