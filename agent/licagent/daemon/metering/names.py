# SPDX-License-Identifier: Apache-2.0
"""What the kernel's numbers in a sheet stand for on this host: cgroups, users, executables.

Used on the metering thread alone; nothing here waits for the kernel's thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from licagent.host.cgroups import CgroupTree, names_of
from licagent.host.exec_paths import search_directories
from licagent.host.executables import kernel_device
from licagent.host.processes import ProcessGone, executable_of, start_boottime_ns
from licagent.host.users import Users
from licagent.metering.rows import WhoRow

_CGROUPS_MAX: Final = 4096
_FILES_MAX: Final = 8192
"""The programs that are installed, and some more."""
_LOOK_AGAIN_S: Final = 60.0
_TICK_NS: Final = 20_000_000
"""Start times in /proc are told in clock ticks, of at most 10 ms."""

File = tuple[int, int]
"""Device and inode, as the kernel has them."""


class HostNameBook:
    """`metering.owners.HostNames` of the machine it runs on."""

    def __init__(
        self,
        tree: CgroupTree,
        boot_unix_ms: int,
        policy_path: Callable[[int], str | None] = lambda _number: None,
    ) -> None:
        """`boot_unix_ms`: wall time at which CLOCK_BOOTTIME was zero, the same for all of a boot.

        `policy_path`: the path that a number of the policy's tables stands for.
        """
        self._tree = tree
        self._boot_unix_ms = boot_unix_ms
        self._policy_path = policy_path
        self._users = Users()
        self._cgroups: dict[int, str] = {}
        self._units: dict[str, str] = {}
        self._files: dict[File, str] = {}
        self._looked_at_s = -_LOOK_AGAIN_S

    def cgroup(self, number: int) -> str:
        """See `HostNames`. An id is never used again, so what was found once holds."""
        known = self._cgroups.get(number)
        if known is None:
            known = self._tree.path_of(number) if number else None
            if known is None:
                return ""
            if len(self._cgroups) >= _CGROUPS_MAX:
                self._cgroups.clear()
            self._cgroups[number] = known
        return known

    def relative(self, path: str) -> str:
        """See `HostNames`."""
        return self._tree.relative(f"{self._tree.mount}{path}".rstrip("/")) or ""

    def unit(self, cgroup: str) -> str:
        """See `HostNames`."""
        known = self._units.get(cgroup)
        if known is None:
            names = names_of(cgroup)
            known = names.container or names.unit or ""
            if len(self._units) >= _CGROUPS_MAX:
                self._units.clear()
            self._units[cgroup] = known
        return known

    def user(self, uid: int) -> str:
        """See `HostNames`."""
        return self._users.user_name(uid) or str(uid)

    def process_start_unix_ms(self, start_ns: int) -> int:
        """See `HostNames`."""
        return self._boot_unix_ms + start_ns // 1_000_000

    def executable(self, who: WhoRow) -> str:
        """See `HostNames`."""
        if who.path:
            named = self._policy_path(who.path)
            if named is not None:
                return named
        if not who.inode:
            return ""
        file = (who.device, who.inode)
        known = self._files.get(file)
        if known is None and who.pid:
            known = self._of_process(who)
        if known is None:
            self._look_around()
            known = self._files.get(file)
        return known or ""

    def _of_process(self, who: WhoRow) -> str | None:
        """What a live process runs, if it is still the one that was counted."""
        path, _deleted = executable_of(who.pid)
        try:
            # After the path: the process is the same one before it, too.
            if path is None or abs(start_boottime_ns(who.pid) - who.start_ns) > _TICK_NS:
                return None
            info = Path(f"/proc/{who.pid}/exe").stat()
        except (ProcessGone, OSError):
            return None
        if info.st_ino != who.inode:
            return None  # it runs something else by now
        self._note((who.device, who.inode), path)
        return path

    def _look_around(self) -> None:
        """Note the installed programs: some end before anybody can ask them what they are."""
        now_s = time.monotonic()
        if now_s - self._looked_at_s < _LOOK_AGAIN_S:
            return
        self._looked_at_s = now_s
        for directory in search_directories():
            try:
                entries = list(os.scandir(directory))
            except OSError:
                continue
            for entry in entries:
                try:
                    info = entry.stat()
                except OSError:
                    continue
                device = kernel_device(os.major(info.st_dev), os.minor(info.st_dev))
                file = (device, info.st_ino)
                if file not in self._files:
                    self._note(file, os.path.realpath(entry.path))

    def _note(self, file: File, path: str) -> None:
        if len(self._files) >= _FILES_MAX:
            self._files.clear()
        self._files[file] = path
