# SPDX-License-Identifier: Apache-2.0
"""The daemon: one event loop, one kernel thread, and what happens when."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from licagent.daemon import ending
from licagent.daemon.agent import Agent
from licagent.daemon.control.join_credential import join
from licagent.daemon.control.link_watch import on_link_changes
from licagent.daemon.decisions import Record
from licagent.daemon.kernel_side import KernelUnavailable
from licagent.daemon.life_signs import LifeSigns
from licagent.daemon.metrics.keeper import MetricsKeeper
from licagent.daemon.service import Service
from licagent.daemon.settings_keeper import SettingsKeeper, chosen, load_again
from licagent.daemon.shadow.watch import ShadowWatch
from licagent.domain.config import AgentConfig
from licagent.host import heap
from licagent.host.cgroups import CgroupError
from licagent.kernel.libbpf import BpfError
from licagent.local.fanout import Fanout
from licagent.local.peer import readers_gid
from licagent.local.server import LocalServer
from licagent.observability.logs import setup_logging
from licagent.observability.systemd import Notifier
from licagent.store.errors import StateDirBusy, StoreError

_log: Final = logging.getLogger(__name__)

_REFRESH_S: Final = 5.0
_CONDITIONS_S: Final = 2.0
_KERNEL_WATCH_S: Final = 3.0
_CLOCK_S: Final = 10.0
_SAVE_CLOCK_S: Final = 60.0
_SETTLE_S: Final = 1.0
_EVENTS_PAUSE_S: Final = 0.02
_BUSY_EVENTS: Final = 10
_BUSY_PAUSE_S: Final = 0.05
_MEASURE_WAIT_S: Final = 0.5
_MEASURE_PAUSE_S: Final = 0.02
_END_SLACK_S: Final = 0.02
_EVENTS_WAIT_S: Final = 5.0
_ENDS_WAIT_S: Final = 15.0

# Exit statuses as the command line has them (licagent.cli.exits), one per class of error.
_EXIT_INTERNAL: Final = 1
_EXIT_PERMISSION: Final = 5
_EXIT_REFUSED: Final = 7
_EXIT_BUSY: Final = 8
_EXIT_DETACHED: Final = 9

T = TypeVar("T")


async def readable(fd: int) -> None:
    """Return when a descriptor can be read.

    It is watched only while somebody waits: the watch is level-triggered, and one that stays
    would turn the loop without end until the data is taken.
    """
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        loop.remove_reader(fd)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class Daemon:
    """Wires the agent to the event loop, the local socket, signals and systemd."""

    def __init__(self, config: AgentConfig, settings: SettingsKeeper | None = None) -> None:
        self._config = config
        self._fanout: Fanout[Record] = Fanout()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._measured = asyncio.Event()
        self._agent = Agent(config, notify=self._publish, measured=self._tell_measured)
        self._agent.settings = settings
        self._shadow_watch = ShadowWatch(self._agent, self._on_kernel_only)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")
        self._notifier = Notifier.from_environment(os.environ)
        self._life = LifeSigns(self._notifier)
        self._interfaces_made = self._life.expect("interfaces", _REFRESH_S)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._wake_ends = asyncio.Event()
        self._is_ending = False

    def _publish(self, record: Record) -> None:
        """From either thread; subscribers live on the loop's."""
        if self._loop is not None and record["kind"] == "policy":
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._shadow_watch.tell)
        if self._loop is not None and self._fanout.subscribers:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._fanout.publish, record)

    async def on_kernel(self, action: Callable[[], T]) -> T:
        """Run `action` on the kernel thread, after what waits there."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._thread, action)
        self._wake_ends.set()  # ends of licenses may have moved
        return result

    async def _on_kernel_only(self, action: Callable[[], T]) -> T:
        """The same for what changes nothing: no end of a license moves by a reading."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    async def run(self) -> int:
        """Until SIGTERM or SIGINT, or `licagent detach`."""
        try:
            await self._live()
        except Exception:
            if not self._agent.is_detached:
                raise
            # With any other status than that of a detached daemon it would be started again.
            _log.exception("detached, but not closed in order")
        return _EXIT_DETACHED if self._agent.is_detached else 0

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        agent = self._agent
        try:
            await self.on_kernel(agent.start)
            if agent.settings is not None:
                agent.settings.remember(agent.state)
            agent.sync_watch.begin()
            server = LocalServer(self._config.socket_path, readers_gid=readers_gid())
            service = Service(agent, self.on_kernel, self._fanout, self._stop, self._shadow_watch)
            service.register(server)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop.set)
            self._loop.add_signal_handler(signal.SIGHUP, self._reload.set)
            await server.start()
            try:
                await self._on_kernel_only(lambda: self._life.ready(agent))
                heap.give_back()
                await self._serve(service)
            finally:
                self._notifier.stopping()
                await server.close()
        finally:
            self._begin_end()
            await agent.metering.close()
            await self._loop.run_in_executor(self._thread, agent.close)
            self._thread.shutdown()

    def _begin_end(self) -> None:
        """The daemon goes down: from now on no disk that hangs may keep it. Twice is once."""
        if not self._is_ending:
            self._is_ending = True
            is_told = self._stop.is_set()  # else it is an error that ends it
        ending.bound(
            lambda: _EXIT_DETACHED if self._agent.is_detached else 0 if is_told else _EXIT_INTERNAL
        )

    async def _serve(self, service: Service) -> None:
        jobs = (
            self._events(),
            self._every(_SETTLE_S, self._agent.settle_repeats, "repeats"),
            self._every(_SETTLE_S, self._agent.log.sync, "event log"),
            self._every(_REFRESH_S, self._refresh, "identities"),
            self._every(_CONDITIONS_S, self._agent.conditions.refresh, "checks of the kernel"),
            self._every(_KERNEL_WATCH_S, self._agent.kernel_watch.check, "attached programs"),
            self._every(_CLOCK_S, self._agent.clock_keeper.watch, "clock"),
            self._every(_SAVE_CLOCK_S, self._agent.clock_keeper.save, "clock's record"),
            on_link_changes(self._cover_interfaces, at_least_every_s=_REFRESH_S),
            self._measure(),
            self._ends(),
            self._reloads(),
            self._life.feed_watchdog(self._on_kernel_only),
            self._life.tell_status(self._agent, self._on_kernel_only),
            join(self._agent, service.enroll),
            self._agent.link.run(self.on_kernel),
            self._agent.metering.run(self.on_kernel),
            self._shadow_watch.run(),
            MetricsKeeper(self._agent, self._life.progress.stalled).run(self._on_kernel_only),
        )
        stop = asyncio.create_task(self._stop.wait())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a job never ends by itself: its error ends the daemon
        finally:
            self._begin_end()
            for task in (stop, *tasks):
                task.cancel()
            await asyncio.gather(stop, *tasks, return_exceptions=True)

    async def _events(self) -> None:
        """Read events when the kernel says there are some, on the kernel thread."""
        reader = self._agent.reader
        if reader is None:
            raise RuntimeError("the agent was not started")
        loop = asyncio.get_running_loop()
        made = self._life.expect("events", _EVENTS_WAIT_S)
        while True:
            with contextlib.suppress(TimeoutError):  # not wait_for: see _ends
                async with asyncio.timeout(_EVENTS_WAIT_S):
                    await readable(reader.fileno())
            count = await loop.run_in_executor(self._thread, reader.consume)
            made()
            # Many events are one wake-up; the ring holds thousands.
            await asyncio.sleep(_EVENTS_PAUSE_S if count < _BUSY_EVENTS else _BUSY_PAUSE_S)

    async def _every(self, interval_s: float, action: Callable[[], object], job: str) -> None:
        made = self._life.expect(job, interval_s)
        while True:
            await asyncio.sleep(interval_s)
            await self._attempt(action)
            made()

    async def _attempt(self, action: Callable[[], T]) -> T | None:
        """On the kernel thread; what fails is logged, and tried again at its next time."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, action)
        except (StoreError, BpfError, OSError) as error:
            _log.error("%s", error)
            return None

    def _refresh(self) -> None:
        if self._agent.identity is not None:
            self._agent.identity.refresh()
        self._agent.policy.follow_resolvers()

    async def _cover_interfaces(self) -> None:
        interfaces = self._agent.kernel.interfaces
        try:
            await asyncio.wrap_future(interfaces.begin())
            self._interfaces_made()
        except OSError as error:
            _log.error("interfaces cannot be covered: %s", error)

    def _tell_measured(self) -> None:
        """From the thread that measures."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._measured.set)

    async def _measure(self) -> None:
        """Put into the kernel what the thread that measures has found."""
        made = self._life.expect("executables", _MEASURE_WAIT_S)
        while True:
            with contextlib.suppress(TimeoutError):  # not wait_for: see _ends
                async with asyncio.timeout(_MEASURE_WAIT_S):
                    await self._measured.wait()
            self._measured.clear()
            identity = self._agent.identity
            if identity is not None:
                identity.check_measurer()
                if identity.has_measured:
                    await self._attempt(self._agent.measure)
                if identity.has_measured:
                    self._measured.set()
            made()
            await asyncio.sleep(_MEASURE_PAUSE_S)

    async def _ends(self) -> None:
        """Close the sockets of licenses and break-glass that end. The kernel has silenced them."""
        loop = asyncio.get_running_loop()
        made = self._life.expect("ends of licenses", _ENDS_WAIT_S)
        while True:
            self._wake_ends.clear()
            wait_s = await loop.run_in_executor(self._thread, self._next_end_s)
            made()
            if wait_s > 0:
                # Not wait_for: in Python 3.11 it forgets that it was cancelled when what it waits
                # for happens at that moment, and the daemon would never end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake_ends.wait()
                    continue
            if (self._agent.conditions.change_in_s() or 0) < 0:  # hours began or ended
                await self._attempt(self._agent.conditions.judge)
            await loop.run_in_executor(self._thread, self._end_what_is_over)

    def _next_end_s(self) -> float:
        """Seconds until a license or break-glass ends that no cut has followed yet, or hours do.

        A few at most, as a sign of life. Zero or less: it is over already, and no request may put
        its cut off.
        """
        agent = self._agent
        wait_s = _ENDS_WAIT_S
        license_s = agent.license_end_s()
        if license_s is not None:
            wait_s = min(wait_s, license_s + _END_SLACK_S)
        glass_s = agent.glass.left_s()
        if glass_s is not None:
            wait_s = min(wait_s, glass_s + _END_SLACK_S)
        hours_s = agent.conditions.change_in_s()
        if hours_s is not None:
            wait_s = min(wait_s, hours_s + _END_SLACK_S)
        return wait_s

    def _end_what_is_over(self) -> None:
        left = self._agent.glass.left_s()
        if left is not None and left <= 0:
            self._agent.glass.end("time")
        self._agent.metering.policy_changed()
        self._agent.conditions.attest()  # what only this daemon's sleep has ended is not over
        self._agent.cut()

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notifier.reloading()
            await self._attempt(lambda: load_again(self._agent))
            self._wake_ends.set()
            self._agent.link.wake()
            await self._on_kernel_only(lambda: self._life.ready(self._agent))


async def _run(config: AgentConfig, settings: SettingsKeeper | None) -> int:
    return await Daemon(config, settings).run()


def start(
    environment: Mapping[str, str] = os.environ,
    path: Path | None = None,
    *,
    load_only: bool = False,
) -> int:
    """Run with the settings as they are written, else with the last good ones; see `run`.

    7 where there are neither: nothing was changed, what is in the kernel goes on deciding.
    """
    setup_logging(environment)
    notifier = Notifier.from_environment(environment)

    def refused(problem: str) -> None:
        _log.error("the settings are refused, and there are no earlier ones: %s", problem)
        notifier.status(f"the settings are refused, the kernel goes on as it was: {problem}")

    found = chosen(environment, path, tell=refused)
    if found is None:
        return _EXIT_REFUSED
    settings, config = found
    return run(config, settings=settings, load_only=load_only)


def run(
    config: AgentConfig, *, settings: SettingsKeeper | None = None, load_only: bool = False
) -> int:
    """Run the daemon, or put the last policy into the kernel and end.

    Returns the exit status (docs/reference/commands.md), with the reason on the log: 0; 5 for
    want of root; 8 when another daemon has the state folder or the socket; 9 when `licagent
    detach` has ended it; else 1.
    """
    heap.keep_small()
    setup_logging(os.environ)
    # What ends a daemon that hangs (the watchdog, by SIGABRT) leaves in the log where it hung.
    with contextlib.suppress(OSError, ValueError):  # no standard error
        faulthandler.enable()
    if os.geteuid() != 0:
        _log.error("the daemon must run as root: it loads BPF programs")
        return _EXIT_PERMISSION
    try:
        if load_only:
            agent = Agent(config, notify=lambda _record: None)
            try:
                agent.start()
            finally:
                agent.close()
            return 0
        return asyncio.run(_run(config, settings))
    except StateDirBusy as error:
        _log.error("%s", error)
        return _EXIT_BUSY
    except (KernelUnavailable, StoreError, CgroupError, BpfError, OSError) as error:
        _log.error("%s", error)
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        return _EXIT_BUSY if busy else _EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(start())
