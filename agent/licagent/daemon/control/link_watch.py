# SPDX-License-Identifier: Apache-2.0
"""Being told when network interfaces come and go.

rtnetlink(7) tells of the daemon's own network namespace only. A container's interface is the other
end of one that comes here, so its namespace is looked at in time, too. Nothing is parsed: what
there is now is listed anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Final

_ROUTE: Final = 0  # NETLINK_ROUTE
_LINKS: Final = 1  # RTMGRP_LINK
_SETTLE_S: Final = 0.02
"""One veth pair is a handful of messages."""
_PAUSE_S: Final = 0.5
"""At least so long between two rounds: a host that makes containers all the time."""


async def on_link_changes(
    action: Callable[[], Awaitable[None]], *, at_least_every_s: float
) -> None:
    """Call `action` soon after each change of an interface, and when none came for so long.

    Never returns.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _ROUTE
    ) as route:
        route.bind((0, _LINKS))
        loop.add_reader(route.fileno(), changed.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: see Daemon._ends.
                    async with asyncio.timeout(at_least_every_s):
                        await changed.wait()
                    await asyncio.sleep(_SETTLE_S)
                _drain(route)
                changed.clear()
                await action()
                await asyncio.sleep(_PAUSE_S)
        finally:
            loop.remove_reader(route.fileno())


def _drain(route: socket.socket) -> None:
    """Read all that waits. ENOBUFS says that messages were lost: one more change."""
    while True:
        try:
            route.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
