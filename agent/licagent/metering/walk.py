# SPDX-License-Identifier: Apache-2.0
"""How much a folder with everything below it holds: blocks times 512, each inode once.

That is what du(1) counts, and here too holes cost nothing, a file with several names counts
once, and folders and symbolic links count themselves. Files that were deleted but are open are
added (metering/deleted.py). What no walk can see: extents that files share (reflinks, snapshots)
count in each of them, and a tree that changes under the walk is never one moment's.

The tree may be somebody's who wants to be counted less, or to have the walker look elsewhere. So
nothing is opened by a path from the root: each folder is opened from its parent, without
following links, and has to be the one that was listed; going up has to lead to where it came
from. Depth needs neither descriptors nor paths longer than the system allows.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from licagent.metering.deleted import find_deleted
from licagent.metering.ground import Ground, inside_filesystem, is_below, mounts
from licagent.metering.inodes import LARGEST_LINKED, InodeCounter, Walked, WalkTask

_PRIVATE_TMP: Final = b"/systemd-private-"
"""In the name of the folder that systemd mounts over /tmp (systemd.exec(5), PrivateTmp=)."""


@dataclass(slots=True)
class _Level:
    """A folder on the way down: who it is, and which of its folders are still to do."""

    name: bytes
    device: int
    inode: int
    to_do: list[bytes]


class TreeWalk:
    """One walk."""

    def __init__(
        self,
        task: WalkTask,
        *,
        told: Callable[[int], None] = lambda _entries: None,
        clock: Callable[[], float] = time.monotonic,
        largest_linked: int = LARGEST_LINKED,
        proc: str = "/proc",
    ) -> None:
        """`told` hears now and then how many entries were seen."""
        self._task = task
        self._told = told
        self._clock = clock
        self._proc = proc
        self._deadline = clock() + task.limit_s
        self._devices: set[int] = set()
        self._ground = Ground(())
        self._entered: set[tuple[int, int]] = set()
        self._prefix = b""
        self.found = Walked(task.name)
        self._counter = InodeCounter(task, self.found, largest_linked)

    def run(self) -> Walked:
        """Walk until done or out of time. OSError where the folder itself cannot be read."""
        start = os.fsencode(os.path.realpath(self._task.path))
        places = tuple(mounts(f"{self._proc}/self/mountinfo"))
        if any(_PRIVATE_TMP in place.root for place in places):
            # The service manager gave us a /tmp of our own: the host's tree is process 1's.
            places = tuple(mounts(f"{self._proc}/1/mountinfo"))
            self._prefix = os.fsencode(f"{self._proc}/1/root")
        self._ground = Ground(places)
        try:
            fd = os.open(self._prefix + start, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.found.missing = self.found.is_whole = True
            return self.found
        self.found.is_whole = self._walk(start, fd)
        self._add_deleted(start)
        if self._counter.is_full:
            self.found.notes.append("more files with several names than are remembered")
        if self.found.skipped:
            self.found.notes.append(f"{self.found.skipped} entries could not be read")
        if not self.found.is_whole:
            self.found.notes.append(f"not done after {self._task.limit_s:.0f} s")
        return self.found

    # ------------------------------------------------------------------ the tree

    def _walk(self, start: bytes, fd: int) -> bool:
        """Takes `fd`. Whether it came to the end in time."""
        self.found.device = self._enter(start, fd)
        path = start
        levels = [self._level(b"", fd, path)]
        try:
            while levels:
                if self._clock() > self._deadline:
                    return False
                self._told(self.found.entries)
                level = levels[-1]
                if level.to_do:
                    name = level.to_do.pop()
                    below = self._down(fd, name, path)
                    if below >= 0:
                        os.close(fd)
                        fd, path = below, path.rstrip(b"/") + b"/" + name
                        levels.append(self._level(name, fd, path))
                    continue
                levels.pop()
                if levels:
                    path = path[: -len(level.name) - 1] or b"/"
                    fd = self._up(fd, levels, start)
                    path = start if len(levels) == 1 else path
            return True
        finally:
            os.close(fd)

    def _level(self, name: bytes, fd: int, path: bytes) -> _Level:
        """Count the folder `fd` and what is in it, except for what its folders hold."""
        own = os.fstat(fd)
        self._counter.count(own, fd, b"")
        level = _Level(name, own.st_dev, own.st_ino, [])
        covered = self._ground.covered_in(path)
        try:
            with os.scandir(fd) as entries:
                for number, entry in enumerate(entries):
                    if number & 1023 == 1023 and self._clock() > self._deadline:
                        break
                    self._entry(entry, fd, level, path, covered)
        except OSError:
            self.found.skipped += 1
        return level

    def _entry(
        self,
        entry: os.DirEntry[str],
        fd: int,
        level: _Level,
        path: bytes,
        covered: frozenset[bytes],
    ) -> None:
        name = os.fsencode(entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # deleted since it was listed: it holds nothing, or is open and counted there
        except OSError:
            self.found.skipped += 1
            return
        self.found.entries += 1
        if stat.S_ISDIR(status.st_mode):
            if self._may_enter(status, level, path.rstrip(b"/") + b"/" + name):
                level.to_do.append(name)
        elif status.st_dev == level.device and name not in covered:
            self._counter.count(status, fd, name)

    def _may_enter(self, status: os.stat_result, level: _Level, path: bytes) -> bool:
        place = self._ground.at(path)
        if place is None:
            # Without a mount another device is a subvolume; it is entered if mounts are.
            return status.st_dev == level.device or self._task.cross_devices
        if not self._task.cross_devices or (status.st_dev, status.st_ino) in self._entered:
            return False
        if status.st_dev in self._devices:
            return False  # a bind mount of what is walked already
        return place.may_be_entered

    def _down(self, fd: int, name: bytes, path: bytes) -> int:
        """Open a folder that was listed; -1 where it is gone, or is not a folder any more."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            below = os.open(name, flags, dir_fd=fd)
        except FileNotFoundError:
            return -1
        except OSError:
            self.found.skipped += 1
            return -1
        here, there = os.fstat(fd), os.fstat(below)
        if there.st_dev != here.st_dev:
            full = path.rstrip(b"/") + b"/" + name
            if not self._task.cross_devices:
                os.close(below)
                return -1
            self._enter(full, below)
        return below

    def _up(self, fd: int, levels: list[_Level], start: bytes) -> int:
        """The parent of `fd`, which it takes; found anew where the folder was moved meanwhile."""
        wanted = levels[-1]
        try:
            above = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        except OSError:
            above = -1
        os.close(fd)
        if above >= 0:
            status = os.fstat(above)
            if (status.st_dev, status.st_ino) == (wanted.device, wanted.inode):
                return above
            os.close(above)
        return self._again(levels, start)

    def _again(self, levels: list[_Level], start: bytes) -> int:
        """Go down from the top along `levels`, and forget those that are not there any more."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._prefix + start, flags)
        for depth, level in enumerate(levels[1:], start=1):
            try:
                below = os.open(level.name, flags, dir_fd=fd)
            except OSError:
                below = -1
            status = os.fstat(below) if below >= 0 else None
            if status is None or (status.st_dev, status.st_ino) != (level.device, level.inode):
                if below >= 0:
                    os.close(below)
                self.found.skipped += sum(len(lost.to_do) for lost in levels[depth:])
                del levels[depth:]
                break
            os.close(fd)
            fd = below
        return fd

    def _enter(self, path: bytes, fd: int) -> int:
        status = os.fstat(fd)
        self._devices.add(status.st_dev)
        self._entered.add((status.st_dev, status.st_ino))
        place = self._ground.around(path)
        if place is not None and place.shares_blocks:
            self.found.notes.append(f"{place.filesystem}: blocks that files share count in each")
        return status.st_dev

    # ------------------------------------------------------------------ without a name

    def _add_deleted(self, start: bytes) -> None:
        found = find_deleted(frozenset(self._devices), self._proc)
        roots = list(self._roots(start))
        for deleted in found.files:
            if not any(
                deleted.device == device and deleted.path and is_below(deleted.path, root)
                for device, root in roots
            ):
                continue
            self.found.deleted_bytes += deleted.size_bytes
            self._counter.count_deleted(deleted)
        if found.unreadable:
            self.found.notes.append(f"open files of {found.unreadable} processes are not known")

    def _roots(self, start: bytes) -> Iterator[tuple[int, bytes]]:
        """What was walked, as device and path inside of its filesystem."""
        place = self._ground.around(start)
        if place is not None:
            yield self.found.device, inside_filesystem(start, place)
        for below in self._ground.below(start) if self._task.cross_devices else ():
            if below.device in self._devices:
                yield below.device, b"/" + below.root.strip(b"/")
