# SPDX-License-Identifier: Apache-2.0
"""What a walk is asked and what it found: blocks of inodes by owner, each inode once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from licagent.metering.deleted import Deleted
from licagent.metering.project_quota import project_of

ALL: Final = -1
"""Owner of the sum where a walk does not tell owners apart."""

LARGEST_LINKED: Final = 1_000_000
"""So many inodes with several names are remembered (70 MB); each further one counts with its
blocks divided by its names, and the result is estimated."""


@dataclass(frozen=True, slots=True)
class WalkTask:
    """What to walk."""

    name: str
    path: str
    by: str = ""
    """"" for the sum, "user" or "project" to tell owners apart."""
    owner: int = ALL
    """Only what belongs to this owner; ALL: everything."""
    cross_devices: bool = False
    limit_s: float = 600.0


@dataclass(slots=True)
class Walked:
    """What a walk found."""

    name: str
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By owner (ALL for the sum): bytes and inodes."""
    entries: int = 0
    skipped: int = 0
    """Folders and files that could not be looked at, or went away while they were."""
    deleted_bytes: int = 0
    """The part of `held` that has no name any more."""
    device: int = 0
    missing: bool = False
    """The path is not there: nothing is held."""
    is_whole: bool = False
    """Ended by itself, before its time was up."""
    notes: list[str] = field(default_factory=list)
    """Why the result is not exact; for people."""

    def add(self, owner: int, size_bytes: int) -> None:
        """Count one inode."""
        before = self.held.get(owner, (0, 0))
        self.held[owner] = (before[0] + size_bytes, before[1] + 1)


class InodeCounter:
    """Counts the inodes of one walk, for those owners that were asked for."""

    def __init__(self, task: WalkTask, found: Walked, largest_linked: int) -> None:
        """`found` is added to. `largest_linked`: see LARGEST_LINKED."""
        self._task = task
        self._found = found
        self._largest_linked = largest_linked
        self._linked: set[tuple[int, int]] = set()

    @property
    def is_full(self) -> bool:
        """Whether no further inode with several names is remembered."""
        return len(self._linked) >= self._largest_linked

    def count(self, status: os.stat_result, fd: int, name: bytes) -> None:
        """One that has a name: `name` in the folder `fd`; b"" for the folder itself."""
        size = status.st_blocks * 512
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return
            if len(self._linked) < self._largest_linked:
                self._linked.add(key)
            else:
                size //= status.st_nlink
        if self._task.by == "project":
            self._give(self._project(status, fd, name), size)
        else:
            self._give(status.st_uid if self._task.by else ALL, size)

    def count_deleted(self, deleted: Deleted) -> None:
        """One that has none any more, but is open."""
        owner = {"": ALL, "user": deleted.uid}.get(self._task.by)
        self._give(_project_at(deleted.handle) if owner is None else owner, deleted.size_bytes)

    def _give(self, owner: int, size: int) -> None:
        if self._task.owner in (ALL, owner):
            self._found.add(owner, size)

    def _project(self, status: os.stat_result, fd: int, name: bytes) -> int:
        if not name:
            return project_of(fd)
        if not stat.S_ISREG(status.st_mode):
            # Devices and pipes must not be opened, links cannot be: they inherited the folder's.
            return project_of(fd)
        # O_NONBLOCK: a lease on the file must not stop the walk.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(name, flags, dir_fd=fd)
        except OSError:
            self._found.skipped += 1
            return 0
        try:
            return project_of(file)
        finally:
            os.close(file)


def _project_at(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return project_of(fd)
    finally:
        os.close(fd)
