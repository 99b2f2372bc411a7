# SPDX-License-Identifier: Apache-2.0
"""Deltas of the catalog as they are sent: read, encoded and signed once for all who need them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from licplane.api import wire
from licplane.api.site import FAULTS, Site
from licplane.api.wire import EncodedDelta
from licplane.service.values import View

_CACHE_MAX: Final = 512
_CACHE_KEPT_S: Final = 30.0


class Deltas:
    """Those of one worker, each to the newest revision."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._tasks: dict[tuple[View, int], asyncio.Task[EncodedDelta]] = {}
        self._used_s: dict[tuple[View, int], float] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def made(self, view: View, since: int) -> EncodedDelta:
        """From a revision to the newest one; made once, for all who ask."""
        key = (view, since)
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= _CACHE_MAX:
                # Revisions come from Hello: whoever makes them up pushes out the oldest only.
                self._forget(next(iter(self._tasks)))
            task = asyncio.create_task(self._site.catalog(self._encoded, view, since))
            self._tasks[key] = task
            self._site.metrics.count("licplane_deltas_encoded_total")
        self._used_s[key] = time.monotonic()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise  # it is the asker who was cancelled
            return await self.made(view, since)  # a newer revision came in between
        except FAULTS:
            self._forget(key)
            raise

    def _encoded(self, view: View, since: int) -> EncodedDelta:
        plane = self._site.plane
        found = plane.view_changes(view, since)
        manifest = plane.sign_manifest(view, found.to_revision, found.digest, found.count)
        return wire.encode_delta(found, manifest, self._site.settings.limits.delta_part_bytes)

    def ready(self, view: View, since: int) -> EncodedDelta | None:
        """The same, if it is there already."""
        task = self._tasks.get((view, since))
        if task is not None and task.done() and not task.cancelled() and not task.exception():
            return task.result()
        return None

    def forget_all(self) -> None:
        """There is a newer revision; who waits for a delta gets one to that."""
        self.cancel()
        self._tasks.clear()
        self._used_s.clear()

    def cancel(self) -> None:
        """Make none any more."""
        for task in self._tasks.values():
            task.cancel()

    def forget_unused(self) -> None:
        """Drop deltas that nobody asked for lately: whole views may be large."""
        now_s = time.monotonic()
        for key, task in tuple(self._tasks.items()):
            if task.done() and now_s - self._used_s[key] >= _CACHE_KEPT_S:
                self._forget(key)

    def _forget(self, key: tuple[View, int]) -> None:
        task = self._tasks.pop(key, None)
        self._used_s.pop(key, None)
        if task is not None and task.done() and not task.cancelled():
            task.exception()  # looked at: whoever asked was told
