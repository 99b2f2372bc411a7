# SPDX-License-Identifier: Apache-2.0
"""What each thread used, from the kernel's taskstats: asked while it lives, told when it ends.

The numbers are the scheduler's nanoseconds and the thread's own storage accounting, the same
that the kernel's programs read. An exit record comes for every thread, also for one that lived
between two samples. What can go wrong is the way here: records that find the socket's buffer
full are dropped, and the kernel says so once (ENOBUFS) without saying how many.

pyroute2 finds the family and makes the requests; answers are taken apart with struct, because a
host that ends 1,000 processes a second would spend a fifth of a core in a general parser.
Layout: include/uapi/linux/taskstats.h. Versions 14 and 15 (Linux 6.14 to 6.16) moved fields by
mistake, so what stands where is learned from an answer about this process itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

_NETLINK_GENERIC: Final = 16
_SO_RCVBUFFORCE: Final = 33
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")
_AT_BODY: Final = _HEADER.size + 4  # after struct genlmsghdr

_TYPE_PID, _TYPE_TGID, _TYPE_STATS, _TYPE_AGGR_PID = 1, 2, 3, 4
_ATTR_PID: Final = 1

# From ac_comm on; its own offset is learned. cpu_run_virtual_total is right before it.
_FROM_COMM: Final = struct.Struct("=32sB7xIIIIIxxxxQ")
_IO_FROM_COMM: Final = 248 - 80  # read_bytes, write_bytes, cancelled_write_bytes
_IO: Final = struct.Struct("=QQQ")
_COMM_USUAL: Final = 80
_GROUP: Final = struct.Struct("=IxxxxQQQ")  # ac_tgid, ac_tgetime, ac_exe_dev, ac_exe_inode
_GROUP_AT: Final = 368
_GROUP_SINCE: Final = 12
_AGROUP: Final = 0x20  # of ac_flag, since version 12: the last thread of its process
_FLAG_AT: Final = 8

BUFFER_BYTES: Final = 64 << 20
"""Holds some 30,000 exit records (2 KiB each with the kernel's own overhead)."""

_BATCH: Final = 64

TOLD_WITHIN_S: Final = 2.0
"""The record of an end is there when the thread is gone; this is for a host under load."""


class TaskStatsUnavailable(Exception):
    """This kernel has none, or this process may not have them; the text says why."""


class ThreadStats(NamedTuple):
    """One thread, since it began."""

    tid: int
    tgid: int
    """0: the kernel did not say (before 5.19, or 6.14 to 6.16)."""
    uid: int
    gid: int
    parent: int
    comm: str
    cpu_ns: int
    read_bytes: int
    write_bytes: int
    cancelled_bytes: int
    device: int
    """The executable's, as st_dev; 0 not known."""
    inode: int
    is_last: bool | None
    """Of an exit record: whether its process ended with it; None: not said."""


class TaskStats:
    """Two sockets: one to ask, one that hears of ends on every CPU."""

    def __init__(self) -> None:
        """TaskStatsUnavailable where nothing comes."""
        self._family = 0
        self._ask: socket.socket | None = None
        self._listen: socket.socket | None = None
        self._early: list[ThreadStats] = []
        self._comm_at, self._has_group = _COMM_USUAL, False
        try:
            self._family = _family()
            self._ask = _socket(1 << 20)
            self._learn_layout()
        except OSError as error:
            self.close()
            raise TaskStatsUnavailable(f"taskstats: {error.strerror or error}") from error
        except TaskStatsUnavailable:
            self.close()
            raise

    def listen(self) -> None:
        """Have the ends of all threads told from now on."""
        self._listen = _socket(BUFFER_BYTES)
        cpus = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
        self._listen.send(_registration(self._family, cpus))
        answer = self._listen.recv(1 << 16)
        code = _error_of(answer)
        if code:
            self._listen.close()
            self._listen = None
            raise TaskStatsUnavailable(f"taskstats exit records: {os.strerror(code)}")
        self._listen.setblocking(False)
        self._try()

    def _try(self) -> None:
        """See a thread of this process end: from other network namespaces one may register, too,
        but the kernel looks for the listener in the first one (send_cpu_listeners())."""
        thread = threading.Thread(target=lambda: None)
        thread.start()
        tid = thread.native_id
        thread.join()
        deadline = time.monotonic() + TOLD_WITHIN_S
        while not any(stats.tid == tid for stats in self._early):
            if time.monotonic() > deadline:
                raise TaskStatsUnavailable("taskstats exit records do not come")
            time.sleep(0.01)
            self._early = self.ended()[0]

    @property
    def tells_process(self) -> bool:
        """Whether records say which process a thread belonged to."""
        return self._has_group

    def fileno(self) -> int:
        """Readable when ends can be drained; -1 before `listen`."""
        return -1 if self._listen is None else self._listen.fileno()

    def close(self) -> None:
        """The kernel takes a closed listener off its lists by itself."""
        for one in (self._ask, self._listen):
            if one is not None:
                one.close()
        self._ask = self._listen = None

    def ended(self, limit: int = 100_000) -> tuple[list[ThreadStats], int]:
        """Ends told since the last call, and how often records were dropped."""
        found, self._early = self._early, []
        lost = 0
        while self._listen is not None and len(found) < limit:
            try:
                answer = self._listen.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost += 1
                continue
            found.extend(stats for stats in self._parse(answer) if stats is not None)
        return found, lost

    def of(self, tids: Iterable[int]) -> dict[int, ThreadStats]:
        """These threads now; those that are gone are not in the answer."""
        found: dict[int, ThreadStats] = {}
        batch: list[int] = []
        for tid in tids:
            batch.append(tid)
            if len(batch) == _BATCH:
                self._query(batch, found)
                batch = []
        if batch:
            self._query(batch, found)
        return found

    def _query(self, tids: list[int], found: dict[int, ThreadStats]) -> None:
        if self._ask is None:
            return
        self._ask.send(b"".join(self._request(tid) for tid in tids))
        left = len(tids)
        while left > 0:
            for stats in self._parse(self._ask.recv(1 << 16)):
                left -= 1
                if stats is not None:
                    found[stats.tid] = stats

    def _request(self, tid: int) -> bytes:
        body = struct.pack("=BBHHHI", 1, 1, 0, 8, _ATTR_PID, tid)
        return _HEADER.pack(_HEADER.size + len(body), self._family, 1, tid, 0) + body

    def _learn_layout(self) -> None:
        own = threading.get_native_id()
        if self._ask is None:
            return
        self._ask.send(self._request(own))
        answer = self._ask.recv(1 << 16)
        code = _error_of(answer)
        if code:
            raise TaskStatsUnavailable(f"taskstats: {os.strerror(code)}")
        stats = next(_stats_of(answer), None)
        if stats is None:
            raise TaskStatsUnavailable("taskstats: an answer of an unknown form")
        name = Path(f"/proc/self/task/{own}/comm").read_bytes().rstrip(b"\n")
        wanted = name.ljust(32, b"\0")
        at = stats.find(wanted)
        if at < 0 or struct.unpack_from("=I", stats, at + 48)[0] != own:
            raise TaskStatsUnavailable("taskstats: the structure has an unknown layout")
        self._comm_at = at
        version = struct.unpack_from("=H", stats)[0]
        self._has_group = (
            at == _COMM_USUAL
            and version >= _GROUP_SINCE
            and len(stats) >= _GROUP_AT + _GROUP.size
            and struct.unpack_from("=I", stats, _GROUP_AT)[0] == os.getpid()
        )

    def _parse(self, answer: bytes) -> Iterator[ThreadStats | None]:
        """What each message of an answer tells; None for an error: such a thread is gone."""
        for stats in _stats_of(answer):
            yield None if stats is None else self._thread(stats)

    def _thread(self, stats: bytes) -> ThreadStats:
        at = self._comm_at
        comm, _, uid, gid, pid, parent, _, _ = _FROM_COMM.unpack_from(stats, at)
        (cpu_ns,) = struct.unpack_from("=Q", stats, at - 8)
        read, write, cancelled = _IO.unpack_from(stats, at + _IO_FROM_COMM)
        tgid = device = inode = 0
        is_last: bool | None = None
        if self._has_group:
            tgid, _, encoded, inode = _GROUP.unpack_from(stats, _GROUP_AT)
            device = _device(encoded)
            is_last = bool(stats[_FLAG_AT] & _AGROUP)
        name = comm.split(b"\0", 1)[0].decode(errors="replace")
        return ThreadStats(
            pid,
            tgid,
            uid,
            gid,
            parent,
            name,
            cpu_ns,
            read,
            write,
            cancelled,
            device,
            inode,
            is_last,
        )


def _socket(buffer_bytes: int) -> socket.socket:
    found = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
    )
    try:
        with contextlib.suppress(PermissionError):
            found.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        found.settimeout(5.0)
        found.bind((0, 0))
    except OSError:
        found.close()
        raise
    return found


def _family() -> int:
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]
    from pyroute2.netlink.taskstats import TaskStats as Family  # type: ignore[import-untyped]

    family = Family()
    try:
        family.bind()
        number: int = family.asyncore.prid
    except NetlinkError as error:
        raise TaskStatsUnavailable("this kernel has no taskstats (CONFIG_TASKSTATS)") from error
    finally:
        family.close()
    return number


def _registration(family: int, cpus: str) -> bytes:
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST  # type: ignore[import-untyped]
    from pyroute2.netlink.taskstats import TASKSTATS_CMD_GET, tcmd

    message = tcmd()
    message["cmd"] = TASKSTATS_CMD_GET
    message["version"] = 1
    message["attrs"].append(["TASKSTATS_CMD_ATTR_REGISTER_CPUMASK", cpus])
    message["header"]["type"] = family
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    message.encode()
    return bytes(message.data)


def _error_of(answer: bytes) -> int:
    """The errno of an error message; 0 for success and for others."""
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != _NLMSG_ERROR:
        return 0
    code: int = struct.unpack_from("=i", answer, _HEADER.size)[0]
    return -code


def _stats_of(answer: bytes) -> Iterator[bytes | None]:
    """struct taskstats of each message about one thread; None for a message without."""
    at = 0
    while at + _HEADER.size <= len(answer):
        length, kind, _, _, _ = _HEADER.unpack_from(answer, at)
        if length < _HEADER.size:
            return
        if kind == _NLMSG_ERROR:
            yield None
        else:
            yield _thread_part(answer, at + _AT_BODY, at + length)
        at += (length + 3) & ~3


def _thread_part(answer: bytes, at: int, end: int) -> bytes | None:
    """The part about the thread; that of its whole process, which may follow, is not used."""
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            return None
        if kind == _TYPE_AGGR_PID:
            return _thread_part(answer, at + _ATTRIBUTE.size, at + length)
        if kind == _TYPE_STATS:
            return answer[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return None


def _device(encoded: int) -> int:
    """huge_encode_dev() of include/linux/kdev_t.h to st_dev."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00))
