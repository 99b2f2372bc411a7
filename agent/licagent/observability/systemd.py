# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tell systemd that the daemon is ready, alive, reloading, stopping.

Spoken directly, one datagram a message, over a path or an abstract socket ("@..." in
NOTIFY_SOCKET); libsystemd is not needed. Without NOTIFY_SOCKET every call does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_log: Final = logging.getLogger(__name__)


class Notifier:
    """Sends state changes to the service manager. Failures are logged, never raised."""

    def __init__(self, address: str | None) -> None:
        """`address`: NOTIFY_SOCKET's value; None or "" for no service manager."""
        self._address = _kernel_form(address) if address else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """The notifier NOTIFY_SOCKET asks for."""
        return cls(environment.get("NOTIFY_SOCKET"))

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete: enforcement is in place."""
        self.send({"READY": "1", "STATUS": status} if status else {"READY": "1"})

    def reloading(self) -> None:
        """A reload begins (Type=notify-reload, systemd 253); `ready` ends it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send({"RELOADING": "1", "MONOTONIC_USEC": str(now_us)})

    def stopping(self) -> None:
        """The daemon goes down; the kernel goes on deciding."""
        self.send({"STOPPING": "1"})

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.send({"STATUS": text})

    def watchdog(self) -> None:
        """Sign of life; due every `watchdog_interval_s`."""
        self.send({"WATCHDOG": "1"})

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send fields in one message; whether it was handed over."""
        if self._address is None:
            return False
        # A newline in a value would be a field of its own.
        lines = (f"{name}={' '.join(value.splitlines())}" for name, value in fields.items())
        message = "\n".join(lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message, self._address)
        except OSError as error:
            _log.warning("the service manager cannot be reached: %s", error)
            return False
        return True


def watchdog_interval_s(environment: Mapping[str, str], pid: int | None = None) -> float | None:
    """How often to call `Notifier.watchdog`: half of WATCHDOG_USEC; None if it is not wanted."""
    if environment.get("WATCHDOG_PID", str(pid or os.getpid())) != str(pid or os.getpid()):
        return None
    try:
        timeout_us = int(environment.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return timeout_us / 2_000_000 if timeout_us > 0 else None


def _kernel_form(address: str) -> str | None:
    if address.startswith("@"):
        return "\0" + address[1:]  # abstract, unix(7)
    if address.startswith("/"):
        return address
    _log.warning("NOTIFY_SOCKET %r is of no known kind (path or @name)", address)
    return None
