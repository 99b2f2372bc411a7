# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells the service manager that the server is ready, or stopping."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state` (READY=1, STOPPING=1) to NOTIFY_SOCKET; nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a manager that went away is no reason to fail
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto(state.encode(), address)
