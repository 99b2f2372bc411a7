# SPDX-License-Identifier: Apache-2.0
"""Brings what changes to the streams it concerns: revocations first, then one delta a view.

Whatever the number of streams of a view, a change is read, encoded and signed once for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from licapi.control.v1 import sync_pb2
from licplane.api import wire
from licplane.api.admission import Slots
from licplane.api.deltas import Deltas
from licplane.api.host_states import HostStates
from licplane.api.site import FAULTS, Site, log
from licplane.api.stream import Ending, Sent, SyncStream
from licplane.api.wire import EncodedDelta
from licplane.service.answers import FleetChanges, HeadCheck
from licplane.service.values import View
from licplane.store.announce import Announcer

_RETRY_S: Final = 1.0
_EMPTY_AFTER: Final = 1000
"""Revisions that brought a view nothing, after which its hosts are moved on all the same."""
_CROWD: Final = 64
_CROWD_LOOKS: Final = 100  # 2 s: a few that do not read hold nobody up for longer
_CROWD_LOOK_S: Final = 0.02


class Hub:
    """All sync streams of one worker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.metrics = site.metrics
        self.limits = site.settings.limits
        self.revision = 0
        """The catalog's, as it is being sent."""
        self.deltas = Deltas(site)
        self.states = HostStates(site, self)
        self.slots = Slots(site.settings.admission.cold_syncs)
        self.streams: dict[str, SyncStream] = {}
        self._views: dict[View, set[SyncStream]] = {}
        self._cursor: int | None = None
        self._unpublished: dict[View, int] = {}
        self._behind: set[SyncStream] = set()
        self._changed: set[str] = set()
        self._intact = True
        self._problem = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics.gauge("licplane_sync_streams", lambda: len(self.streams))
        self.metrics.gauge("licplane_sync_longest_unanswered_seconds", self._longest_unanswered_s)
        self.metrics.gauge("licplane_catalog_revision", lambda: self.revision)
        self.metrics.gauge("licplane_catalog_intact", lambda: float(self._intact))
        self.metrics.gauge("licplane_cold_syncs", lambda: self.slots.taken)

    # ---------------------------------------------------------------------- what changed

    async def start(self) -> None:
        """Read the catalog for the first time. Raises what the plane raises."""
        await self.look()

    async def follow(self, announcer: Announcer) -> None:
        """Until cancelled: push what is announced."""
        bell = await announcer.listen()
        try:
            while True:
                await self._look_safely()  # what came before the bell was there counts too
                await bell.wait()
        finally:
            await bell.close()

    async def _look_safely(self) -> None:
        while True:
            try:
                await self.look()
            except FAULTS as error:
                self._site.fault("catalog", error)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def look(self) -> None:
        """Take over what changed, and push it."""
        began_s = time.monotonic()
        check = await self._site.catalog(self._site.plane.refresh)
        self._judged(check)
        if check.revision != self.revision or self._unpublished:
            await self._publish(check.revision)
            self.metrics.observe("licplane_push_seconds", time.monotonic() - began_s)
        fleet = await self._site.catalog(self._fleet)
        self._cursor = fleet.cursor
        self._changed |= self.streams.keys() & set(fleet.host_ids)
        for host_id in tuple(self._changed):
            await self.states.changed(host_id)
            self._changed.discard(host_id)

    def _longest_unanswered_s(self) -> float:
        now_s = time.monotonic()
        waits = [one.waits_since_s for one in self.streams.values() if one.waits_since_s]
        return now_s - min(waits) if waits else 0.0

    @property
    def is_intact(self) -> bool:
        """Whether the catalog was as it was signed when it was looked at last."""
        return self._intact

    def _fleet(self) -> FleetChanges:
        return self._site.plane.fleet_changes(self._cursor)

    def _judged(self, check: HeadCheck) -> None:
        self._intact = check.intact
        if check.problem and check.problem != self._problem:
            log.error(
                "the catalog is not what was signed, so revision %d stays in force: %s."
                " Stop licplane and restore a backup",
                check.revision,
                check.problem,
            )
        self._problem = check.problem

    async def _publish(self, revision: int) -> None:
        if revision != self.revision:
            before, self.revision = self.revision, revision
            for view in self._views:
                self._unpublished.setdefault(view, before)
            self.deltas.forget_all()
        # What fails half-way (the database went away) is taken up again where it stopped.
        for view, since in tuple(self._unpublished.items()):
            await self._publish_view(view, since)

    async def _publish_view(self, view: View, before: int) -> None:
        change = await self.deltas.made(view, before)
        nothing = not change.count and (before == 0 or not change.reset)
        if nothing and self.revision % _EMPTY_AFTER:
            self._published(view)
            for stream in list(self._views.get(view, ())):
                if stream.was_refused:  # perhaps for its revision, which is another one now
                    self.offer(stream)
            return
        streams = self._views.get(view, ())
        for stream in streams:
            stream.send(Sent.REVOCATIONS, *change.revocations, urgent=True)
        if change.revocations and len(streams) > _CROWD:
            await self._revocations_out(tuple(streams))
        for since in {stream.since for stream in streams if stream.takes_delta}:
            await self.deltas.made(view, since)
        self._published(view)
        for stream in list(self._views.get(view, ())):
            self.offer(stream)

    def _published(self, view: View) -> None:
        """The view's revocations are on their way: deltas may follow them."""
        del self._unpublished[view]
        waiting = [one for one in self._behind if one.view == view]
        self._behind.difference_update(waiting)
        for stream in waiting:
            self.offer(stream)

    async def _revocations_out(self, streams: tuple[SyncStream, ...]) -> None:
        """Let a crowd have the revocations before the work on its deltas begins."""
        for _ in range(_CROWD_LOOKS):
            if not any(one.has_urgent for one in streams):
                return
            await asyncio.sleep(_CROWD_LOOK_S)

    # ---------------------------------------------------------------------------- deltas

    def offer(self, stream: SyncStream) -> None:
        """Send the stream what leads it to the newest revision, if it can take it now."""
        if not stream.takes_delta:
            return
        if stream.view in self._unpublished:
            self._behind.add(stream)  # revocations come first
            return
        delta = self.deltas.ready(stream.view, stream.since)
        if delta is not None:
            self._hand_over(stream, delta)
        else:
            self._spawn(self._offer_later(stream))

    async def _offer_later(self, stream: SyncStream) -> None:
        try:
            delta = await self.deltas.made(stream.view, stream.since)
        except FAULTS as error:
            self._site.fault("delta", error)
            return
        if stream.view in self._unpublished:
            self._behind.add(stream)
        elif stream.takes_delta and self.streams.get(stream.host_id) is stream:
            self._hand_over(stream, delta)

    def _hand_over(self, stream: SyncStream, delta: EncodedDelta) -> None:
        if not delta.reset and delta.from_revision != stream.since:
            self.offer(stream)  # the stream moved on while the delta was made
            return
        ahead = delta.to_revision - stream.revision
        whole = delta.reset and (stream.wants_reset or ahead != 0)
        if whole or delta.count or ahead >= _EMPTY_AFTER:
            stream.send_delta(delta)

    # --------------------------------------------------------------------------- streams

    def attach(self, stream: SyncStream) -> None:
        """The stream said Hello and was let in. An older one of the host ends."""
        older = self.streams.get(stream.host_id)
        if older is not None:
            self._remove(older)
            older.end(
                Ending("superseded"),
                wire.notice(
                    sync_pb2.Notice.CODE_SUPERSEDED, "Another stream of this host took over"
                ),
            )
        self.streams[stream.host_id] = stream
        self._views.setdefault(stream.view, set()).add(stream)

    def detach(self, stream: SyncStream) -> bool:
        """The stream ended; whether it was the host's newest one."""
        if stream.cold:
            self.warm(stream)
        newest = self.streams.get(stream.host_id) is stream
        if newest:
            self._remove(stream)
        return newest

    def _remove(self, stream: SyncStream) -> None:
        del self.streams[stream.host_id]
        self._leave(stream)

    def _leave(self, stream: SyncStream) -> None:
        self._behind.discard(stream)
        members = self._views.get(stream.view)
        if members is not None:
            members.discard(stream)
            if not members:
                del self._views[stream.view]

    def show(self, stream: SyncStream, view: View) -> None:
        """The host sees this view from now on."""
        self._leave(stream)
        stream.view = view
        self._views.setdefault(view, set()).add(stream)

    def settled(self, stream: SyncStream) -> None:
        """A delta was answered: its slot is free, and the next one may follow."""
        if stream.cold:
            self.warm(stream)
        stream.reported_s = 0.0  # to be written with the next progress
        if stream.revision != self.revision or stream.wants_reset:
            self.offer(stream)

    def warm(self, stream: SyncStream) -> None:
        """Give back the stream's slot for a cold sync."""
        stream.cold = False
        self.slots.give_back()

    def cool(self, stream: SyncStream) -> None:
        """Take its slot from a stream that keeps it too long."""
        if stream.cold:
            self.refused("slow_sync")
            self.warm(stream)

    def gone(self, host_id: str) -> None:
        """The host has no stream here any more."""
        self._spawn(self._close(host_id))

    async def _close(self, host_id: str) -> None:
        try:
            await self._site.call(self._site.plane.close_stream, host_id)
        except (*FAULTS, RuntimeError) as error:  # RuntimeError: the threads have ended
            self._site.fault("close", error)

    async def finish(self, grace_s: float) -> None:
        """Let what was begun end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        self.deltas.cancel()

    # ------------------------------------------------------------------------- counting

    def sent(self, kind: Sent, size_bytes: int) -> None:
        """A message went out."""
        self.metrics.count("licplane_sync_messages_total", kind=kind.value)
        self.metrics.count("licplane_sync_bytes_total", size_bytes)

    def refused(self, why: str) -> None:
        """A peer did what it must not."""
        self.metrics.count("licplane_refused_total", why=why)

    def all_streams(self) -> Iterable[SyncStream]:
        """Those that are open now."""
        return tuple(self.streams.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
