# SPDX-License-Identifier: Apache-2.0
"""Telemetry.Usage: takes usage records, no faster than they can be stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc

from licplane.api.peers import Refused, fingerprint
from licplane.api.rooms import Room
from licplane.api.site import Site
from licplane.api.telemetry import SERVICE
from licplane.api.usage_reading import RecordReader
from licplane.api.usage_stream import UsageStream


class UsageService:
    """The servicer of one worker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._turns = asyncio.Semaphore(site.settings.limits.usage_batches)
        self._of_certificate: Counter[str] = Counter()
        self._held_bytes = 0
        self.rows = Room(site.settings.limits.usage_rows)
        """For records that are read and not stored yet."""
        self.reader = RecordReader()
        self._streams = 0
        site.metrics.gauge("licplane_usage_streams", lambda: self._streams)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server serves Telemetry.Usage with."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Usage": grpc.stream_stream_rpc_method_handler(self._usage)}
        )

    async def _usage(self, _requests: Any, context: Any) -> None:
        shown = fingerprint(context)
        try:
            if self._of_certificate[shown] >= self._site.settings.limits.streams_a_host:
                raise Refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many streams of one host", "streams"
                )
            self._of_certificate[shown] += 1
            self._streams += 1
            try:
                await UsageStream(self, self._site, context, shown).run()
            finally:
                self._streams -= 1
                self._of_certificate[shown] -= 1
                if not self._of_certificate[shown]:
                    del self._of_certificate[shown]
        except Refused as refused:
            self._site.metrics.count("licplane_usage_batches_total", result="refused")
            self._site.metrics.count("licplane_refused_total", why=refused.why)
            await context.abort(refused.status, refused.detail)

    @property
    def turns(self) -> asyncio.Semaphore:
        """Taken for a commit."""
        return self._turns

    def hold(self, size: int) -> None:
        """Note that a message of so many bytes is in memory. Raises Refused if it is too much."""
        if self._held_bytes + size > self._site.settings.limits.usage_held_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Too much usage waits to be stored", "held"
            )
        self._held_bytes += size

    def release(self, size: int) -> None:
        """It is stored, or dropped."""
        self._held_bytes -= size
