# SPDX-License-Identifier: Apache-2.0
"""What can be said of a process: who it is, what it runs, where it stands.

A pid alone names nothing for long. A process is (pid, start time): `describe` reads the start
time before and after and answers only when both agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil

from licagent.host.cgroups import CgroupNames, cgroup_of_process, names_of
from licagent.host.users import Users

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ProcessGone(LookupError):
    """The process has ended, or its pid belongs to another one now."""

    def __init__(self, pid: int) -> None:
        """Say which."""
        super().__init__(f"there is no process {pid} (any more)")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment."""

    pid: int
    parent: int
    name: str  # comm, at most 15 bytes; any program may set its own
    executable: str | None  # None: a kernel thread, or not ours to read
    executable_deleted: bool  # replaced on disk since it started, a package upgrade for instance
    uid: int  # real user id, as bpf_get_current_uid_gid() has it
    gid: int
    effective_uid: int
    effective_gid: int
    user: str | None
    group: str | None
    cgroup: str | None  # v2 path from the mount; None outside our cgroup namespace
    unit: str | None
    slice: str | None
    container: str | None
    started_boottime_ns: int  # CLOCK_BOOTTIME, in steps of a clock tick (10 ms)


def start_boottime_ns(pid: int) -> int:
    """When a process started, in ns of CLOCK_BOOTTIME cut to a clock tick.

    Field 22 of /proc/PID/stat. The kernel's own task->start_boottime is this, not cut.
    Raises ProcessGone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            text = stat.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone(pid) from error
    # The name in field 2 may hold blanks and brackets: count from the last bracket.
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[19]) * _TICK_NS


def executable_of(pid: int) -> tuple[str | None, bool]:
    """Path of the file a process runs, and whether that name no longer stands for it.

    None for a process that is gone, a kernel thread, one that is not ours to read, and one whose
    path is longer than PATH_MAX (ENAMETOOLONG), which anybody may bring about.
    """
    try:
        target = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None, False
    if target.endswith(" (deleted)"):
        return target.removesuffix(" (deleted)"), True
    return target, False


def _name_of(pid: int) -> str:
    """Its comm.

    Not psutil's name(), which completes a long one from the command line: reading that goes to
    the memory of the process, where it may wait for as long as the process likes.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().removesuffix(b"\n").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone(pid) from error


def describe(pid: int, users: Users | None = None) -> Process:
    """Describe a process; raises ProcessGone if it ended or was replaced meanwhile."""
    names = users if users is not None else Users()
    started_ns = start_boottime_ns(pid)
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            uids = process.uids()
            gids = process.gids()
            parent = process.ppid()
        name = _name_of(pid)
    except psutil.NoSuchProcess as error:
        raise ProcessGone(pid) from error
    cgroup = cgroup_of_process(pid)
    where = names_of(cgroup) if cgroup is not None else CgroupNames()
    executable, deleted = executable_of(pid)
    if start_boottime_ns(pid) != started_ns:
        raise ProcessGone(pid)
    return Process(
        pid=pid,
        parent=parent,
        name=name,
        executable=executable,
        executable_deleted=deleted,
        uid=uids.real,
        gid=gids.real,
        effective_uid=uids.effective,
        effective_gid=gids.effective,
        user=names.user_name(uids.real),
        group=names.group_name(gids.real),
        cgroup=cgroup,
        unit=where.unit,
        slice=where.slice,
        container=where.container,
        started_boottime_ns=started_ns,
    )


def pids() -> Iterator[int]:
    """The pids of all processes, in no order; some may be gone when they are looked at."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)
