# SPDX-License-Identifier: Apache-2.0
"""One process's servers, from the first read of the catalog to the last goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any, Final

import grpc.aio

from licapi.control.v1 import sync_pb2
from licplane.api import memory, wire
from licplane.api.addresses import join_address, metrics_address, server_names, split_address
from licplane.api.hub import Hub
from licplane.api.listeners import control_server, public_server
from licplane.api.probes import serve_pages
from licplane.api.server import Opened
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.site import FAULTS, Site, log
from licplane.api.stream import Ending, SyncStream
from licplane.api.sync import SyncService
from licplane.api.tls import ServerCertificate
from licplane.api.watching import Watching
from licplane.errors import ExitCode, PlaneError
from licplane.service.plane import wall_clock_ms
from licplane.service.requests import Progress

_TICK_S: Final = 0.5
_PRESENCE_S: Final = 30.0
"""A host that says nothing is written down as connected that often."""
_CERTIFICATES_S: Final = 10.0
_TRIM_STREAMS: Final = 100
_TRIM_S: Final = 2.0
_PROGRESS_MAX: Final = 500  # rows of one transaction
_TIDY_S: Final = 3_600.0


class Worker:
    """Made, started and stopped on one event loop."""

    def __init__(
        self, settings: ServerSettings, opened: Opened, addresses: Addresses, number: int = 0
    ) -> None:
        self._settings = settings
        self._opened = opened
        self._addresses = addresses
        self._number = number
        self.site = Site(opened.plane, settings)
        self.hub = Hub(self.site)
        self._watching = Watching(self.site, self.hub)
        self._sync = SyncService(self.site, self.hub)
        self._servers: list[grpc.aio.Server] = []
        self._metrics: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics_address = ""

    async def start(self) -> None:
        """Accept connections when it returns. Raises PlaneError."""
        memory.limit_arenas()
        await self.hub.start()
        names = server_names(self._settings, self._addresses)
        self.certificate = certificate = ServerCertificate(
            self.site, names, self.hub.states.roots_changed
        )
        await certificate.renew()
        if await self.site.catalog(lambda: self._opened.plane.is_put_back):
            log.warning(
                "this database was put back from a backup: no leases are given and nobody is let in"
                " until `licplane db advance`"
            )
        await self._start_metrics()
        control, _ = control_server(self.site, certificate, self._sync, self._addresses.control)
        self._servers.append(control)
        public, _ = public_server(self.site, certificate, self._addresses.public)
        self._servers.append(public)
        self._tasks = [
            asyncio.create_task(self.hub.follow(self._opened.store.announcer)),
            asyncio.create_task(certificate.keep()),
            asyncio.create_task(self._keep_house()),
            asyncio.create_task(self._keep_usage()),
        ]
        for server in self._servers:
            await server.start()
        self._watching.serving = True

    async def failed(self) -> None:
        """Until something that should never end does. Raises what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Say goodbye to all hosts, let calls end, close what is open."""
        self._sync.stopping = True
        self._watching.serving = False
        for task in self._tasks:
            task.cancel()
        for stream in self.hub.all_streams():
            retry_ms = random.randint(  # noqa: S311  # spreads load, hides nothing
                self._settings.admission.retry_after_min_ms,
                self._settings.admission.retry_after_max_ms,
            )
            stream.end(
                Ending("going_away"),
                wire.notice(sync_pb2.Notice.CODE_GOING_AWAY, "The server is going down", retry_ms),
            )
        await asyncio.gather(
            *(server.stop(self._settings.stop_grace_s) for server in self._servers)
        )
        if self._metrics is not None:
            self._metrics.close()
            await self._metrics.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hub.finish(self._settings.stop_grace_s)
        self.site.close()
        self._opened.store.close()

    async def _start_metrics(self) -> None:
        address = metrics_address(self._settings, self._number)
        if not address:
            return
        host, port = split_address(address, "--metrics-listen")
        try:
            self._metrics = await serve_pages(self._watching.pages, host, port)
        except OSError as error:
            raise PlaneError(
                ExitCode.BUSY,
                f"--metrics-listen: the address {address} cannot be had ({error.strerror})",
                "Another program listens there: choose another one",
            ) from error
        self.metrics_address = join_address(host, self._metrics.sockets[0].getsockname()[1])

    # ------------------------------------------------------------------------- housekeeping

    async def _keep_house(self) -> None:
        looked_s = trimmed_s = time.monotonic()
        trimmed_at = opened = 0.0
        tidy_s = looked_s + _TIDY_S * random.uniform(0.75, 1.25)  # noqa: S311
        while True:
            await asyncio.sleep(_TICK_S)
            await self._write_progress()
            before, opened = opened, self.site.metrics.total("licplane_sync_opened_total")
            settled = opened == before and opened - trimmed_at >= _TRIM_STREAMS
            if settled and time.monotonic() - trimmed_s >= _TRIM_S:
                trimmed_at, trimmed_s = opened, time.monotonic()
                await self.site.call(memory.trim)
            if time.monotonic() - looked_s >= _CERTIFICATES_S:
                looked_s = time.monotonic()
                self.end_old_certificates()
                self.hub.deltas.forget_unused()
            if time.monotonic() >= tidy_s:
                tidy_s = time.monotonic() + _TIDY_S * random.uniform(0.75, 1.25)  # noqa: S311
                with contextlib.suppress(*FAULTS):  # the next one comes within the hour
                    await self.site.call(self._opened.plane.housekeeping)

    async def _keep_usage(self) -> None:
        """Add usage up, close and correct bills, deliver what triggers tell; one worker leads."""
        interval_s = self._settings.usage_interval_s
        while True:
            await asyncio.sleep(interval_s * random.uniform(0.75, 1.25))  # noqa: S311
            try:
                await self.site.call(self._opened.plane.money.keep)
            except FAULTS as error:
                self.site.fault("usage", error)

    async def _write_progress(self) -> None:
        now_s = time.monotonic()
        due = [one for one in self.hub.all_streams() if now_s - one.reported_s > _PRESENCE_S]
        for at in range(0, len(due), _PROGRESS_MAX):
            group = due[at : at + _PROGRESS_MAX]
            for stream in group:
                stream.reported_s = now_s
            try:
                await self.site.call(
                    self._opened.plane.record_progress, [_progress(one) for one in group]
                )
            except FAULTS as error:
                self.site.fault("progress", error)
                for stream in group:
                    stream.reported_s = 0.0
                return

    def end_old_certificates(self) -> None:
        """Send hosts away whose certificate ended since they connected."""
        now_ms = wall_clock_ms()
        for stream in self.hub.all_streams():
            if 0 < stream.identity.not_after_unix_ms < now_ms:
                stream.end(
                    Ending("certificate"),
                    wire.notice(
                        sync_pb2.Notice.CODE_RETRY_LATER,
                        "The certificate of this connection ended; come back with the new one",
                        self.site.pace.retry_after_ms(),
                    ),
                )


def _progress(stream: SyncStream) -> Progress:
    return Progress(stream.host_id, stream.revision, stream.last_nack)


async def run(worker: Worker, stop: asyncio.Event, ready: Any) -> None:
    """Start the worker, call `ready`, and stop it when asked to or when it fails."""
    try:
        await worker.start()
        ready()
        waiting = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(worker.failed())
        await asyncio.wait([waiting, failing], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, failing):
            if task.done():
                task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    finally:
        await worker.stop()
