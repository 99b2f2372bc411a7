# SPDX-License-Identifier: Apache-2.0
"""The link to a control plane in the daemon's life: its task, its address, what it may ask.

Nothing that happens here ends the daemon: enforcement does not depend on the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licagent.control.interface import (
    Assignment,
    ControlPhase,
    ControlSettings,
    ControlState,
    NoticeCode,
)
from licagent.control.report import HostReport
from licagent.control.session import ControlSession
from licagent.daemon.control.leaving import Leaving
from licagent.daemon.control.reach import Reach
from licagent.daemon.control.report import Reporter
from licagent.daemon.metering.delivery import UsageDelivery
from licagent.daemon.reports import VERSION
from licagent.domain.catalog import CatalogView
from licagent.domain.lease import LeaseSet
from licagent.host import posture
from licagent.store.catalog import CatalogStore
from licagent.store.errors import StoreError
from licagent.store.identity import IdentityStore

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.service import OnKernel

_log: Final = logging.getLogger(__name__)

CATALOG_FILE: Final = "catalog.db"
"""In the state folder."""

_RESOLVE_S: Final = 60.0
_AGAIN_S: Final = 30.0
_NOTICES: Final = 20


@dataclass(frozen=True, slots=True)
class Told:
    """A notice of the control plane, and when it came."""

    at_unix_s: float
    code: NoticeCode
    detail: str


class ControlLink:
    """Holds the session, and is what it calls (`ControlCallbacks`)."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._on_kernel: OnKernel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.identities = IdentityStore(agent.state)
        self.catalogs = CatalogStore(agent.state.path / CATALOG_FILE)
        override = agent.config.control
        self.settings = ControlSettings(
            boot_id=posture.boot_id(),
            agent_version=VERSION,
            server="" if override in ("auto", "off") else override,
            report_interval_ms=agent.config.report_interval_s * 1000,
            deadline_of_unix_s=agent.clock.deadline_boottime_ns,
        )
        self.session = ControlSession(self.identities, self.catalogs, self, self.settings)
        self.reach = Reach(agent.state)
        self.reporter = Reporter(agent)
        self.delivery = UsageDelivery(agent)
        self.leaving = Leaving(agent, self)
        self.notices: deque[Told] = deque(maxlen=_NOTICES)
        self._was_connected = False

    @property
    def state(self) -> ControlState:
        """Where the session stands."""
        return self.session.state

    @property
    def is_off(self) -> bool:
        """The settings want no link."""
        return self._agent.config.control == "off"

    # --- on the kernel thread

    def boot(self) -> None:
        """Take what is stored, before there is a network and before the policy is compiled."""
        self._agent.keeper.reachable = self.reach.settings()
        try:
            found = self.session.boot()
            identity = self.identities.load() if found.assignment is not None else None
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the host starts: with what its files say, and closed for the rest.
            _log.exception("what the control plane gave cannot be read")
            self._agent.control.begin_without(f"what the control plane gave is lost: {error}")
            return
        self._agent.control.begin(found, None if identity is None else identity.trust)

    def close(self) -> None:
        """Close what is open."""
        self.catalogs.close()

    # --- on the loop

    async def run(self, on_kernel: OnKernel) -> None:
        """Until cancelled."""
        self._on_kernel = on_kernel
        self._loop = asyncio.get_running_loop()
        jobs = [self._for_ever(self._follow_addresses)]
        if not self.is_off:
            jobs.append(self._for_ever(self.session.run))
            jobs.append(self._for_ever(self.delivery.run))
            jobs.append(self._for_ever(self.leaving.run))
        await asyncio.gather(*jobs)

    async def _for_ever(self, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await job()
            except Exception:  # noqa: BLE001 - no fault of the link may end enforcement's keeper
                _log.exception("the control link failed; it is begun again in %s s", _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)

    def wake(self) -> None:
        """The identity may have changed, or somebody wants a try now."""
        if not self.is_off and self._on_kernel is not None:
            self.session.wake()

    async def begin_again(self) -> None:
        """Take what an enrolment left in the stores, and go on with it."""
        await self.resolve()
        if self.is_off:
            await self._kernel(self._boot_again)
        else:
            self.wake()  # the session reads the stores, and has it put in force

    async def begin_again_without(self) -> None:
        """Go on as a host that nobody manages: the stores are empty."""
        await self.resolve()
        await self._kernel(self._boot_again)
        self.wake()

    async def tell_left(self, why: str) -> None:
        """Keep on record that this host is of no control plane any more."""
        message = f"this host is of no control plane any more: {why}"
        await self._kernel(lambda: self._agent.emit("control", message, why=why))

    async def tell_enrolled(self, host_id: str, server: str, by: str) -> None:
        """Keep on record that this host joined."""
        await self._kernel(
            lambda: self._agent.emit(
                "control",
                f"enrolled at {server} as {host_id} by {by}",
                host_id=host_id,
                server=server,
                by=by,
            )
        )

    def _boot_again(self) -> None:
        self.boot()
        self._agent.write_licenses()
        self._agent.policy.renew()

    async def _kernel(self, action: Callable[[], Any]) -> Any:
        if self._on_kernel is None:
            raise RuntimeError("the link was not started")
        return await self._on_kernel(action)

    def _later(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it on the loop; asked for on any thread, and forgotten while there is no loop."""

        def begin() -> None:
            task = asyncio.ensure_future(work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(begin)

    # --- what the session calls

    async def apply_revocations(self, tokens: Sequence[bytes]) -> None:
        """See `ControlCallbacks`."""
        await self._kernel(lambda: self._agent.control.revoke(tokens))

    async def apply_catalog(self, view: CatalogView) -> None:
        """See `ControlCallbacks`."""
        plan = await asyncio.to_thread(self._agent.control.prepare, view)
        await self._kernel(lambda: self._agent.control.commit(plan))

    async def apply_leases(self, leases: LeaseSet) -> None:
        """See `ControlCallbacks`."""
        await self._kernel(lambda: self._agent.membership.set_leases(leases))

    async def apply_assignment(self, assignment: Assignment) -> None:
        """See `ControlCallbacks`."""
        await self._kernel(lambda: self._agent.membership.assign(assignment))

    async def report(self) -> HostReport:
        """See `ControlCallbacks`."""
        snapshot = await self._kernel(self.reporter.take)
        # Digests of large tables are not made on the kernel thread.
        return await asyncio.to_thread(self.reporter.finish, snapshot)

    def notice(self, code: NoticeCode, detail: str) -> None:
        """See `ControlCallbacks`."""
        self.notices.append(Told(time.time(), code, detail))
        self._later(lambda: self._quietly(lambda: self._agent.membership.tell(code, detail)))

    def alarm(self, message: str) -> None:
        """Keep on record what the delivery of usage found wrong."""
        self._later(
            lambda: self._quietly(
                lambda: self._agent.emit("metering", f"delivery of usage: {message}")
            )
        )

    def changed(self, state: ControlState) -> None:
        """See `ControlCallbacks`."""
        is_up = state.phase is ControlPhase.CONNECTED
        if is_up == self._was_connected:
            return
        self._was_connected = is_up
        tell = self._agent.membership.tell_of_link
        self._later(lambda: self._quietly(lambda: tell(state, is_up=is_up)))
        if is_up:
            self._later(self.resolve)

    async def _quietly(self, action: Callable[[], None]) -> None:
        try:
            await self._kernel(action)
        except (StoreError, OSError) as error:
            _log.error("%s", error)

    # --- its addresses are always open

    async def _follow_addresses(self) -> None:
        while True:
            await self.resolve()
            await asyncio.sleep(_RESOLVE_S)

    async def resolve(self) -> None:
        """Look the control plane's names up, and let the policy in force leave them open."""
        try:
            identity = self.identities.load()
        except StoreError as error:
            _log.error("%s", error)
            return
        servers = [] if identity is None else [identity.control_address, identity.public_address]
        servers += [self.settings.server, self.settings.public_server]
        with contextlib.suppress(StoreError, OSError):
            if await asyncio.to_thread(self.reach.resolve, [each for each in servers if each]):
                await self._kernel(self.open_addresses)

    def open_addresses(self) -> None:
        """Let the policy in force leave the control plane's addresses open."""
        self._agent.keeper.reachable = self.reach.settings()
        self._agent.policy.renew()
