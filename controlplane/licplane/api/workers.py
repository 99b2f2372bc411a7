# SPDX-License-Identifier: Apache-2.0
"""Worker processes: spawned before gRPC is loaded, watched, replaced when one dies or hangs.

gRPC does not survive a fork, so each starts as a new program. They share the two addresses by
SO_REUSEPORT; the kernel spreads connections over those that listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from licplane.api.server import PlaneFactory, plane_settings
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.systemd import notify, watchdog_interval_s
from licplane.errors import ExitCode, PlaneError

_START_S: Final = 120.0
_RESTART_S: Final = 1.0
_KILL_AFTER_S: Final = 10.0
_TURN_S: Final = 1.0
_ALIVE_S: Final = 5.0
"""How often a worker says that its event loop turns."""
_SILENT_MAX: Final = 24
"""Times that it was looked for in vain: it hangs. Looks are counted and not seconds, which may have
passed while this process was stopped, too."""

log = logging.getLogger("licplane.api")


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a worker could not start."""

    code: int
    message: str
    hint: str


@dataclass(slots=True)
class _Member:
    number: int
    process: SpawnProcess
    pipe: Connection
    metrics: str = ""
    silent: int = 0


class _Stopped(Exception):
    """The server is to end."""


class _Crew:
    """The workers of one server."""

    def __init__(
        self,
        settings: ServerSettings,
        factory: PlaneFactory,
        addresses: Addresses,
        stopped: socket.socket,
    ) -> None:
        """`stopped` is readable when the server is to end."""
        self._stopped = stopped
        self._context = multiprocessing.get_context("spawn")
        self._settings = settings
        self._factory = factory
        self._addresses = addresses
        self._members: list[_Member] = []
        self._feed_s = watchdog_interval_s()
        self._fed_s = 0.0

    def start(self) -> tuple[str, ...]:
        """Start all; where each serves its metrics. _Stopped."""
        self._members = [self._spawn(number) for number in range(self._settings.workers)]
        return tuple(filter(None, map(self._ready, self._members)))

    def _spawn(self, number: int) -> _Member:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(self._settings, self._factory, self._addresses, number, theirs),
            name=f"licplane-worker-{number}",
        )
        process.start()
        theirs.close()
        return _Member(number, process, ours)

    def _ready(self, member: _Member) -> str:
        try:
            end_s = time.monotonic() + _START_S
            while member.pipe not in (found := wait([member.pipe, self._stopped], _TURN_S)):
                if self._stopped in found:
                    raise _Stopped
                self._feed()  # one that waits for its database is no reason to end the others
                if time.monotonic() > end_s:
                    raise _broken(member, "it does not come up")
            said = member.pipe.recv()
        except EOFError as error:
            raise _broken(member, "it ended at once") from error
        if isinstance(said, _Failure):
            raise PlaneError(ExitCode(said.code), said.message, said.hint)
        member.metrics = str(said)
        return member.metrics

    def watch(self) -> None:
        """Replace workers that end, end those that hang, until the server is to end. _Stopped."""
        look_s = time.monotonic() + _ALIVE_S
        while True:
            self._feed()
            with selectors.DefaultSelector() as selector:
                selector.register(self._stopped, selectors.EVENT_READ)
                for member in self._members:
                    selector.register(member.process.sentinel, selectors.EVENT_READ, member)
                found = [key.data for key, _ in selector.select(min(_TURN_S, _ALIVE_S))]
            if None in found:
                return
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _ALIVE_S
                self._look()
            for member in found:
                member.process.join()
                log.error("worker %d ended (%s)", member.number, member.process.exitcode)
                member.pipe.close()
                time.sleep(_RESTART_S)
                new = self._spawn(member.number)
                self._members[self._members.index(member)] = new
                try:
                    self._ready(new)
                except PlaneError as error:
                    log.error("worker %d does not start: %s", new.number, error)
                    new.process.kill()  # its end is seen, and another one takes its place

    def _look(self) -> None:
        """Count for whom no sign of life came since the last look; end who hangs."""
        for member in self._members:
            member.silent = 0 if _has_said(member.pipe) else member.silent + 1
            if member.silent > _SILENT_MAX and member.process.is_alive():
                log.error("worker %d hangs: it is ended", member.number)
                member.process.kill()

    def _feed(self) -> None:
        """Tell the service manager that the workers are watched, as often as it asks."""
        if self._feed_s is not None and time.monotonic() - self._fed_s >= self._feed_s / 2:
            self._fed_s = time.monotonic()
            notify("WATCHDOG=1")

    def stop(self) -> None:
        """Let all end in an orderly way, and by force where that takes too long."""
        for member in self._members:
            member.pipe.close()  # the worker sees that, also when this process was killed
        end_s = time.monotonic() + self._settings.stop_grace_s + _KILL_AFTER_S
        for member in self._members:
            member.process.join(max(0.1, end_s - time.monotonic()))
            if member.process.is_alive():
                member.process.kill()
                member.process.join()


def serve_in_processes(
    settings: ServerSettings,
    factory: PlaneFactory,
    addresses: Addresses,
    ready: Callable[[tuple[str, ...]], None],
) -> int:
    """Serve in `settings.workers` processes until a signal; the exit code."""
    stopped, stopper = socket.socketpair()
    stopper.setblocking(False)
    crew = _Crew(settings, factory, addresses, stopped)

    def stop(_number: int, _frame: object) -> None:
        stopper.send(b"x")

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with contextlib.suppress(_Stopped):
            ready(crew.start())
            crew.watch()
        notify("STOPPING=1")
        return ExitCode.OK
    finally:
        crew.stop()
        for number, handler in before:
            signal.signal(number, handler)
        stopped.close()
        stopper.close()


def _work(
    settings: ServerSettings,
    factory: PlaneFactory,
    addresses: Addresses,
    number: int,
    pipe: Connection,
) -> None:
    """The life of a worker process."""
    for name in (signal.SIGTERM, signal.SIGINT):
        # A terminal signals all processes at once; the one that started us decides.
        signal.signal(name, signal.SIG_IGN)
    try:
        asyncio.run(_worker(settings, factory, addresses, number, pipe))
    except PlaneError as error:
        pipe.send(_Failure(int(error.code), error.message, error.hint))


async def _worker(
    settings: ServerSettings,
    factory: PlaneFactory,
    addresses: Addresses,
    number: int,
    pipe: Connection,
) -> None:
    from licplane.api.worker import Worker, run

    worker = Worker(settings, factory(plane_settings(settings)), addresses, number)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)  # readable at its end only
    telling: list[asyncio.Task[None]] = []

    def ready() -> None:
        pipe.send(worker.metrics_address)
        telling.append(asyncio.create_task(_tell_alive(pipe)))

    await run(worker, stop, ready)
    for task in telling:
        task.cancel()


async def _tell_alive(pipe: Connection) -> None:
    """Say that this event loop turns, a byte at a time. Never returns."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        while True:
            # Nobody reads while the one that watches hangs; nor must this one then.
            with contextlib.suppress(OSError):
                end.send(b".", socket.MSG_DONTWAIT)
            await asyncio.sleep(_ALIVE_S)


def _has_said(pipe: Connection) -> bool:
    """Whether signs of life are there; they are taken."""
    return not pipe.closed and pipe.poll() and bool(os.read(pipe.fileno(), 4096))


def _broken(member: _Member, why: str) -> PlaneError:
    return PlaneError(
        ExitCode.INTERNAL, f"Worker {member.number} cannot serve: {why}", "See the lines above"
    )
