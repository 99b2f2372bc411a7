# SPDX-License-Identifier: Apache-2.0
"""What monitoring is told by a worker: its metrics, the fleet in numbers, health and readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from licplane.api.metrics import LICENSES_MAX, Metrics, Sample
from licplane.api.probes import Handler, Page
from licplane.api.site import FAULTS, Site
from licplane.service.fleet_watch import FleetState, by_standing

if TYPE_CHECKING:
    from licplane.api.hub import Hub

_FRESH_S: Final = 10.0
"""However many scrape, the database counts the fleet that often at the most."""
_ANSWER_S: Final = 5.0


class Watching:
    """Reads the fleet when somebody asks, and answers the three pages."""

    def __init__(self, site: Site, hub: Hub) -> None:
        self._site = site
        self._hub = hub
        self._state: FleetState | None = None
        self._problem = ""
        self._read_at_s = -_FRESH_S
        self._took_s = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.serving = False
        """Both listeners take connections."""
        site.metrics.gauges(self._samples)

    @property
    def pages(self) -> dict[str, Handler]:
        """By path."""
        return {"/metrics": self._metrics, "/-/healthy": self._healthy, "/-/ready": self._ready}

    async def _metrics(self, accept: str) -> Page:
        if time.monotonic() - self._read_at_s >= _FRESH_S:
            await self._refresh()
        metrics: Metrics = self._site.metrics
        return Page(*metrics.exposition(accept))

    async def _healthy(self, _accept: str) -> Page:
        """The event loop turns: it answers."""
        return Page.words("licplane is healthy")

    async def _ready(self, _accept: str) -> Page:
        """Whether hosts can be served: listeners open, database answers, catalog as signed."""
        problem = ""
        if not self.serving:
            problem = "its listeners are not open"
        elif not self._hub.is_intact:
            problem = "the catalog is not as it was signed: see `licplane audit verify`"
        else:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await asyncio.to_thread(self._site.plane.watch.answers)
            except TimeoutError:
                problem = f"the database does not answer within {_ANSWER_S:.0f} s"
            except FAULTS:
                problem = "the database cannot be read"
        if problem:
            return Page.words(f"licplane is not ready: {problem}", ok=False)
        return Page.words("licplane is ready")

    async def _refresh(self) -> None:
        """Read the fleet; one reading serves all who ask meanwhile, and nobody waits for ever."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(_ANSWER_S):
                await asyncio.shield(self._reading)
        except TimeoutError:
            self._state = None  # it goes on by itself; what is old is not shown as new
            self._problem = "it does not answer"

    async def _read(self) -> None:
        # Not on the threads of the site: those serve hosts, and may all be busy when one looks.
        began_s = time.monotonic()
        try:
            self._state = await asyncio.to_thread(self._site.plane.watch.read)
            self._problem = ""
        except FAULTS as error:
            self._state, self._problem = None, str(error)
            self._site.fault("watch", error)
        self._read_at_s = time.monotonic()
        self._took_s = self._read_at_s - began_s

    def _samples(self) -> Iterator[Sample]:
        yield "licplane_build_info", {"version": _version()}, 1
        state = self._state
        yield "licplane_database_up", {}, float(state is not None and not self._problem)
        if state is None:
            return
        yield "licplane_fleet_read_seconds", {}, self._took_s
        counts = state.counts
        for (status, is_connected), number in sorted(counts.hosts.items()):
            labels = {"status": status.word, "connected": str(is_connected).lower()}
            yield "licplane_hosts", labels, number
        for name, number in (
            ("licplane_hosts_silent", counts.silent),
            ("licplane_hosts_refusing", counts.refusing),
            ("licplane_hosts_drifting", counts.drifting),
            ("licplane_shadow_uses", counts.shadow_uses),
            ("licplane_usage_gaps", counts.gaps),
            ("licplane_usage_alarmed_chains", counts.alarms),
        ):
            yield name, {}, number
        for delivery in ("waiting", "delivered", "failed"):
            labels = {"state": delivery}
            yield "licplane_deliveries", labels, counts.deliveries.get(delivery, 0)
        if counts.oldest_waiting_unix_ms:
            name = "licplane_delivery_oldest_waiting_timestamp_seconds"
            yield name, {}, counts.oldest_waiting_unix_ms / 1000
        if state.authority_ends_unix_ms:
            name = "licplane_authority_end_timestamp_seconds"
            yield name, {}, state.authority_ends_unix_ms / 1000
        for budget in state.budgets:
            yield "licplane_budget_used_ratio", {"budget": budget.name}, budget.used
            yield "licplane_budget_expected_ratio", {"budget": budget.name}, budget.expected
        yield from _licenses(state)


def _licenses(state: FleetState) -> Iterator[Sample]:
    for word, number in by_standing(state.licenses, state.now_ms).items():
        yield "licplane_licenses", {"standing": word}, number
    active = [
        one
        for one in state.licenses
        if one.standing == "active" and one.ends_at_s * 1000 > state.now_ms
    ]
    name = "licplane_license_expiry_timestamp_seconds"
    named = [one for one in active[:LICENSES_MAX] if one.jti != "other"]
    for one in named:
        yield name, {"license": one.jti}, one.ends_at_s
    others = [one for one in active if one.jti == "other"] + active[LICENSES_MAX:]
    if others:
        yield name, {"license": "other"}, min(one.ends_at_s for one in others)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("licagent")
    except PackageNotFoundError:
        return "unknown"
