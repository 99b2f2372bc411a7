# SPDX-License-Identifier: Apache-2.0
"""Which files may be measured: those whose content cannot change under an unmoved version.

A version is (device, inode, change time), by which the kernel compares and digests are kept
(licagent.host.digests). What could break that, and what is done about it:

- a write in the same clock tick as the last one: files younger than FRESH_NS are not measured;
- a filesystem whose inodes, times or content somebody else makes up (FUSE, network
  filesystems): not measured;
- a filesystem mounted by a user in a namespace of their own, with a device number that is used
  again: only filesystems mounted in the host's own mount namespace are measured;
- tmpfs, where a shared mapping may be written without moving the change time: measured only if
  root alone can write the file;
- overlayfs, whose inode (the one that is compared) copies the change time of the file below
  only now and then, not at a write through a mapping (ovl_mmap(), fs/overlayfs/file.c; taken
  from the source, not yet shown by a test): measured only if it has no upper layer, or is the
  host's own root and root alone can write the file. In a container its own root could, so
  `container:id` is for those.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licagent.host.executables import (
    FileIdentity,
    NoSuchExecutable,
    device_numbers,
    device_of_fd,
    identify_fd,
)
from licagent.host.hashing import NotMeasured
from licagent.host.mounts import MountTable
from licagent.host.subordinates import Subordinates
from licagent.host.walk import ForeignFilesystemError, Walker, is_foreign

FRESH_NS: Final = 20_000_000
"""Two ticks at HZ=100, the coarsest change time there is (current_time(), fs/inode.c)."""

FILE_MAX_BYTES: Final = 2 * 1024**3
_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_HOST_OVERLAYS: Final = frozenset({"/", "/usr"})
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(slots=True)
class Found:
    """A file that may be measured, held open by its inode only (O_PATH). To be closed.

    Open, it keeps its filesystem from being unmounted: what waits is closed, and opened again
    (`MeasurableFiles.open_again`) at its turn.
    """

    path: str  # for messages, and to open it again
    fd: int  # -1: closed
    identity: FileIdentity
    info: os.stat_result
    filesystem: tuple[str, str] = ("", "")  # type and source of its mount
    answerable: int | None = None  # uid; who is meant by a subordinate uid
    name: str | None = None  # another path of it, as the host has it

    @property
    def owner(self) -> int:
        """The uid that answers for it."""
        return self.info.st_uid if self.answerable is None else self.answerable

    @property
    def is_roots(self) -> bool:
        """Whether root alone can write it."""
        return self.info.st_uid == 0 and not self.info.st_mode & _OTHERS_WRITE

    def close(self) -> None:
        """Give the descriptor back. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class MeasurableFiles:
    """Finds files that may be measured. For any thread."""

    def __init__(self, own_mounts: MountTable, host_mounts: MountTable) -> None:
        """What is mounted where this process is, and in the host's own namespace."""
        self._own_mounts = own_mounts
        self._host_mounts = host_mounts
        self._walker = Walker(own_mounts, host_mounts)
        self._subordinates = Subordinates()

    def find(self, path: str | Path) -> Found:
        """Find the file at `path`, if it is one that may be measured. Asks no foreign filesystem.

        Raises NoSuchExecutable or NotMeasured.
        """
        name = str(path)
        fd = self._walk(name)
        try:
            # Before anything is asked of it: whoever serves a foreign filesystem could let an
            # answer wait for ever.
            kind, source, lagging = self._filesystem(name, device_of_fd(fd, self._own_mounts))
            file = identify_fd(fd, self._own_mounts)
            if not stat.S_ISREG(file.info.st_mode):
                raise NoSuchExecutable(name, "it is no regular file")
            if lagging and (file.info.st_uid != 0 or file.info.st_mode & _OTHERS_WRITE):
                raise NotMeasured(
                    name,
                    f"on {kind} its owner could change it unseen; install it on a disk, or as "
                    "root's with mode 0755",
                    retry=False,
                )
            owner = self._subordinates.owner_of(file.info.st_uid)
        except BaseException:
            os.close(fd)
            raise
        return Found(name, fd, file.identity, file.info, (kind, source), owner)

    def _walk(self, name: str) -> int:
        try:
            return self._walker.open(name)
        except ForeignFilesystemError as error:
            raise _not_of_others(name, error.kind) from error
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise NoSuchExecutable(name, why or "it cannot be opened") from error

    def open_again(self, found: Found) -> None:
        """Open a file that was closed while it waited, if it is still the same version.

        Raises NotMeasured where its paths lead to something else by now, and NoSuchExecutable
        where they lead to nothing.
        """
        gone: NoSuchExecutable | None = None
        is_another = False
        for path in (found.path, found.name):
            if path is None:
                continue
            try:
                again = self.find(path)
            except NoSuchExecutable as error:
                gone = gone or error
                continue
            if again.identity == found.identity:
                found.fd, again.fd = again.fd, -1
                return
            again.close()
            is_another = True
        if is_another or gone is None:
            raise NotMeasured(found.path, "it changed while it waited", retry=True)
        raise gone

    def _filesystem(self, path: str, device: int) -> tuple[str, str, bool]:
        """Its type and source, and whether its change times come late."""
        mounts = self._host_mounts.on_device(*device_numbers(device))
        if not mounts:
            raise NotMeasured(
                path, "its filesystem is not mounted in the host's own namespace", retry=False
            )
        kind = mounts[0].filesystem
        if is_foreign(kind):
            raise _not_of_others(path, kind)
        lagging = kind in _MEMORY_FILESYSTEMS
        if kind == "overlay" and any(o.startswith("upperdir") for o in mounts[0].super_options):
            if not any(mount.point in _HOST_OVERLAYS for mount in mounts):
                raise NotMeasured(
                    path,
                    "in a container's writable overlay it could be changed unseen; select the "
                    "container with container:id",
                    retry=False,
                )
            lagging = True
        return kind, mounts[0].source, lagging


def check_file(found: Found) -> None:
    """Raise NotMeasured for a file that is too large, or too young."""
    if found.info.st_size > FILE_MAX_BYTES:
        raise NotMeasured(found.path, f"it is larger than {FILE_MAX_BYTES} bytes", retry=False)
    if 0 <= time.time_ns() - found.info.st_ctime_ns < FRESH_NS:
        raise NotMeasured(found.path, "it was changed a moment ago", retry=True)


def _not_of_others(path: str, kind: str) -> NotMeasured:
    return NotMeasured(
        path, f"others decide what a file on {kind} holds; copy it to a disk", retry=False
    )
