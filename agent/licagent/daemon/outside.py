# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks of its way out (licagent.uplink), and that process itself.

A daemon that may not read the clock's state (adjtimex(2); ProtectClock= in its unit) is told it
by its way out. An answer counts only while the wall clock stands as it stood then: setting the
clock makes it unsynchronised, and an older answer must not say otherwise. A false answer can end
licenses early by a wall clock that root has turned forward; it can extend none
(licagent.domain.clock).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from typing import Final

from licagent.host import posture
from licagent.host.posture import ClockSync
from licagent.observability.logs import setup_logging
from licagent.observability.systemd import Notifier
from licagent.uplink.client import MESSAGE_MAX_BYTES, UplinkError, uplink
from licagent.uplink.server import Carrier

_log: Final = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 5.0
_COUNTS_FOR_S: Final = 30.0
_STEP_NS: Final = 50_000_000
"""More than an NTP client slews in that time (500 ppm of 30 s is 15 ms): the clock was set."""
_LISTEN_FDS_START: Final = 3  # sd_listen_fds(3)


class SyncWatch:
    """Asks for the clock's state on a thread of its own: its answer must delay nobody."""

    def __init__(self) -> None:
        self._latest: tuple[float, int, ClockSync] | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to ask, where there is somebody to ask and a need to. May be called again."""
        if self._thread is None and uplink() is not None and posture.clock_sync() is None:
            self._thread = threading.Thread(target=self._ask, name="clock", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def clock_sync(self) -> ClockSync | None:
        """The clock's state: from the kernel, else the last answer that still counts."""
        found = posture.clock_sync()
        if found is not None or self._latest is None:
            return found
        at_s, offset_ns, told = self._latest
        if time.monotonic() - at_s > _COUNTS_FOR_S:
            return None
        if abs(_wall_offset_ns() - offset_ns) > _STEP_NS:
            return None
        return told

    def is_synchronised(self) -> bool | None:
        """As a fact for conditions; None: it cannot be told."""
        found = self.clock_sync()
        return None if found is None else found.synchronised

    def _ask(self) -> None:
        way_out, said = uplink(), ""
        while way_out is not None:
            try:
                answer = way_out.clock()
                if answer.get("synchronised") is None:
                    raise UplinkError("the kernel refuses to tell the clock's state")
                self._latest = (
                    time.monotonic(),
                    int(answer["wall_offset_ns"]),
                    ClockSync(
                        bool(answer["synchronised"]),
                        int(answer["max_error_us"]),
                        int(answer["estimated_error_us"]),
                    ),
                )
                said = ""
            except (OSError, ValueError, KeyError) as error:
                if str(error) != said:
                    _log.warning("whether the clock is synchronised is not known: %s", error)
                    said = str(error)
            if self._stopped.wait(_ASK_EVERY_S):
                return


def _wall_offset_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _read_clock() -> tuple[bool, int, int] | None:
    found = posture.clock_sync()
    if found is None:
        return None
    return found.synchronised, found.max_error_us, found.estimated_error_us


def _listener() -> socket.socket:
    """The socket of licagent-uplink.socket; one made at LICAGENT_UPLINK without systemd."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_LISTEN_FDS_START)
    path = os.environ.get("LICAGENT_UPLINK", "")
    if not path.startswith("/"):
        raise OSError("no socket was passed by systemd, and LICAGENT_UPLINK names none")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    made.bind(path)
    os.chmod(path, 0o600)  # noqa: PTH101 - before it listens
    made.listen(16)
    return made


async def _serve(listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    notifier = Notifier.from_environment(os.environ)
    notifier.ready("carries the agent's connections to the control plane")
    await Carrier(listener, _read_clock).run(stop)
    notifier.stopping()


def run() -> int:
    """Be the way out until SIGTERM. The exit status: 0, or 1 without a socket to listen at."""
    setup_logging(os.environ)
    try:
        listener = _listener()
    except OSError as error:
        _log.error("%s", error)
        return 1
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MESSAGE_MAX_BYTES)
    with listener:
        asyncio.run(_serve(listener))
    return 0
