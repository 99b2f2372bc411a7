# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells the service manager that the server is ready, gets on, or is stopping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state` (READY=1, WATCHDOG=1, STOPPING=1) to NOTIFY_SOCKET, where there is one.

    Waits at most a second for a service manager that does not listen.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a manager that went away is no reason to fail
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.settimeout(1.0)
        sender.sendto(state.encode(), address)


def watchdog_interval_s() -> float | None:
    """How often this process has to give a sign of life: half of what the service manager waits
    for one. None where it waits for none, or for another process's."""
    pid = str(os.getpid())
    try:
        wait_us = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    if wait_us <= 0 or os.environ.get("WATCHDOG_PID", pid) != pid:
        return None
    return wait_us / 2_000_000


async def feed_watchdog() -> None:
    """Tell the service manager that the event loop turns, for as long as it does. Never returns.

    Nothing else is asked: a server without its database is not helped by another start.
    """
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
    await asyncio.Event().wait()
