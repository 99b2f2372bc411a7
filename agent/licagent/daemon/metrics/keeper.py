# SPDX-License-Identifier: Apache-2.0
"""Metrics and health in the daemon's life: where they are served, and what they are asked of.

Nothing here may hurt enforcement. An address that cannot be had is a reason to be degraded, not to
end; and however many scrape, the kernel thread reads once a second at the most.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from licagent.daemon.metrics.reading import MetricsReader
from licagent.kernel.libbpf import BpfError
from licagent.observability.endpoint import Page, listen, serve
from licagent.observability.exposition import exposition
from licagent.observability.families import Readings
from licagent.store.errors import StoreError
from licagent.uplink.client import uplink

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.service import OnKernel

_log: Final = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
_FRESH_S: Final = 1.0
_ANSWER_S: Final = 5.0
"""Within that the kernel thread answers, or the daemon is not healthy."""
_BLOCKING: Final = frozenset({"hook-missing", "kernel-changed", "no-policy"})
"""Codes of reasons for which a host does not decide by its policy."""
_SILENT: Final = Page.words("the daemon cannot tell how its kernel side is", ok=False)

T = TypeVar("T")


class MetricsKeeper:
    """Serves /metrics, /-/healthy and /-/ready where the settings ask for it."""

    def __init__(self, agent: Agent, stalled: Callable[[], Sequence[tuple[str, float]]]) -> None:
        """`stalled` names jobs of the daemon that are overdue, as the watchdog sees it."""
        self._agent = agent
        self._stalled = stalled
        self._reader = MetricsReader(agent)
        self._on_kernel: OnKernel | None = None
        self._reading: asyncio.Future[Readings] | None = None
        self._read_at_s = 0.0

    async def run(self, on_kernel: OnKernel) -> None:
        """Until cancelled."""
        self._on_kernel = on_kernel
        where = self._agent.config.metrics_listen
        if where == "off":
            await asyncio.Event().wait()
        host, _, port = where.rpartition(":")
        pages = {"/metrics": self._metrics, "/-/healthy": self._healthy, "/-/ready": self._ready}
        while True:
            try:
                listener = await self._listener(host.strip("[]"), int(port))
            except OSError as error:
                self._tell(f"{where}: {error.strerror or error}")  # also: no way out yet
                await asyncio.sleep(_AGAIN_S)
                continue
            server = await serve(pages, listener)
            self._tell("")
            _log.info("metrics and health: http://%s/metrics", where)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()  # not waited for: since Python 3.12 that waits for who is connected

    async def _listener(self, host: str, port: int) -> socket.socket:
        """Ours, or where the daemon has no network of its own, one that its way out hands over."""
        way_out = uplink()
        if way_out is None:
            return listen(host, port)
        return await asyncio.to_thread(way_out.listen, host, port)

    def _tell(self, problem: str) -> None:
        if problem and problem != self._agent.metrics_problem:
            _log.error("metrics are not served: %s", problem)
        self._agent.metrics_problem = problem

    async def _metrics(self, accept: str) -> Page:
        readings = await self._known()
        if readings is None:
            return _SILENT
        text, content_type = await asyncio.to_thread(exposition, readings, accept)
        return Page(text, content_type)

    async def _healthy(self, _accept: str) -> Page:
        """Whether the daemon gets on: its loop, the kernel thread, and each job that must."""
        stalled = [job for job, _since_s in self._stalled()]
        if stalled:
            return Page.words(f"licagent does not get on: {', '.join(stalled)}", ok=False)
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._kernel(lambda: None)
        except TimeoutError:
            return _SILENT
        return Page.words("licagent is healthy")

    async def _ready(self, _accept: str) -> Page:
        """Whether this host decides by its policy. Codes only: who asks may be anybody."""
        readings = await self._known()
        if readings is None:
            return _SILENT
        states = readings.of("licagent_state").items()
        state = next((labels[0] for labels, is_it in states if is_it), "unknown")
        codes = sorted(labels[0] for labels in readings.of("licagent_degraded_reasons"))
        is_ready = not _BLOCKING.intersection(codes)
        why = f" ({', '.join(codes)})" if codes else ""
        word = "ready" if is_ready else "not ready"
        return Page.words(f"licagent is {word}: {state}{why}", ok=is_ready)

    async def _known(self) -> Readings | None:
        """The metrics of a moment ago, or new ones; None where they cannot be read in time."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._readings()
        except TimeoutError:
            _log.error("metrics cannot be read: the kernel thread does not answer")
        except (BpfError, StoreError, OSError) as error:
            _log.error("metrics cannot be read: %s", error)
        return None

    async def _readings(self) -> Readings:
        """One reading answers all who ask meanwhile, and for a second."""
        running = self._reading
        if running is None or (running.done() and time.monotonic() - self._read_at_s > _FRESH_S):
            running = self._reading = asyncio.ensure_future(self._read())
            running.add_done_callback(self._noted)
        # Shielded: the one who asked first may leave before the others have their answer.
        return await asyncio.shield(running)

    async def _read(self) -> Readings:
        sockets = await asyncio.to_thread(self._reader.sockets)
        return await self._kernel(lambda: self._reader.read(sockets))

    def _noted(self, done: asyncio.Future[Readings]) -> None:
        self._read_at_s = time.monotonic()
        if done.cancelled() or done.exception() is not None:
            self._reading = None  # the next one reads again

    def _kernel(self, action: Callable[[], T]) -> Awaitable[T]:
        if self._on_kernel is None:
            raise RuntimeError("metrics were not started")
        return self._on_kernel(action)
