# SPDX-License-Identifier: Apache-2.0
"""`licplane serve`: blocks until a signal ends it. The process itself, or several of them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licplane.api.addresses import Held, advertised, hold
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.systemd import feed_watchdog, notify
from licplane.errors import ExitCode, PlaneError

if TYPE_CHECKING:
    from licplane.service.plane import Plane
    from licplane.service.requests import PlaneSettings
    from licplane.store.database import Store

log = logging.getLogger("licplane.api")


@dataclass(frozen=True, slots=True)
class Opened:
    """A plane with its store, which the server closes at its end."""

    plane: Plane
    store: Store


PlaneFactory = Callable[["PlaneSettings"], Opened]
"""Opens the store and the keys. Called once in each worker process, so it is picklable: a
function of a module, or functools.partial over one. The settings come from the server, which
knows its addresses."""

Started = Callable[[Addresses], None]


def serve(
    settings: ServerSettings,
    plane_factory: PlaneFactory,
    *,
    started: Started | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    The store has its schema and the keys exist (`Plane.ensure_foundations`) before this is
    called. `started` is called once in this process when every worker accepts connections;
    systemd is told then too (sd_notify), where it asks for it.

    Raises PlaneError when an address cannot be had, or the store or keys not be opened.
    """
    if settings.workers < 1:
        raise PlaneError(ExitCode.USAGE, "There is at least one worker", "Choose --workers 1 or up")
    with ExitStack() as stack:
        control = _held(stack, settings.listen, "--listen")
        public = _held(stack, settings.public_listen, "--public-listen")
        addresses = Addresses(control.address, public.address)
        settings = advertised(settings, addresses)

        def ready(metrics: tuple[str, ...]) -> None:
            found = Addresses(addresses.control, addresses.public, metrics)
            log.info("listening on %s (hosts) and %s (public)", found.control, found.public)
            notify("READY=1")
            if started is not None:
                started(found)

        if settings.workers == 1:
            _serve_here(settings, plane_factory, addresses, ready)
            return ExitCode.OK
        from licplane.api.workers import serve_in_processes

        return serve_in_processes(settings, plane_factory, addresses, ready)


def plane_settings(settings: ServerSettings) -> PlaneSettings:
    """What the service needs to know of the server's settings."""
    from licplane.service.requests import PlaneSettings

    return PlaneSettings(
        public_address=settings.public_address,
        control_address=settings.control_address,
        lease_ttl_s=settings.lease_ttl_s,
        host_certificate_ttl_s=settings.certificate_ttl_s,
        server_certificate_ttl_s=settings.certificate_ttl_s,
        report_interval_s=settings.report_interval_s,
        commands_folder=settings.trigger_commands,
    )


def _held(stack: ExitStack, address: str, what: str) -> Held:
    held = hold(address, what)
    stack.enter_context(held.socket)
    return held


def _serve_here(
    settings: ServerSettings,
    plane_factory: PlaneFactory,
    addresses: Addresses,
    ready: Callable[[tuple[str, ...]], None],
) -> None:
    opened = plane_factory(plane_settings(settings))

    async def main() -> None:
        from licplane.api.worker import Worker, run

        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        worker = Worker(settings, opened, addresses)
        feeding = asyncio.create_task(feed_watchdog())
        await run(worker, stop, lambda: ready(tuple(filter(None, [worker.metrics_address]))))
        feeding.cancel()
        notify("STOPPING=1")

    asyncio.run(main())
