# SPDX-License-Identifier: Apache-2.0
"""Who a process is, read from /proc, and remembered for children that are gone too soon."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

_CLOCK_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

PF_EXITING: Final = 0x4
"""Of the flags in /proc/PID/stat: it is ending, and its exit record was sent or will be."""
_PF_KTHREAD: Final = 0x0020_0000

LARGEST_CACHE: Final = 20_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is while it runs one executable under one user."""

    uid: int = 0
    gid: int = 0
    cgroup_path: str = ""
    executable: str = ""
    device: int = 0
    """As st_dev."""
    inode: int = 0
    comm: str = ""


class Stat(NamedTuple):
    """What /proc/PID/stat (or of a thread) tells (proc(5))."""

    comm: str
    state: str
    flags: int
    threads: int
    start_ns: int
    """CLOCK_BOOTTIME, in steps of a clock tick."""
    resident_bytes: int
    cpu_ticks: int

    @property
    def is_ending(self) -> bool:
        """It counts no more: what it used is in its exit record."""
        return bool(self.flags & PF_EXITING)

    @property
    def is_dead(self) -> bool:
        """It ended: its exit record was sent."""
        return self.state in "ZXx"

    @property
    def is_kernel_thread(self) -> bool:
        """It has no executable."""
        return bool(self.flags & _PF_KTHREAD)


class ProcFolder:
    """/proc, as the sampler uses it."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        found = _cgroup_root(f"{proc}/self/mountinfo")
        self._has_cgroup2 = bool(found)
        self._cgroup_root = found or "/sys/fs/cgroup/systemd"
        self._cgroup_ids: dict[str, int] = {}

    @property
    def cgroup2_root(self) -> str:
        """Where cgroup v2 is mounted; "" where it is not."""
        return self._cgroup_root if self._has_cgroup2 else ""

    def stat(self, pid: int, tid: int = 0) -> Stat | None:
        """Of a process or thread; None where it is gone."""
        path = f"{self._proc}/{pid}/task/{tid}/stat" if tid else f"{self._proc}/{pid}/stat"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            content = os.read(fd, 4096)
        except OSError:
            return None
        finally:
            os.close(fd)
        # The name may have blanks and parentheses; the last ")" ends it.
        head, _, tail = content.rpartition(b")")
        fields = tail.split()
        if len(fields) < 22:
            return None
        return Stat(
            head.partition(b"(")[2].decode(errors="replace"),
            fields[0].decode(),
            int(fields[6]),
            int(fields[17]),
            int(fields[19]) * _CLOCK_TICK_NS,
            int(fields[21]) * _PAGE_BYTES,
            int(fields[11]) + int(fields[12]),
        )

    def threads(self, pid: int) -> list[int]:
        """Thread ids; none where the process is gone."""
        try:
            return [int(name) for name in os.listdir(f"{self._proc}/{pid}/task")]
        except OSError:
            return []

    def identity(self, pid: int, stat: Stat, inherited: Identity | None = None) -> Identity:
        """Who it is now. What cannot be read is taken from `inherited`."""
        known = inherited or Identity()
        uid, gid = self._owners(pid, known)
        executable, device, inode = self._executable(pid, stat)
        return Identity(
            uid, gid, self._cgroup(pid) or known.cgroup_path, executable, device, inode, stat.comm
        )

    def after_exec(self, pid: int, inherited: Identity) -> Identity:
        """Who it is after an exec that was just heard of; it may be gone already."""
        stat = self.stat(pid)
        if stat is None or stat.is_ending:
            return replace(inherited, executable="", device=0, inode=0, comm="")
        return self.identity(pid, stat, inherited)

    def cgroup_id(self, path: str) -> int:
        """The id that the kernel's programs would give: the inode of the folder; 0 if unknown."""
        known = self._cgroup_ids.get(path)
        if known is not None:
            return known
        try:
            number = Path(self._cgroup_root + path).stat().st_ino if path else 0
        except OSError:
            number = 0
        if len(self._cgroup_ids) >= LARGEST_CACHE:
            self._cgroup_ids.clear()
        self._cgroup_ids[path] = number
        return number

    def forget_cgroups(self) -> None:
        """A cgroup that is made again has another id; so ids are kept for one sample only."""
        self._cgroup_ids.clear()

    def _owners(self, pid: int, known: Identity) -> tuple[int, int]:
        # The folder belongs to the effective user, except for processes that are not dumpable;
        # the file says both. What bills goes by the real user, as the kernel's programs do.
        try:
            with open(f"{self._proc}/{pid}/status", "rb") as file:
                content = file.read(4096)
        except OSError:
            return known.uid, known.gid
        uid = content.partition(b"\nUid:\t")[2].split(b"\t", 1)[0]
        gid = content.partition(b"\nGid:\t")[2].split(b"\t", 1)[0]
        return int(uid or known.uid), int(gid or known.gid)

    def _executable(self, pid: int, stat: Stat) -> tuple[str, int, int]:
        path = f"{self._proc}/{pid}/exe"
        try:
            name = os.readlink(path)
            status = os.stat(path)  # noqa: PTH116 -- follows a link that is no path
        except OSError:
            return (f"[{stat.comm}]" if stat.is_kernel_thread else ""), 0, 0
        return name.removesuffix(" (deleted)"), status.st_dev, status.st_ino

    def _cgroup(self, pid: int) -> str:
        try:
            with open(f"{self._proc}/{pid}/cgroup", "rb") as file:
                content = file.read().decode(errors="surrogateescape")
        except OSError:
            return ""
        # Where cgroup v2 is mounted at all, its line counts; else systemd's own hierarchy.
        wanted = "0::" if self._has_cgroup2 else ":name=systemd:"
        for line in content.splitlines():
            number, controllers, path = line.split(":", 2)
            if f"{number}:{controllers}:".endswith(wanted):
                return path.removesuffix(" (deleted)")
        return ""


def _cgroup_root(mountinfo: str) -> str:
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                head, _, tail = line.partition(" - ")
                if tail.startswith("cgroup2 "):
                    return head.split(" ")[4].rstrip("/")
    except OSError:
        pass
    return ""
