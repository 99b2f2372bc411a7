# SPDX-License-Identifier: Apache-2.0
"""Births, executables, owners and ends of processes as the kernel tells them (proc connector).

They give a process that is gone before the next sample its owner: who its parent was, and what
it executed. Counts do not rest on them. Layout: include/uapi/linux/cn_proc.h. pyroute2 makes the
request; events are taken apart with struct, as exit records are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from enum import IntEnum
from typing import Final, NamedTuple

_NETLINK_CONNECTOR: Final = 11
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 16 << 20
_AT_EVENT: Final = 16 + 20  # after struct nlmsghdr and struct cn_msg
_EVENT: Final = struct.Struct("=IIQ")
_FOUR: Final = struct.Struct("=IIII")
_TWO: Final = struct.Struct("=II")


class ProcEventsUnavailable(Exception):
    """This kernel has none, or this process may not have them; the text says why."""


class What(IntEnum):
    """Kinds that matter here (enum proc_cn_event)."""

    FORK = 0x1
    EXEC = 0x2
    UID = 0x4
    GID = 0x40
    THREAD = 0x1_0000_0001
    """FORK that made a thread, told apart here."""


class ProcEvent(NamedTuple):
    """Something happened to a process."""

    what: What
    pid: int
    """Of THREAD: the thread."""
    parent: int
    """Of FORK: the process that it comes from; of THREAD: its process; 0 for others."""


class ProcEvents:
    """The socket that hears them."""

    def __init__(self) -> None:
        """ProcEventsUnavailable where nothing comes."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
            )
        except OSError as error:
            raise ProcEventsUnavailable(f"process events: {error.strerror}") from error
        try:
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.settimeout(2.0)
            self._socket.bind((0, _group()))
            self._socket.send(_listening(True))
            self._confirm()
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise ProcEventsUnavailable(
                f"process events: {error.strerror or 'no answer'}"
            ) from error

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.send(_listening(False))
        self._socket.close()

    def drain(self, limit: int = 100_000) -> tuple[list[ProcEvent], int]:
        """Events since the last call, and how often some were dropped."""
        found: list[ProcEvent] = []
        lost = 0
        while len(found) < limit:
            try:
                message = self._socket.recv(4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost += 1
                continue
            event = parse(message)
            if event is not None:
                found.append(event)
        return found, lost

    def _confirm(self) -> None:
        """Wait for the kernel's answer; events may come before it, of threads older than this."""
        while True:
            message = self._socket.recv(4096)
            what, _, _ = _EVENT.unpack_from(message, _AT_EVENT)
            if what == 0:  # PROC_EVENT_NONE: the answer, with an errno
                (code,) = struct.unpack_from("=I", message, _AT_EVENT + _EVENT.size)
                if code:
                    raise OSError(code, os.strerror(code))
                return


def parse(message: bytes) -> ProcEvent | None:
    """One message; None for kinds that do not matter here."""
    if len(message) < _AT_EVENT + _EVENT.size + _TWO.size:
        return None
    what, _, _ = _EVENT.unpack_from(message, _AT_EVENT)
    at = _AT_EVENT + _EVENT.size
    if what == What.FORK:
        _, parent, pid, tgid = _FOUR.unpack_from(message, at)
        if pid == tgid:
            return ProcEvent(What.FORK, tgid, parent)
        return ProcEvent(What.THREAD, pid, tgid)
    if what in (What.EXEC, What.UID, What.GID):
        _, tgid = _TWO.unpack_from(message, at)
        return ProcEvent(What(what), tgid, 0)
    return None


def _group() -> int:
    from pyroute2.netlink.connector.cn_proc import CN_IDX_PROC  # type: ignore[import-untyped]

    group: int = CN_IDX_PROC
    return group


def _listening(on: bool) -> bytes:
    from pyroute2.netlink import NLMSG_DONE  # type: ignore[import-untyped]
    from pyroute2.netlink.connector.cn_proc import (
        CN_IDX_PROC,
        CN_VAL_PROC,
        PROC_CN_MCAST_IGNORE,
        PROC_CN_MCAST_LISTEN,
        proc_event_control,
    )

    message = proc_event_control()
    message["action"] = PROC_CN_MCAST_LISTEN if on else PROC_CN_MCAST_IGNORE
    message["idx"], message["val"], message["len"] = CN_IDX_PROC, CN_VAL_PROC, 4
    message["header"]["type"] = NLMSG_DONE
    message.encode()
    return bytes(message.data)
