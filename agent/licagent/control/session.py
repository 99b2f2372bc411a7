# SPDX-License-Identifier: Apache-2.0
"""The link to the control plane over the life of the daemon: connect, sync, come back.

Loads gRPC only when there is somebody to talk to.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from licagent.control.backoff import Backoff
from licagent.control.interface import (
    Assignment,
    BootCatalog,
    CatalogStorage,
    ControlCallbacks,
    ControlPhase,
    ControlSettings,
    ControlState,
    HostStatus,
    IdentityStorage,
    NackReason,
    NoticeCode,
    Refused,
)
from licagent.domain.lease import NO_LEASES, LeaseSet

if TYPE_CHECKING:
    from licagent.control.boot import Kept
    from licagent.control.connection import Ended

__all__ = [
    "Assignment",
    "BootCatalog",
    "ControlCallbacks",
    "ControlPhase",
    "ControlSession",
    "ControlSettings",
    "ControlState",
    "HostStatus",
    "NackReason",
    "NoticeCode",
    "Refused",
]

_log: Final = logging.getLogger(__name__)

_FOR_GOOD: Final = (NoticeCode.EVICTED, NoticeCode.BANNED)
_SHORT_LIFE_MS: Final = 5_000


class ControlSession:
    """One host's session. `boot`, then `run` as a task of the daemon's loop."""

    def __init__(
        self,
        identity_store: IdentityStorage,
        catalog_store: CatalogStorage,
        callbacks: ControlCallbacks,
        settings: ControlSettings,
    ) -> None:
        self._identities = identity_store
        self._catalogs = catalog_store
        self._callbacks = callbacks
        self._settings = settings
        self._backoff = Backoff(settings.backoff_first_ms, settings.backoff_cap_ms)
        self._kept: Kept | None = None
        self._leases: LeaseSet = NO_LEASES
        self._ask: Any = None
        self._woken = asyncio.Event()
        self._must_reload = True
        self._is_renewed = False
        self.state = ControlState()

    def boot(self) -> BootCatalog:
        """What is in force from before: read and verified, without the network. Blocking.

        The daemon puts it in force by itself; `run` goes on from there.
        """
        from licagent.control.boot import read_kept

        is_collecting = gc.isenabled()
        gc.disable()  # nothing of it is garbage, and looking for some doubles the time
        try:
            kept, problems = read_kept(self._identities, self._catalogs, self._settings)
        finally:
            if is_collecting:
                gc.enable()
        self._take_over(kept, problems)
        self._must_reload = False
        if kept is None:
            return BootCatalog(None, None, NO_LEASES, problems)
        return BootCatalog(kept.replica.view(), kept.assignment, kept.leases, problems)

    async def run(self) -> None:
        """Until cancelled. Never raises for reasons of the network, the server or the disk."""
        while True:
            try:
                wait_ms = await self._once()
            except Exception as error:  # noqa: BLE001 -- whatever it is, the link must go on
                _log.warning("the control session failed and starts over", exc_info=True)
                self._update(last_error=f"{type(error).__name__}: {error}")
                wait_ms = self._backoff.next_ms()
            await self._pause(wait_ms)

    def wake(self) -> None:
        """The identity changed (`licagent enroll`), or somebody wants a try now."""
        self._woken.set()

    def ask_for_leases(self) -> None:
        """Ask for leases now, where there is a stream."""
        if self._ask is not None:
            self._ask()

    async def _once(self) -> int | None:
        """One try, up to the end of its stream; ms until the next one, None: when woken."""
        if self._woken.is_set():
            self._woken.clear()
            self._must_reload = True
        if self._must_reload:
            await self._reload()
        kept = self._kept
        if kept is None:
            self._update(phase=ControlPhase.UNENROLLED, retry_at_unix_ms=0)
            return None
        from licagent.control.connection import connect

        self._update(
            phase=ControlPhase.CONNECTING,
            server=self._settings.server or kept.identity.control_address,
            retry_at_unix_ms=0,
        )
        began_ms = self._now_ms()
        ended = await connect(
            kept,
            self._identities,
            self._catalogs,
            self._callbacks,
            self._settings,
            failures=self._backoff.failures,
            is_renewed=self._is_renewed,
            woken=self._woken,
            update=self._update,
            leases=self._leases,
            asker=self._set_asker,
        )
        if self._kept is not kept:  # the host was enrolled again, and `boot` called
            self._must_reload = True
            return 0
        return self._after(kept, ended, began_ms)

    def _after(self, kept: Kept, ended: Ended, began_ms: int) -> int | None:
        self._leases = ended.leases
        self._is_renewed = ended.is_renewed
        self._kept = replace(
            kept, identity=ended.identity, assignment=ended.assignment, trust=ended.trust
        )
        if ended.was_welcome and self._now_ms() - began_ms >= _SHORT_LIFE_MS:
            self._backoff.succeeded()
        self._update(connected_since_unix_ms=0, last_error=ended.error)
        if ended.must_reload:
            self._must_reload = True
            return 0
        if ended.is_renewed:
            return 0
        told = (self.state.notice, self.state.notice_detail)
        if ended.notice is not NoticeCode.UNSPECIFIED and told != (ended.notice, ended.error):
            self._update(notice=ended.notice, notice_detail=ended.error)
            self._callbacks.notice(ended.notice, ended.error)
        if ended.notice in _FOR_GOOD:
            self._update(phase=ControlPhase.STOPPED)
            return None
        if ended.notice is NoticeCode.CLONED:
            # Only an administrator can help: look now and then whether that has happened.
            return (
                self._settings.backoff_cap_ms // 2
                + self._backoff.next_ms(self._settings.backoff_cap_ms) // 2
            )
        return self._backoff.next_ms(ended.retry_after_ms)

    async def _pause(self, wait_ms: int | None) -> None:
        if wait_ms == 0:
            return
        if wait_ms is not None:
            self._update(
                phase=ControlPhase.WAITING,
                retry_at_unix_ms=self._now_ms() + wait_ms,
                attempts=self._backoff.failures,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wait_ms is None else wait_ms / 1000):
                await self._woken.wait()
                self._woken.clear()
                self._must_reload = True

    async def _reload(self) -> None:
        """Read identity and catalog again, and put in force what is another than before."""
        from licagent.control.boot import read_kept

        before = self._kept
        kept, problems = await asyncio.to_thread(
            read_kept, self._identities, self._catalogs, self._settings
        )
        for problem in problems:
            _log.warning("%s", problem)
        held = self._leases
        self._take_over(kept, problems)
        self._must_reload = False
        if kept is None:
            return
        is_same_host = before is not None and before.identity.host_id == kept.identity.host_id
        try:
            if before is None or before.assignment != kept.assignment:
                await self._callbacks.apply_assignment(kept.assignment)
            view = kept.replica.view()
            if view is not None and (
                before is None
                or before.replica.manifest is None
                or before.replica.manifest.digest != view.digest
            ):
                await self._callbacks.apply_catalog(view)
            if kept.leases.leases or not is_same_host:
                await self._callbacks.apply_leases(kept.leases)
            else:
                # Not on the disk, but in the kernel until they end.
                self._leases = held
        except Refused as error:
            self._update(last_refusal=str(error))

    def _take_over(self, kept: Kept | None, problems: tuple[str, ...]) -> None:
        self._kept = kept
        self._leases = kept.leases if kept is not None else NO_LEASES
        if kept is None:
            self._update(
                phase=ControlPhase.UNENROLLED,
                host_id="",
                labels=None,
                last_error="; ".join(problems),
            )
            return
        self._backoff.succeeded()
        self._update(
            host_id=kept.identity.host_id,
            server=self._settings.server or kept.identity.control_address,
            labels=kept.assignment.labels,
            assignment_sequence=kept.assignment.sequence,
            host_status=kept.assignment.status,
            revision=kept.replica.revision,
            newest_revision=kept.replica.revision,
            objects=len(kept.replica),
            lease_end_boottime_ns=self._leases.end_boottime_ns,
            leased_licenses=len(self._leases.leases),
            certificate_end_unix_ms=kept.identity.not_after_unix_ms,
            last_error="; ".join(problems),
            notice=NoticeCode.UNSPECIFIED,
            notice_detail="",
        )

    def _set_asker(self, ask: Any) -> None:
        self._ask = ask

    def _update(self, **changes: Any) -> None:
        fresh = replace(self.state, **changes)
        if fresh != self.state:
            self.state = fresh
            self._callbacks.changed(fresh)

    def _now_ms(self) -> int:
        return int(self._settings.unix_s() * 1000)
